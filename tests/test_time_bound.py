"""The least time of a run: by hand on a tiny shape, relations that must hold, cards by name, bad input."""

import pytest

from trl_ext import memory_plan
from trl_ext.cli import main
from trl_ext.memory_planning.card_speeds import CARDS, Card, card_named
from trl_ext.memory_planning.memory_terms import cache_bytes
from trl_ext.memory_planning.model_shapes import ModelShape, shape_of
from trl_ext.memory_planning.plan_settings import METHODS
from trl_ext.memory_planning.time_terms import adapter_weights, attended, attention, head, layer_weights, weights_read

SHAPE = ModelShape("tiny", vocab=10, hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, head_dim=2)
LAYERS = 2 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6)  # q, k and v, o, the MLP; of two layers
SLOW_MEMORY = Card("slow memory", 1, 1.0, tflops=1e9, tops=1e9, bandwidth=1e-9)  # a byte a second, all else at once
SLOW_CORES = Card(
    "slow cores", 1, 1.0, tflops=1e-12, tops=2e-12, bandwidth=1e30
)  # an operation a second, in 8 bits two


def seconds(card, method="ppo", *, length=None, **settings) -> dict[str, float]:
    sizes = {"batch": 1, "prompt_length": 3, "completion_length": 2, "lora": 1, "reward_models": 0, "reference": False}
    plan = memory_plan(SHAPE, method, **sizes | {"gradient_checkpointing": False} | settings)
    return plan.time_bound(card, **length or {}).seconds


def test_terms_by_hand():
    assert layer_weights(SHAPE) == LAYERS and adapter_weights(SHAPE, 3) == 3 * 2 * (8 + 6 + 6 + 8 + 10 + 10 + 10)
    assert attention(SHAPE, start=0, end=3) == 2 * 4 * 4 * (1 + 2 + 3)
    assert head(SHAPE, 5) == 2 * 5 * 10 * 4
    assert weights_read(SHAPE, bits=None, width=2, with_head=True) == 2 * (LAYERS + 40)
    assert attended(3, 6, 2) == 6


def test_sampling_reads_the_base_and_what_is_cached_at_each_token():
    """Two tokens: the first comes of reading the prompt, the second of a step that looks at four."""
    read = weights_read(SHAPE, bits=None, width=2, with_head=True)
    assert seconds(SLOW_MEMORY)["generate"] == pytest.approx(2 * read + cache_bytes(SHAPE, rows=1, tokens=4, width=2))


def test_sampling_computes_each_token_once():
    weights = LAYERS + adapter_weights(SHAPE, 1)
    expected = 2 * 4 * weights + 2 * head(SHAPE, 1) + attention(SHAPE, start=0, end=4)
    assert seconds(SLOW_CORES)["generate"] == pytest.approx(expected)


def test_training_by_hand():
    """Forward, backward through all weights, and through the adapter's into its own; attention backward twice."""
    adapter = adapter_weights(SHAPE, 1)
    tokens, once = 5, 2 * 5 * (LAYERS + adapter) + attention(SHAPE, start=0, end=5)
    through = 2 * tokens * (LAYERS + adapter) + 2 * attention(SHAPE, start=0, end=5)
    expected = once + through + 2 * tokens * adapter + 2 * head(SHAPE, 2)
    assert seconds(SLOW_CORES, "sft")["train"] == pytest.approx(expected)
    assert seconds(SLOW_CORES, "sft", gradient_checkpointing=True)["train"] == pytest.approx(expected + once)
    full = seconds(SLOW_CORES, "sft", lora=None)["train"]
    assert full == pytest.approx(3 * (2 * tokens * LAYERS + head(SHAPE, 2) + attention(SHAPE, start=0, end=5)))


def test_8_bits_compute_forward_alone():
    """The layers' products: forward at twice the rate, backward in 16 bits."""
    saved = seconds(SLOW_CORES, "sft")["train"] - seconds(SLOW_CORES, "sft", bits=8)["train"]
    assert saved == pytest.approx(2 * 5 * LAYERS / 2)


def test_scoring_reads_policy_reference_and_rewards():
    one = seconds(SLOW_CORES)["score"]
    whole = 2 * 5 * (LAYERS + adapter_weights(SHAPE, 1)) + attention(SHAPE, start=0, end=5)
    assert one == pytest.approx(whole + head(SHAPE, 2))
    assert seconds(SLOW_CORES, reference=True)["score"] == pytest.approx(2 * one)
    assert seconds(SLOW_CORES, reward_models=2)["score"] == pytest.approx(one + 2 * whole)
    assert seconds(SLOW_CORES, value_model=True)["score"] == pytest.approx(one + whole)


def hours(method="ppo", *, card="RTX 4090", model="llama-2-7b", length=None, **settings) -> float:
    plan = memory_plan(model, method, **{"bits": 8, "batch": 32, "micro_batch": 2} | settings)
    return plan.time_bound(card, **length or {}).hours


@pytest.mark.parametrize("method", METHODS)
def test_more_work_takes_more(method):
    one = hours(method, length={"prompts": 1000})
    assert hours(method, length={"prompts": 2000}) == pytest.approx(2 * one)
    assert hours(method, length={"prompts": 1000}, prompt_length=1024, completion_length=1024) >= 2 * one
    assert hours(method, length={"prompts": 1000, "epochs": 24}) > one
    assert (
        hours(method, length={"prompts": 1000}, card="T4") > one > hours(method, length={"prompts": 1000}, card="H200")
    )
    assert hours(method, length={"max_steps": 200}) == pytest.approx(2 * hours(method, length={"max_steps": 100}))


@pytest.mark.parametrize(("method", "steps"), [("ppo", 4), ("grpo", 1), ("raft", 2), ("sft", 1)])
def test_steps_and_prompts_are_two_ways_to_say_it(method, steps):
    """One batch: of PPO four steps; of RAFT 32 of 256 completions, twice; of the others one."""
    batch = {"batch": 32, "num_generations": 1 if method == "ppo" else 8}
    of_steps = hours(method, **batch, length={"max_steps": 8 * steps})
    prompts = {"ppo": 32, "grpo": 4, "raft": 32, "sft": 32}[method]
    assert of_steps == pytest.approx(hours(method, **batch, length={"prompts": 8 * prompts}))


def test_sampling_more_at_once_shares_the_reading():
    alone, together = ({"batch": batch, "micro_batch": 1} for batch in (1, 64))
    assert hours("grpo", num_generations=1, **together, length={"prompts": 64}) < 0.5 * hours(
        "grpo", num_generations=1, **alone, length={"prompts": 64}
    )
    served = {"generator": "vllm", "served_bits": 8, "batch": 64}
    assert hours(**served, served_at_once=8) > hours(**served)


def test_a_mixture_reads_its_active_experts():
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_local_experts=8
    )
    whole = layer_weights(shape_of(config))
    config.num_experts_per_tok = 8
    attention_alone = layer_weights(shape_of(config)) - 2 * 8 * 3 * 32 * 64
    assert whole == pytest.approx(attention_alone + 2 * 2 * 3 * 32 * 64)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("a100 40gb", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A10G", "A10G"),
    ],
)
def test_cards_by_what_torch_and_shops_call_them(said, name):
    assert card_named(said, call="x").name == name


def test_the_table_is_of_dense_products():
    """8 bits twice as fast as 16, of cards for games four times, whose sums in fp32 take twice as long."""
    for card in CARDS:
        ratio = 4 if card.name in ("RTX 3090", "RTX 4090", "RTX 5090") else 2
        assert card.tops == pytest.approx(ratio * card.tflops, rel=0.02) and card.gib <= card.sold


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "24GB", "--hours"], 'a size does not say how fast a card is. Give its name, one of those with as much: "RTX 3090"'),
        (["--gpu", "7GB", "--hours"], 'Give its name, e.g. "RTX 4090"'),
        (["--hours"], "there is no card here. Name one"),
        (["--gpu", "A100", "--hours"], "'A100': expected one card. Give 'A100 40GB' or 'A100 80GB'"),
        (["--gpu", "RTX 4091"], "Did you mean 'RTX 4090'?"),
        (["--gpu", "H100", "--hours", "--prompts", "0"], "--prompts 0: expected a whole number from 1 on"),
        (["--gpu", "H100", "--hours", "--prompts", "9", "--max-steps", "9"], "expected one of them"),
        (["--gpu", "H100", "--prompts", "9"], "--prompts: it says how long a run is. Give --hours too"),
    ],
)  # fmt: skip
def test_bad_input(options, message, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "llama-2-7b", *options])
    told = capsys.readouterr()
    assert ended.value.code == 2 and message in told.err and told.out == ""


def test_it_is_called_a_bound(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["plan", "llama-2-7b", "--bits", "8", "--gpu", "RTX 4090", "--hours", "--prompts", "10000"])
    printed = capsys.readouterr().out
    said = " ".join(printed.split())
    assert "10,000 prompts take at least " in said and "A bound, not a forecast" in said and "1008 GB/s" in said
    assert "Time is not predicted" not in said and "RTX 4090, 23.5 GiB: fits" in said
    assert max(map(len, printed.splitlines())) <= 80
