"""The plan as a whole: sums, relations that must hold, verdict, advice, bad input."""

import inspect
import subprocess
import sys
from dataclasses import replace

import pytest

import trl_ext
from trl_ext import MemoryPlan, PPOTrainer, memory_plan
from trl_ext.memory_planning.memory_terms import adapter_params, base_bytes, cache_bytes
from trl_ext.memory_planning.model_shapes import ModelShape, shape_of
from trl_ext.memory_planning.plan_phases import CUDA_CONTEXT, SLACK
from trl_ext.memory_planning.plan_settings import METHODS

GIB = 2**30
SHAPE = ModelShape("tiny", vocab=10, hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, head_dim=2)


def peaks(**changes) -> dict[str, int]:
    plan = memory_plan("llama-2-7b", **{"bits": 8, "value_model": True} | changes)
    return {name: phase.bytes for name, phase in plan.phases.items()}


def test_ppo_by_hand():
    sizes = {"batch": 2, "prompt_length": 3, "completion_length": 2}
    plan = memory_plan(SHAPE, "ppo", lora=1, value_model=True, **sizes, device="cpu")
    base, adapter = 2 * (240 + 20 + 80), 4 * adapter_params(SHAPE, 1)
    generate = plan.phases["generate"].terms
    assert generate["base weights"] == base
    assert generate["adapters, heads"] == 4 * adapter + 2 * 4 * 4  # policy, its reference, value, reward; two heads
    assert generate["optimizer state"] == 2 * (2 * adapter + 4 * 4)
    assert plan.phases["train"].terms["gradients"] == 2 * adapter + 4 * 4  # two micro-batches: they wait
    assert sum(generate.values()) == plan.phases["generate"].bytes
    assert list(plan.phases) == ["load", "generate", "score", "train"]


def test_full_fine_tuning_has_a_second_model_as_reference():
    terms = memory_plan(SHAPE, "grpo", lora=None, reward_models=0, batch=8, device="cpu").phases["train"].terms
    weights = base_bytes(SHAPE, bits=None, width=2)
    assert (terms["base weights"], terms["other bases"], terms["gradients"]) == (weights,) * 3
    assert terms["optimizer state"] == 2 * weights


def test_context_and_slack_are_lines_of_their_own():
    for phase in memory_plan("qwen3-8b").phases.values():
        *terms, context, slack = phase.terms.values()
        assert (context, slack) == (CUDA_CONTEXT, int(SLACK * sum(terms)))
    assert not any("assumed" in term for term in memory_plan("qwen3-8b", device="cpu").phases["train"].terms)


def test_the_cache_is_what_the_notes_say():
    """16 sequences × 768 tokens: Llama-2 6.0 GiB, Mistral 1.5, Qwen2.5 0.66."""
    sizes = [cache_bytes(shape_of(name), rows=16, tokens=768, width=2) / GIB for name in ("llama-2-7b", "mistral-7b")]
    assert sizes == [6.0, 1.5]


def test_less_of_anything_needs_no_more():
    start = {"batch": 32, "micro_batch": 8, "gradient_checkpointing": False, "shared": False, "bits": None}
    for change in (
        {"batch": 16},
        {"micro_batch": 4},
        {"gradient_checkpointing": True},
        {"shared": True},
        {"bits": 8},
        {"bits": 4},
        {"value_model": False},
        {"reward_models": 0},
        {"prompt_length": 256},
        {"completion_length": 256},
        {"lora": 8},
        {"optimizer": "paged_adamw_8bit"},
    ):
        before, after = peaks(**start), peaks(**start | change)
        assert all(after[name] <= before[name] for name in before), change
        assert sum(after.values()) < sum(before.values()), change


def test_a_reference_costs_the_copy_of_an_adapter_or_of_the_model():
    """Under separate adapters it is the base itself."""
    gone = {"reference": False}
    assert peaks(**gone)["train"] < peaks()["train"]
    assert peaks(**gone, shared=False)["train"] == peaks(shared=False)["train"]
    full = {"lora": None, "bits": None}
    assert peaks(**full)["train"] - peaks(**full, **gone)["train"] > 13e9  # a 7B model in bf16


def test_four_separate_models_do_not_fit_where_a_shared_base_does():
    card = int(23.5 * GIB)
    assert memory_plan("llama-2-7b", bits=8, value_model=True).verdict(card) == "fits"
    assert memory_plan("llama-2-7b", bits=8, value_model=True, shared=False).verdict(card) == "does not fit"


def test_eight_bit_holds_its_inputs_unless_checkpoints_are_reentrant():
    assert peaks(micro_batch=4)["train"] > peaks(micro_batch=4, reentrant=True)["train"]
    assert peaks(bits=4)["train"] == peaks(bits=4, reentrant=True)["train"]


def test_methods_without_sampling_have_two_phases():
    assert list(peaks(method="sft")) == list(peaks(method="reward")) == ["load", "train"]
    assert peaks(method="raft")["train"] < peaks(method="ppo")["train"]


def test_a_paged_optimizer_is_not_on_the_card():
    plan = memory_plan("llama-2-7b", optimizer="paged_adamw_8bit")
    assert "optimizer state" not in plan.phases["train"].terms and plan.paged > 0


def test_verdict_leaves_room_for_slack():
    plan = memory_plan("llama-2-7b", bits=8)
    slack = plan.phases[plan.peak_phase].slack
    assert plan.verdict(plan.peak + slack) == "fits"
    assert plan.verdict(plan.peak + slack - 1) == plan.verdict(plan.peak - slack) == "tight"
    assert plan.verdict(plan.peak - slack - 1) == "does not fit"


def test_advice_adds_up_until_it_fits_and_holds_nothing_needless():
    settings = {"value_model": True, "shared": False, "gradient_checkpointing": False}
    plan = memory_plan("llama-3.1-8b", micro_batch=8, **settings)
    card = 24 * GIB
    advice = plan.advice(card)
    assert advice[-1].verdict == "fits" and {step.verdict for step in advice[:-1]} <= {"tight", "does not fit"}
    assert memory_plan("llama-3.1-8b", **vars(advice[-1].settings)).peak == advice[-1].peak <= card
    assert advice[0].change == "micro-batches of 4" and all(step.cost for step in advice)
    assert plan.advice(2**50) == []


def test_advice_says_when_nothing_helps():
    advice = memory_plan("llama-3.1-8b").advice(2 * GIB)
    assert advice and advice[-1].verdict == "does not fit"
    assert advice[-1].peak == min(step.peak for step in advice)


def test_line_says_that_it_is_not_verified():
    line = memory_plan("llama-2-7b", bits=8).line()
    assert line.startswith("memory plan (not verified on a GPU): peak ") and "base weights 6.5" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dpo"}, r"memory_plan\(method='dpo'\): expected one of ppo, grpo"),
        ({"bits": 3}, r"memory_plan\(bits=3\): expected one of None, 8, 4"),
        ({"bits": True}, r"bits=True"),
        ({"dtype": "fp8"}, r"dtype='fp8'\): expected one of float32"),
        ({"prompt_length": -1}, r"prompt_length=-1\): expected a whole number from 1 on"),
        ({"completion_length": 2.5}, r"completion_length=2.5"),
        ({"batch": 0}, r"batch=0"),
        ({"micro_batch": 32}, r"batch=16, micro_batch=32\): expected micro_batch ≤ batch"),
        ({"reward_models": -1}, r"from 0 on"),
        ({"lora": 0}, r"lora=0\): expected a rank from 1 on, or None"),
        ({"lora": None, "bits": 8}, r"bits=8, lora=None\): quantised weights are frozen.*Give a LoRA rank"),
        ({"optimizer": "sgd"}, r"optimizer='sgd'"),
        ({"device": "tpu"}, r"device='tpu'\): expected one of cuda, cpu"),
        ({"shared": 1}, r"shared=1\): expected True or False"),
        ({"method": ["ppo"]}, r"method=\['ppo'\]"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        memory_plan("llama-2-7b", **changes)


def test_the_critic_is_the_trainers_default():
    """`PPOTrainer` without `value_model` puts a linear head on the policy."""
    assert inspect.signature(PPOTrainer).parameters["value_model"].default is None
    assert not memory_plan("llama-2-7b").settings.value_model
    plan = memory_plan(SHAPE, "ppo", lora=1, batch=2, prompt_length=3, completion_length=2, device="cpu")
    terms = plan.phases["train"].terms
    # adapters of the policy, its reference and the reward model; a head for the reward and one for the critic
    assert terms["adapters, heads"] == 3 * 4 * adapter_params(SHAPE, 1) + 2 * 4 * 4


def test_sixteen_bits_are_none():
    assert memory_plan("llama-2-7b", bits=16) == memory_plan("llama-2-7b")


@pytest.mark.parametrize("card", [0, -1, "24GB", True, float("nan")])
def test_bad_card(card):
    with pytest.raises(ValueError, match=r"expected the card's memory in bytes"):
        memory_plan("llama-2-7b").verdict(card)


def test_it_loads_neither_torch_nor_transformers():
    code = (
        "import sys, trl_ext; trl_ext.memory_plan('llama-2-7b'); print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    assert trl_ext.MemoryPlan is MemoryPlan
    assert replace(memory_plan("llama-2-7b").settings, bits=8).bits == 8


@pytest.mark.parametrize("card", [4, 8, 12, 16, 20])
@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_advice_never_asks_for_a_part_larger_than_the_whole(card, micro_batch):
    advice = memory_plan("llama-2-7b", "ppo", bits=4, batch=16, micro_batch=micro_batch).advice(card * 2**30)
    assert all(step.settings.micro_batch <= step.settings.batch for step in advice)
    peaks = [step.peak for step in advice]
    assert peaks == sorted(peaks, reverse=True)


METHODS_AND_CARDS = [(method, card) for method in METHODS for card in (12, 16, 20, 24, 40)]


@pytest.mark.parametrize(("method", "card"), METHODS_AND_CARDS)
@pytest.mark.parametrize("shared", [True, False])
def test_advice_for_full_fine_tuning(method, card, shared):
    """8 bits come only with an adapter, which then is not taken back."""
    plan = memory_plan("llama-2-7b", method, lora=None, shared=shared)
    advice = plan.advice(card * GIB)
    assert advice[-1].verdict == "fits" and advice[-1].peak < plan.peak
    assert memory_plan("llama-2-7b", **vars(advice[-1].settings)).peak == advice[-1].peak


def test_an_adapter_on_one_shared_base_shares_it():
    advice = memory_plan("llama-2-7b", lora=None, shared=False).advice(24 * GIB)
    step = next(step for step in advice if step.settings.lora)
    assert step.settings.shared and step.flag == "--lora 16 --shared" and "shared base" in step.change


@pytest.mark.parametrize(
    ("method", "sizes", "batches"),
    [
        ("grpo", {}, {8}),
        ("grpo", {"batch": 48, "micro_batch": 12}, {8, 16, 24}),
        ("ppo", {"num_generations": 4}, {4, 8}),
        ("ppo", {"batch": 15, "micro_batch": 15, "num_generations": 3}, {3, 6, 9}),
        ("raft", {}, {1, 2, 4, 8}),
        ("grpo", {"batch": 4}, set()),  # groups that several processes share
    ],
)
def test_advised_batches_are_whole_groups_and_micro_batches(method, sizes, batches):
    sizes, advised = {"batch": 16} | sizes, set()
    for card in range(2, 24):
        for step in memory_plan("llama-2-7b", method, bits=8, **sizes).advice(card * GIB):
            assert step.settings.batch % step.settings.micro_batch == 0
            advised |= {step.settings.batch} - {sizes["batch"]}
    assert advised <= batches and bool(advised) == bool(batches)


def test_a_smaller_batch_leaves_the_micro_batch_unless_it_is_told():
    advice = memory_plan("llama-2-7b", batch=16, micro_batch=16).advice(20 * GIB)
    assert advice[-1].verdict == "fits" and [step.flag.split()[0] for step in advice[:2]] == [
        "--micro-batch",
        "--batch",
    ]
