"""The constants that decide verdicts, each by hand: who changes one means to."""

import inspect
from dataclasses import replace

import pytest

from trl_ext.memory_planning.layer_kinds import Experts, Layer, ModelShape
from trl_ext.memory_planning.layer_pass import Pass
from trl_ext.memory_planning.memory_terms import BYTES_OF, cache_bytes, nf4_bytes, optimizer_bytes
from trl_ext.memory_planning.plan_activations import (
    attention_kept,
    cached_casts,
    cast_weights,
    experts_forward,
    experts_kept,
    layer_backward,
    layer_forward,
    layer_kept,
    linears_kept,
    mask_bytes,
    norms_kept,
    one_weight,
)
from trl_ext.memory_planning.plan_advice import advise
from trl_ext.memory_planning.plan_changes import CHANGES
from trl_ext.memory_planning.plan_heads import (
    OUR_CPU_TILE,
    head_backward,
    head_forward,
    head_kept,
    imitation_kept,
    imitation_logits,
)
from trl_ext.memory_planning.plan_phases import (
    CACHE,
    CUDA_CONTEXT,
    SHARED_READING,
    SLACK,
    SLACK_LINE,
    Phase,
    cache_copies,
    generating,
    loading,
    reward_pass,
    sampling_bytes,
    scoring,
)
from trl_ext.memory_planning.plan_roles import adapters, other_bases, paged_bytes, residents, trained
from trl_ext.memory_planning.plan_settings import METHODS, PlanSettings
from trl_ext.memory_planning.plan_training import (
    ACTIVATIONS,
    GRADIENTS,
    LOGITS,
    WEIGHT,
    graph_bytes,
    scored_tokens,
    training_moments,
    training_pass,
)
from trl_ext.memory_planning.planning import memory_plan
from trl_ext.trainer_kit.head_tiles import CPU_TILE

# Q = 4, K = 2; linear weights of a layer 16 + 8 + 8 + 16 + 3·24 = 120, inputs and outputs 8 + 6 + 6 + 8 + 3·10 = 58
SHAPE = ModelShape("tiny", vocab=10, hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, head_dim=2)


def run(**changes) -> Pass:
    return Pass(**{"shape": SHAPE, "rows": 2, "length": 3, "width": 2} | changes)  # N = 6


def settings(method="ppo", **changes) -> PlanSettings:
    sizes = {"batch": 4, "micro_batch": 2, "prompt_length": 3, "completion_length": 2, "lora": 1, "device": "cpu"}
    return PlanSettings(method=method, **sizes | changes)


def test_what_is_assumed_and_the_widths_of_numbers():
    assert (CUDA_CONTEXT, SLACK, SHARED_READING) == (536_870_912, 0.05, 256)
    assert BYTES_OF == {"float32": 4, "bfloat16": 2, "float16": 2}
    assert Phase({"weights": 3, SLACK_LINE: 2}).slack == 2 and Phase({"weights": 3}).slack == 0


def test_defaults_are_those_of_the_function():
    assert PlanSettings() == memory_plan(SHAPE).settings
    assert (PlanSettings().lora, PlanSettings().batch, PlanSettings().micro_batch) == (16, 16, 1)
    assert (PlanSettings().prompt_length, PlanSettings().completion_length) == (512, 512)
    assert (PlanSettings().reward_models, PlanSettings().reward_batch) == (1, 8)
    assert {method: PlanSettings(method=method).num_generations for method in METHODS} == {
        "ppo": 1, "grpo": 8, "raft": 8, "rest": 8, "reward": 8, "sft": 8,
    }  # fmt: skip
    assert [PlanSettings(method=method).rewards for method in METHODS] == [1, 1, 1, 1, 0, 0]
    assert inspect.signature(Pass).parameters["rank"].default == 0


def test_scales_of_scales():
    # 2²⁴ weights: half a byte each; 2¹⁸ blocks of 64, a byte each; 2¹⁰ of those, four bytes each; tables
    assert nf4_bytes(4096, 4096) == 2**23 + 2**18 + 4 * 2**10 + 1092
    assert optimizer_bytes(1_000_000, "adamw_8bit", width=4) == 2 * (1_000_000 + 4 * 3907)


def test_small_weights_by_hand():
    shape = replace(SHAPE, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True)
    # a layer: biases 4 + 2·2, 4, 2·6 + 4, norms 2·4 and of heads 2·2; the last norm
    assert shape.small_params == 2 * (8 + 4 + 16 + 8 + 4) + 4
    assert (SHAPE.head_params, replace(SHAPE, tied=True).head_params) == (40, 0)
    assert replace(SHAPE, counted=tuple(SHAPE.kinds)).small_params == 0


def test_a_layer_forward_by_hand():
    """State 48 bytes, inner state 72; attention 2·6·(4·4 + 2·2) + 2·2·9 = 276."""
    assert layer_forward(run()) == 3 * 48 + 276  # the MLP takes 3 · 72 = 216
    assert layer_forward(run(rank=1)) == 3 * 48 + 2 * 72 + 2 * 72
    assert layer_forward(run(rank=1, autocast=False)) == 3 * 48 + 2 * 72 + 2 * 4 * 36 + 4 * 24
    assert layer_forward(run(rank=1, autocast=False, width=4)) == 3 * 96 + 2 * 144 + 2 * 4 * 36
    assert layer_backward(run()) == 48 + 2 * 72 and layer_backward(run(rank=1)) == 48 + 3 * 72
    assert one_weight(run(bits=8)) == 0 and one_weight(run(bits=8, rows=1, length=1)) == 2 * 24 - 12
    assert one_weight(run(rows=1, length=1)) == 0
    assert linears_kept(run()) == 2 * 48 + 4 * 72
    assert norms_kept(run(trains_all=True)) == 2 * (4 * 6 * 5 + 48)
    assert norms_kept(run(trains_all=True, shape=replace(SHAPE, wide_norms=True))) == 2 * (4 * 6 * 5 + 96)


def test_layers_of_other_kinds_by_hand():
    (layer,) = SHAPE.kinds
    scores = run(at=replace(layer, scores=True))
    assert attention_kept(scores) == attention_kept(run()) + 6 * 2 * 18  # 2 heads, 2 · 3² scores: in fp32, in 16 bits
    assert attention_kept(replace(scores, width=4)) == attention_kept(run(width=4)) + 4 * 2 * 18
    assert layer_forward(scores) == 3 * 48 + 276 + 2 * 6 * 2 * 18  # before and after softmax
    assert layer_forward(run(at=replace(layer, scores=True, narrow=True))) == 3 * 48 + 276 + 4 * 2 * 2 * 18
    fused = replace(layer, fused=True)  # gate and up are made at once
    assert layer_forward(run(at=fused)) == 3 * 48 + 4 * 72
    assert layer_forward(run(at=fused, rank=1, autocast=False)) == 3 * 48 + 2 * 72 + 4 * 4 * 36 + 4 * 24
    none = replace(layer, queries=0, keys=0, heads=0, kv_heads=0)
    assert attention_kept(run(at=none)) == 0  # nor a mask
    copied = run(at=replace(layer, copies_output=True), bits=4, rank=1)
    assert linears_kept(copied) == linears_kept(run(bits=4, rank=1)) + 2 * 6 * 4
    assert layer.largest_linear == 24 and replace(layer, linears=()).largest_linear == 0
    windows = replace(SHAPE, windows=(None, 2))
    assert (mask_bytes(run()), mask_bytes(run(shape=windows))) == (18, 36)  # a mask per kind of window


def test_experts_by_hand():
    """3 experts of inner size 5, of which 2 read a token: 12 pairs."""
    layer = Layer(((4, 4),), 8, 4, 2, 2, 1, inner=0, mlp_kept=0, norms=(), experts=Experts(3, 2, 5, 180, adapted=True))
    one = run(at=layer)
    assert experts_forward(one) == 2 * 12 * (4 + 3 * 5) and experts_forward(run()) == 0
    assert experts_kept(one) == 2 * 12 * (2 * 4 + 4 * 5) + 32 * 12 + 4 * 6 * 3 and experts_kept(run()) == 0
    assert experts_forward(replace(one, rank=1)) == experts_forward(one) + 2 * 180
    assert experts_kept(replace(one, rank=1)) == experts_kept(one) + 2 * 180
    # the MLP has no linear layer, so that attention's are all that copy: one input is its own
    assert linears_kept(replace(one, rank=1)) == 2 * 48 + 2 * 6 * 1 + 0
    two = run(at=replace(layer, linears=((4, 4), (4, 4))), rank=1)
    assert linears_kept(two) == 2 * 48 + 2 * 6 * 2 + 2 * 6 * 4


def test_heads_by_hand():
    assert head_kept(run(), scored=5) == 4 * 6 * 5 + 48 + 2 * 5 * 4
    tile = 2 * 5 * 32768
    assert head_backward(run(cuda=False), scored=5) == tile + 29 * 5 * 10 + (4 + 2) * 5 * 4
    assert head_backward(run(trains_all=True), scored=5) == tile + 6 * 5 * 4 + 6 * 40
    assert head_forward(run(), scored=5000) == 2 * 4096 * 32768
    assert head_forward(run(tile=512), scored=5) == 2 * 5 * 512
    asked = [training_pass(SHAPE, settings(method)).tile for method in ("ppo", "raft", "rest", "grpo")]
    assert asked == [CPU_TILE, CPU_TILE, CPU_TILE, None] == [OUR_CPU_TILE] * 3 + [None]
    assert training_pass(SHAPE, settings(device="cuda")).tile is None


def test_the_imitation_head_by_hand():
    assert imitation_kept(run(), imitated=5) == 2 * 2 * 5 * 4
    assert imitation_logits(run(), imitated=5) == (4 + 2) * 5 * 10
    assert imitation_logits(run(width=4), imitated=5) == 4 * 5 * 10
    assert imitation_logits(run(cast=True), imitated=5) == 6 * 5 * 10 + 2 * 40
    assert imitation_logits(run(), imitated=10**9) == 6 * (2**24 // 10) * 10  # no more than a chunk
    # untied and on a base of its own, the frozen head is one more matrix
    alone = settings("reward", imitation=True, shared=False)
    assert residents(SHAPE, alone)["imitation head"] == 2 * 40
    for other in (replace(alone, shared=True), replace(alone, imitation=False), replace(alone, method="sft")):
        assert residents(SHAPE, other)["imitation head"] == 0
    assert residents(replace(SHAPE, tied=True), alone)["imitation head"] == 0
    with_it, without = (training_moments(SHAPE, replace(alone, imitation=on)) for on in (True, False))
    # 4 = 2 · 2 chosen tokens; the micro-batch has 2 · 2 sequences of 5
    pair = training_pass(SHAPE, alone)
    kept = graph_bytes(pair, alone, scored=0) + 2 * 2 * 4 * 4
    assert with_it[0] == {ACTIVATIONS: kept, LOGITS: 6 * 4 * 10, GRADIENTS: with_it[0][GRADIENTS]}
    assert with_it[1][ACTIVATIONS] == without[0][ACTIVATIONS] + 2 * 2 * 4 * 4


def test_weights_that_autocast_casts_by_hand():
    one = run(cast=True, rank=1)
    assert (cast_weights(one), cast_weights(run()), cached_casts(one)) == (2 * 120, 0, 0)
    assert cast_weights(replace(one, bits=4)) == 0
    whole = run(cast=True, trains_all=True)
    assert (cast_weights(whole), cached_casts(whole)) == (0, 2 * 240)
    assert cached_casts(run(trains_all=True)) == 0
    assert one.residual == 4 * 24 and run().residual == 48  # the stream between layers stays in fp32
    assert head_kept(one, scored=0) == 4 * 6 * 5 + 96
    assert layer_kept(one) == layer_kept(run(rank=1)) + 2 * 120
    in_fp32 = settings("sft", dtype="float32", autocast=True)
    assert training_pass(SHAPE, in_fp32).width == 2 and residents(SHAPE, in_fp32)["base weights"] == 4 * 340
    with pytest.raises(ValueError, match=r"dtype='bfloat16', autocast=True\): expected weights in float32"):
        settings(autocast=True)


def test_loading_by_hand():
    assert loading(SHAPE, settings()) == {"base weights": 2 * 340, "other bases": 0, WEIGHT: 0}
    assert loading(SHAPE, settings(bits=8))[WEIGHT] == 2 * 24
    apart = settings(value_model=True, shared=False, reward_models=2)
    assert other_bases(SHAPE, apart) == 3 * 2 * 300  # a critic and two rewards, without vocabulary heads
    whole = settings("grpo", lora=None, reward_models=1)
    assert other_bases(SHAPE, whole) == 2 * 340 + 2 * 300 and other_bases(SHAPE, settings()) == 0
    assert other_bases(SHAPE, replace(whole, reference=False)) == 2 * 300


def test_adapters_and_optimizer_by_hand():
    one = 2 * 58  # of rank 1
    assert adapters(SHAPE, settings()) == 4 * (
        3 * one + 2 * 4
    )  # policy, reference, reward; heads of reward and critic
    assert adapters(SHAPE, settings(shared=False)) == 4 * (2 * one + 2 * 4)
    assert adapters(SHAPE, settings("reward")) == 4 * (one + 4)
    assert adapters(SHAPE, settings("sft")) == 4 * one and adapters(SHAPE, settings("sft", lora=None)) == 0
    assert trained(SHAPE, settings(value_model=True)) == (one, one + 4)
    assert trained(SHAPE, settings("reward", lora=None)) == (304,) and trained(SHAPE, settings(lora=None)) == (340,)
    paged = settings("sft", optimizer="paged_adamw_8bit")
    assert (paged_bytes(SHAPE, paged), paged_bytes(SHAPE, settings())) == (2 * (one + 4), 0)
    assert residents(SHAPE, settings("sft"))["optimizer state"] == 2 * 4 * one


def test_generating_by_hand():
    """4 completions; prompts of 3 tokens and 2 new ones."""
    read, grown, drawn = generating(SHAPE, settings())
    prompt, step = (run(rows=4, length=n, rank=1, autocast=False, cuda=False) for n in (3, 1))
    assert read == {
        CACHE: cache_bytes(SHAPE, rows=4, tokens=3, width=2),
        ACTIVATIONS: prompt.state + layer_forward(prompt) + 4 * 9,
    }
    full = 2 * 2 * 2 * 4 * 4 * 2  # layers, keys and values, two numbers, rows, all tokens but the last, bytes
    copies = 4 * 5 * 2 * 2 * 4  # keys and values once for each of two heads that share them
    assert grown == {CACHE: full, ACTIVATIONS: step.state + layer_forward(step) + copies}
    assert drawn == {CACHE: full, LOGITS: 4 * 10 * (2 + 8)}
    assert sampling_bytes(SHAPE, settings(device="cuda")) == 4 * 10 * (2 + 8 + 4)
    assert sampling_bytes(SHAPE, settings("raft")) == 4 * 10 * 16
    assert sampling_bytes(SHAPE, settings("raft", device="cuda")) == 4 * 10 * (16 + 8)
    assert cache_copies(replace(SHAPE, kv_heads=2), settings()) == 4 * 5 * 2 * 4  # keys alone, twice while one grows
    rows = generating(SHAPE, settings("raft", num_generations=3))[0][CACHE]
    assert rows == cache_bytes(SHAPE, rows=2, tokens=3, width=2)  # ⌈4 / 3⌉ prompts, each read once


def test_scoring_by_hand():
    one = settings(reward_batch=3)
    passes = scoring(SHAPE, one)
    reading = run(rows=3, length=5, rank=1, autocast=False, cuda=False)
    assert passes[0] == {CACHE: 0, ACTIVATIONS: reading.state + layer_forward(reading) + 3 * 25}
    again = run(rows=2, length=5, rank=1, cuda=False, tile=512)
    state = again.state + 2 * 25
    assert passes[1] == {ACTIVATIONS: state + layer_forward(again)}
    assert passes[2] == {ACTIVATIONS: 2 * state, LOGITS: head_forward(again, scored=2 * 4)}
    assert len(scoring(SHAPE, settings("raft"))) == 1 and scoring(SHAPE, settings("raft", reward_models=0)) == []


@pytest.mark.parametrize(("prompt", "saved"), [(128, True), (127, False)])
def test_samples_of_a_long_prompt_are_scored_behind_it(prompt, saved):
    """3 samples of a prompt of 128 tokens save 2 · 128 = 256 tokens, which is worth it."""
    moment = reward_pass(SHAPE, settings("raft", prompt_length=prompt, num_generations=3))
    reading = run(rows=3 if saved else 4, length=2 if saved else prompt + 2, rank=1, autocast=False, cuda=False)
    cache = cache_bytes(SHAPE, rows=3, tokens=prompt + 2, width=2) if saved else 0
    assert moment == {CACHE: cache, ACTIVATIONS: reading.state + layer_forward(reading) + mask_bytes(reading)}


def test_a_training_step_by_hand():
    """A critic beside the policy; 116 and 120 numbers are trained, in fp32."""
    both = settings(value_model=True)
    one = training_pass(SHAPE, both)
    assert (one.rows, one.length, one.rank, one.cuda) == (2, 5, 1, False)
    assert training_pass(SHAPE, settings("reward")).rows == 4 and training_pass(SHAPE, settings(lora=None)).rank == 0
    assert scored_tokens(both) == 2 * 4 and scored_tokens(settings("reward")) == 0
    assert scored_tokens(settings(device="cuda")) == 2 * 2
    policy, value = (2 * one.state + head_kept(one, scored=n) + 2 * 25 for n in (8, 0))
    assert graph_bytes(one, both, scored=8) == policy
    layer = layer_kept(one) + layer_backward(one)
    waiting = 4 * (116 + 120)  # two micro-batches
    assert training_moments(SHAPE, both) == [
        {ACTIVATIONS: policy + value + layer, WEIGHT: 0, GRADIENTS: waiting},
        {ACTIVATIONS: policy, LOGITS: head_backward(one, scored=8), GRADIENTS: waiting},
        {ACTIVATIONS: policy + layer, WEIGHT: 0, GRADIENTS: waiting},
        {ACTIVATIONS: one.state + layer, WEIGHT: 0, GRADIENTS: waiting},
        {GRADIENTS: waiting},
    ]
    whole = training_moments(SHAPE, replace(both, batch=2))  # one micro-batch: only the critic's are there yet
    assert [moment[GRADIENTS] for moment in whole] == [0, 4 * 120, 4 * 120, waiting, waiting]


def test_a_training_step_without_checkpoints_by_hand():
    plain = settings("sft", gradient_checkpointing=False)
    one = training_pass(SHAPE, plain)
    # the adapter in 16 bits, which autocast makes of it
    assert graph_bytes(one, plain, scored=0) == 2 * layer_kept(one) + 2 * 116 + head_kept(one, scored=0) + 2 * 25
    in_fp32 = replace(plain, dtype="float32")
    wide = training_pass(SHAPE, in_fp32)
    assert graph_bytes(wide, in_fp32, scored=0) == 2 * layer_kept(wide) + head_kept(wide, scored=0) + 2 * 25
    last = training_moments(SHAPE, plain)[-2]
    assert last[ACTIVATIONS] == layer_kept(one) + layer_backward(one)


def test_in_fp32_the_first_norm_keeps_the_checkpoint_itself():
    wide = settings("sft", dtype="float32")
    one = training_pass(SHAPE, wide)
    anew = layer_kept(one) - one.state
    assert training_moments(SHAPE, wide)[-2][ACTIVATIONS] == one.state + anew + layer_backward(one)


def test_eight_bit_inputs_are_held_to_the_end_by_hand():
    """2 layers of 2 · 10 · (2 · 4 + 4 + 6) bytes, of which reentrant checkpoints know nothing."""
    held, free = (training_moments(SHAPE, settings("sft", bits=8, reentrant=way)) for way in (False, True))
    assert held[0][ACTIVATIONS] - free[0][ACTIVATIONS] == 2 * 2 * 10 * 18


def test_what_each_change_tries():
    def tried(name, **changes):
        return [change.values(settings("grpo", **changes)) for change in CHANGES if change.setting == name]

    assert tried("micro_batch", batch=12, micro_batch=12) == [[6, 3, 1]]
    assert tried("reward_batch", reward_batch=5) == [[2, 1]] and tried("reward_batch", reward_models=0) == [[]]
    assert tried("batch", batch=24, micro_batch=2, num_generations=4) == [[12, 4]]  # whole groups and micro-batches
    assert tried("batch", batch=24, micro_batch=8, num_generations=4) == [[8]]
    assert tried("completion_length", completion_length=100) == [[50, 32]]
    assert tried("lora", lora=None) == [[16]] and tried("lora") == [[]]
    assert tried("bits") == [[8], [8], [4]]  # with and without reentrant checkpoints
    assert tried("bits", bits=8, reentrant=True) == [[], [], [4]] and tried("bits", bits=4) == [[], [], []]
    assert tried("bits", lora=None) == [[], [], []] and tried("bits", gradient_checkpointing=False) == [[8], [], [4]]
    assert tried("reentrant", bits=8) == [[True]] and tried("reentrant", bits=4) == [[]]


def test_what_a_later_change_makes_needless_is_taken_back():
    """Half of the batch suffices alone; smaller micro-batches, which came first, helped but not enough."""

    def judge(one: PlanSettings) -> tuple[int, str]:
        peak = 100 * one.batch + one.micro_batch
        return peak, "fits" if peak <= 850 else "does not fit"

    (only,) = advise(settings("grpo", batch=16, micro_batch=4), judge)
    assert (only.flag, only.config, only.peak) == ("--batch 8", "generation_batch_size=8", 804)
