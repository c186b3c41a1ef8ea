"""What is advised where a run does not fit: no costlier change than is needed, each at its mildest value."""

import itertools

import pytest

from trl_ext.memory_planning import MemoryPlan, memory_plan
from trl_ext.memory_planning.plan_advice import advise
from trl_ext.memory_planning.plan_changes import CHANGES
from trl_ext.memory_planning.plan_settings import PlanSettings

GIB = 2**30
CARD = int(0.98 * GIB)  # of each GB sold


def flags(plan: MemoryPlan, card: int) -> list[str]:
    advice = plan.advice(card)
    assert advice[-1].verdict == "fits"
    return [step.flag for step in advice]


def test_a_change_that_helps_only_after_another_is_tried_again():
    """Smaller micro-batches do nothing until less is sampled at once, which cannot be less than a micro-batch."""
    plan = memory_plan("llama-2-7b", micro_batch=8)
    assert flags(plan, 16 * CARD) == ["--micro-batch 1", "--batch 1", "--optimizer paged_adamw_8bit"]
    assert memory_plan("llama-2-7b", micro_batch=1, batch=8, bits=8).verdict(16 * CARD) == "fits"


def test_eight_bits_with_reentrant_checkpoints_come_before_four():
    assert flags(memory_plan("llama-2-7b", "sft"), 10 * CARD) == ["--bits 8 --reentrant"]
    assert flags(memory_plan("llama-2-7b", "sft"), 11 * CARD) == ["--bits 8"]


def test_four_bits_do_not_need_eight():
    def judge(one: PlanSettings) -> tuple[int, str]:
        peak = {None: 2, 8: 3, 4: 1}[one.bits]  # 8 bits alone hold more than they save
        return peak, "fits" if peak == 1 else "does not fit"

    (only,) = advise(PlanSettings(method="sft"), judge)
    assert only.flag == "--bits 4"


def test_each_change_is_as_mild_as_still_fits():
    def judge(one: PlanSettings) -> tuple[int, str]:
        return one.batch, "fits" if one.batch <= 8 and one.bits == 4 else "does not fit"

    steps = advise(PlanSettings(batch=64, bits=8), judge)
    assert [step.flag for step in steps] == ["--batch 8", "--bits 4"]


@pytest.mark.parametrize(("method", "steps"), [("ppo", 8), ("raft", 16), ("sft", 16)])
def test_smaller_micro_batches_leave_a_step_its_size(method, steps):
    """On-policy a step is what is sampled at once, here 8 after the next change."""

    def judge(one: PlanSettings) -> tuple[int, str]:
        fits = one.micro_batch == 1 and (one.batch <= 8 or not one.samples)
        return one.micro_batch + one.batch, "fits" if fits else "does not fit"

    first = advise(PlanSettings(method=method, micro_batch=4), judge)[0]
    assert first.config == f"per_device_train_batch_size=1, gradient_accumulation_steps={steps}"


def alone(plan: MemoryPlan) -> list[MemoryPlan]:
    """With each change alone that shortens no answer, 8 bits with reentrant checkpoints among them."""
    changes = [
        {change.setting: value, **dict(change.also)}
        for change in CHANGES
        if change.setting != "completion_length"
        for value in change.values(plan.settings)
    ]
    return [memory_plan(plan.shape, **vars(plan.settings) | one) for one in changes]


GRID = {
    "micro_batch": (1, 8),
    "gradient_checkpointing": (True, False),
    "shared": (True, False),
    "lora": (None, 16),
    "completion_length": (512, 2048),
}


@pytest.mark.parametrize("method", ["ppo", "grpo", "raft", "sft", "reward"])
def test_what_one_change_can_do_the_advice_does(method):
    for values in itertools.product(*GRID.values()):
        plan = memory_plan("llama-2-7b", method, **dict(zip(GRID, values, strict=True)), value_model=method == "ppo")
        for card in (10 * CARD, 24 * CARD):
            advice = plan.advice(card)
            last = advice[-1] if advice else plan
            verdict = last.verdict if advice else plan.verdict(card)
            assert memory_plan("llama-2-7b", **vars(last.settings)).verdict(card) == verdict
            if any(one.verdict(card) == "fits" for one in alone(plan)):
                assert verdict == "fits" and last.settings.completion_length == plan.settings.completion_length
