"""What is asked of a row of `ppo_7b_24gb.py`: sizes, data, and what the memory plan says of it."""

import random
from dataclasses import dataclass
from functools import cached_property

from datasets import Dataset

from examples.benchmarks.common.completion_lengths import Lengths
from examples.benchmarks.common.made_models import config_of, random_text
from trl_ext.memory_planning.memory_terms import base_bytes
from trl_ext.memory_planning.model_shapes import shape_of
from trl_ext.memory_planning.plan_phases import CONTEXT_LINE, SLACK_LINE
from trl_ext.memory_planning.planning import MemoryPlan, memory_plan

RANK = 16
BETA = 0.05


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked of a row.

    Args:
        row: Its name.
        shape, bits, device, threshold: Of the models.
        batch: Completions (pairs, of a reward model) per step.
        micro_batch: Sequences per pass; None: as the plan says.
        prompt_length, completion_length: In tokens; every prompt has so many, completions at most.
        lengths: Of completions.
        samples: K of RAFT, GRPO and RLOO.
        epochs: Over each batch of completions, on-policy.
        steps: Batches of completions; of RAFT, stages.
        limit: Bytes that the plan has to stay below.
        seed: Of weights, prompts and lengths.
    """

    row: str
    shape: str
    bits: int
    device: str
    threshold: float
    batch: int
    micro_batch: int | None
    prompt_length: int
    completion_length: int
    lengths: Lengths
    samples: int
    epochs: int
    steps: int
    limit: int
    seed: int

    @property
    def window(self) -> int:
        return self.prompt_length + self.completion_length + 2

    @property
    def model_options(self) -> dict:
        return {"bits": self.bits, "device": self.device, "window": self.window, "threshold": self.threshold}

    @property
    def prompts_per_step(self) -> int:
        """Prompts, or of a reward model pairs."""
        return self.batch // self.samples if self.row in ("grpo", "rloo", "trl-grpo") else self.batch

    @cached_property
    def plan(self) -> MemoryPlan:
        """What memory it needs, in the micro-batches that it is given or that the plan has room for."""
        kind = {"separate": "ppo", "trl-reward": "reward"}.get(self.row, self.row.removeprefix("trl-"))
        plan = memory_plan(
            config_of(self.shape, window=self.window),
            "grpo" if kind == "rloo" else kind,
            bits=self.bits,
            dtype="float32" if self.device == "cpu" else "bfloat16",
            lora=RANK,
            batch=self.batch,
            micro_batch=self.micro_batch or self.batch,
            prompt_length=self.prompt_length,
            completion_length=self.completion_length,
            reentrant=self.bits == 8,  # or 8-bit layers hold their inputs
            num_generations=1 if kind == "ppo" else self.samples,
            shared=self.row != "separate" and not self.row.startswith("trl-"),
            value_model=True,
            device=self.device,
        )
        return plan if self.micro_batch else adapted(plan, self.limit - self.beside_plan)

    @property
    def beside_plan(self) -> int:
        """Bytes of the reference's own base, for which a plan with adapters has no name."""
        if self.row != "separate":
            return 0
        shape = shape_of(config_of(self.shape, window=self.window))
        return base_bytes(shape, bits=self.bits, width=4 if self.device == "cpu" else 2)

    # What is read

    def prompts(self) -> Dataset:
        source = random.Random(self.seed)
        count = self.steps * self.batch
        return Dataset.from_dict({"prompt": [self._text(source, self.prompt_length) for _ in range(count)]})

    def pairs(self) -> Dataset:
        source = random.Random(self.seed)
        rows = [
            {"prompt": self._text(source, self.prompt_length)}
            | {side: self._text(source, max(self.lengths.draw(source) - 1, 1)) for side in ("chosen", "rejected")}
            for _ in range(self.steps * self.batch)
        ]
        return Dataset.from_list(rows)

    def _text(self, source: random.Random, tokens: int) -> str:
        return random_text(source, tokens=tokens, vocab_size=config_of(self.shape, window=self.window).vocab_size)

    # What trainers are told

    def of_any_trainer(self, output_dir: str) -> dict:
        settings = self.plan.settings
        return {
            "output_dir": output_dir,
            "bf16": self.device != "cpu",
            "use_cpu": self.device == "cpu",
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": settings.reentrant},
            "per_device_train_batch_size": settings.micro_batch,
            "gradient_accumulation_steps": settings.batch // settings.micro_batch,
            "optim": {"adamw": "adamw_torch"}.get(settings.optimizer, settings.optimizer),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": self.seed,
        }

    def on_policy(self, output_dir: str, **others) -> dict:
        return (
            self.of_any_trainer(output_dir)
            | {
                "max_completion_length": self.completion_length,
                "max_steps": self.steps * self.epochs,
                "num_iterations": self.epochs,
                "beta": BETA,
            }
            | others
        )


def adapted(plan: MemoryPlan, limit: int) -> MemoryPlan:
    """The fastest way to do the same work within the limit, by the plan; if there is none, the one that needs least.

    First micro-batches are halved, then batches of the reward model, and at last the optimiser's state is paged.
    """
    settings = plan.settings
    ways = [{"micro_batch": size} for size in halves(settings.batch)]
    least = ways[-1]
    ways += [least | {"reward_batch": size} for size in halves(settings.reward_batch)]
    ways.append(ways[-1] | {"optimizer": "paged_adamw_8bit"})
    plans = [memory_plan(plan.shape, **vars(settings) | way) for way in ways]
    return next((one for one in plans if one.verdict(limit) == "fits"), min(plans, key=lambda one: one.peak))


def halves(number: int) -> list[int]:
    """A number and its divisors by halving.

    >>> halves(12)
    [12, 6, 3]
    """
    return [number, *halves(number // 2)] if number % 2 == 0 else [number]


def planned(work: Work) -> dict:
    """Bytes that the plan predicts: of each phase what torch allocates, of the whole with context and slack."""
    aside = work.beside_plan
    phases = {
        name: aside + sum(size for term, size in phase.terms.items() if term not in (CONTEXT_LINE, SLACK_LINE))
        for name, phase in work.plan.phases.items()
    }
    settings = work.plan.settings
    return {
        "plan": phases,
        "plan_peak": work.plan.peak + aside,
        "micro_batch": settings.micro_batch,
        "reward_batch": settings.reward_batch,
        "optimizer": settings.optimizer,
    }
