"""Will it fit? The peak of memory of a run, phase by phase, before it begins and without weights."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl_ext.memory_planning.card_speeds import Card, card_named
from trl_ext.memory_planning.model_shapes import ModelShape, shape_of
from trl_ext.memory_planning.plan_advice import Advice, advise
from trl_ext.memory_planning.plan_judges import planned_judges
from trl_ext.memory_planning.plan_phases import Phase, phases
from trl_ext.memory_planning.plan_roles import paged_bytes
from trl_ext.memory_planning.plan_settings import PlanSettings
from trl_ext.memory_planning.plan_sharding import read_first
from trl_ext.memory_planning.plan_vllm import waiting
from trl_ext.memory_planning.time_bounds import TimeBound, time_bound
from trl_ext.trainer_kit.engine_words import CUT_HEAD

GIB = 2**30
CAVEAT = "not verified on a GPU"


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs, by arithmetic from the model's shape. Not verified on a GPU.

    Args:
        shape: Of the model.
        settings: Of the run.
        phases: By name, in the order of a run: load, generate and score where completions are sampled, train.
    """

    shape: ModelShape
    settings: PlanSettings
    phases: dict[str, Phase]

    @property
    def peak_phase(self) -> str:
        """Name of the phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name].bytes)

    @property
    def peak(self) -> int:
        """Bytes that the largest phase needs, with context and slack."""
        return self.phases[self.peak_phase].bytes

    @property
    def paged(self) -> int:
        """Bytes of optimiser state in the computer's memory, which are not in the peak."""
        return paged_bytes(self.shape, self.settings)

    @property
    def waiting(self) -> dict[str, int]:
        """Bytes that wait in the computer's memory when vLLM's turn on the card begins, by whose they are; not in the peak."""
        return waiting(self.shape, self.settings)

    @property
    def read_first(self) -> int:
        """Bytes that each of several processes reads into the computer's memory before they are cut; not in the peak."""
        return read_first(self.shape, self.settings)

    @property
    def keeps_bits(self) -> bool:
        """Whether it was asked for fewer bits than bitsandbytes can give it."""
        return self.shape.refuses_bits and self.settings.bits is not None

    @property
    def assumed(self) -> list[str]:
        """What is guessed, a sentence each: of layers of which no kind is known, adapters, and known errors."""
        experts = any(layer.experts and layer.experts.params for layer in self.shape.kinds) and self.settings.bits
        others = {
            "every linear layer has an adapter, which PEFT refuses": self.shape.refuses_adapter and self.settings.lora,
            "experts stay in 16 bits, as bitsandbytes leaves them": experts,
            "vLLM's share of the card is by arithmetic alone, not measured on a card": self.settings.generator
            == "vllm",
            "its layers stay in 16 bits, as bitsandbytes leaves those of a class of their own": self.keeps_bits,
            "FSDP2 by its code alone, two layers gathered at a time": self.settings.is_fsdp,
            "DeepSpeed by its code alone, of its sizes at most what its config allows": self.settings.is_zero,
            "what is trained is kept in fp32, as accelerate does under FSDP2 with bf16=True": self.settings.upcasts
            and self.settings.lora is None,
        }
        unknown = [judge.left_out for judge in self.settings.judges if judge.left_out]
        layers = unknown + [f"{what}: what its linear layers make is kept" for what in self.shape.assumed]
        return layers + [what for what, holds in others.items() if holds]

    def verdict(self, card_bytes: int) -> str:
        """Whether a card of so many bytes holds it: "fits", "does not fit", or "tight", where slack decides.

        fits:          peak + slack ≤ card
        does not fit:  peak − slack > card
        """
        _check_card(card_bytes)
        slack = self.phases[self.peak_phase].slack
        if self.peak + slack <= card_bytes:
            return "fits"
        return "does not fit" if self.peak - slack > card_bytes else "tight"

    def advice(self, card_bytes: int) -> list[Advice]:
        """The cheapest changes, each on top of those before, until it fits; none if it does.

        The last one's `verdict` tells whether all together suffice.
        """

        def judge(settings: PlanSettings) -> tuple[int, str]:
            plan = _plan(self.shape, settings)
            return plan.peak, plan.verdict(card_bytes)

        return advise(self.settings, judge)

    def time_bound(self, card: str | Card, **length: int) -> TimeBound:
        """What the run takes at least on a card, by phase; a bound by its published speed, not a forecast.

        Args:
            card: By name, e.g. "RTX 4090", or a `Card` of your own.
            length: `prompts` of the whole run (of a reward model pairs), or `max_steps`; neither: of one batch. `epochs`:
                how often each completion is trained on, if not as often as the method's config has it.
        """
        if self.settings.shard:
            raise ValueError(
                f"time_bound(shard={self.settings.shard!r}): how long cards exchange what is cut is not known. Plan one card."
            )
        card = card if isinstance(card, Card) else card_named(card, call="time_bound")
        return time_bound(self.shape, _counted(self.shape, self.settings), card, **length)

    def line(self) -> str:
        """In one line, for a log."""
        terms = sorted(self.phases[self.peak_phase].terms.items(), key=lambda term: -term[1])
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in terms if size >= 0.05 * GIB)
        whole = f"{self.peak / GIB:.1f} GiB" if self.peak >= 0.1 * GIB else f"{self.peak / 2**20:.1f} MiB"
        return f"memory plan ({CAVEAT}): peak {whole} in {self.peak_phase}{parts and f'; {parts}'}"


def memory_plan(
    model: str | os.PathLike | ModelShape | Any,
    method: str = "ppo",
    *,
    bits: int | None = None,
    dtype: str = "bfloat16",
    lora: int | None = 16,
    batch: int = 16,
    micro_batch: int = 1,
    prompt_length: int = 512,
    completion_length: int = 512,
    gradient_checkpointing: bool = True,
    reentrant: bool = False,
    value_model: bool = False,
    reward_models: int = 1,
    reward_batch: int = 8,
    num_generations: int | None = None,
    reference: bool = True,
    imitation: bool = False,
    autocast: bool = False,
    optimizer: str = "adamw",
    shared: bool | None = None,
    device: str = "cuda",
    generator: str = "transformers",
    served_bits: int | None = None,
    served_at_once: int | None = None,
    judges: Sequence[Any] = (),
    judge_bits: int | None = None,
    num_gpus: int = 1,
    shard: str | None = None,
    sync_each_batch: bool = False,
    reduce_bucket_size: int = 500_000_000,
    max_live_parameters: int = 1_000_000_000,
    imitation_head: bool = False,
    policy_passes: bool = False,
) -> MemoryPlan:
    """Predict what a run needs, per device. Nothing is loaded and nothing is measured.

    Args:
        model: A built-in shape (llama-2-7b, llama-2-13b, mistral-7b, llama-3.1-8b, llama-3.1-70b, qwen2.5-7b, qwen3-8b,
            gemma-2-9b), the path or hub id of any causal language model, a configuration, a loaded model, or a `ModelShape`.
        method: "ppo", "grpo", "raft", "rest", "reward" (training a reward model) or "sft".
        bits: 8 or 4 (NF4, double quantisation) for the blocks' linear layers of the frozen base; None or 16: as `dtype`.
        dtype: Of what is not quantised, and of activations unless with `autocast`.
        lora: Rank of the adapters, on all linear layers of the blocks, in fp32. None: all weights are trained.
        batch: Completions sampled at once, which is the batch of one optimiser step.
        micro_batch: Sequences per pass in training (`per_device_train_batch_size`); of a reward model, pairs.
        prompt_length, completion_length: The longest, in tokens.
        gradient_checkpointing: As in the trainer.
        reentrant: Whether with `gradient_checkpointing_kwargs={"use_reentrant": True}`.
        value_model: Whether PPO's critic is a model; False, as in the trainer: a head on the policy.
        reward_models: Learned ones, next to the policy.
        reward_batch: Completions per pass of a reward model (`LearnedReward(batch_size=…)`).
        num_generations: Completions per prompt. None: 1 for PPO, else 8.
        reference: Whether KL to a reference is charged (β > 0), for PPO and GRPO.
        imitation: Whether a reward model is trained with the imitation term (`ImitationRewardConfig`).
        autocast: Whether weights in fp32 are trained in 16 bits (`bf16=True` over a model loaded in fp32).
        optimizer: "adamw", "adamw_8bit" or "paged_adamw_8bit".
        shared: One base for all roles (`SharedBase`); False: each has its own. None: one, unless it is cut by `shard`.
        device: "cuda", or "cpu" for what its kernels do, without context and slack.
        generator: "transformers", or "vllm": a process beside the run, with which the policy takes turns on the card
            (`VLLMGenerator`), not measured on a card; of RAFT and ReST "endpoint" or "file": samples come from elsewhere.
        served_bits: As `bits`, of the base that vLLM serves.
        served_at_once: Of how many completions vLLM holds keys and values, `VLLMGenerator(kv_cache_memory_bytes=…)`; the
            others wait for their turn. None: of the whole batch.
        judges: Reward models and judges that are other models than the policy (`LikertReward("my-judge")`), each with a base
            of its own and as `model` is given; beside `reward_models`, which are of the policy's shape.
        judge_bits: As `bits`, of the judges.
        num_gpus: Cards that the run is on; sizes are each card's own.
        shard: What each of several cards holds: "ddp": all; "fsdp2", "zero2" or "zero3": its part, with accelerate's settings
            in examples/accelerate, in 16 bits with `bf16=True`. Not measured on cards.
        sync_each_batch: Whether gradients are cut after each micro-batch, not after a step's last
            (`accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}}`).
        reduce_bucket_size: Gradients that ZeRO exchanges at once, in numbers; DeepSpeed's default.
        max_live_parameters: Weights that ZeRO-3 keeps whole at most beyond a layer, in numbers: `stage3_max_live_parameters`
            and `stage3_max_reuse_distance`, DeepSpeed's default.
        imitation_head: Whether the imitation term reads a vocabulary head of its own (`imitation_head=…`).
        policy_passes: With `generator="endpoint"` or "file": whether the policy is passed all the same, for `beta`,
            `importance_clip` or held-out prompts.

    Raises:
        ValueError: For bad input, or what is no decoder of text.
    """
    own = ("model", "judges", "judge_bits")
    settings = PlanSettings(**{name: value for name, value in locals().items() if name not in (*own, "own")})
    planned = planned_judges(judges, bits=judge_bits, width=settings.width)
    return _plan(shape_of(model, call="memory_plan"), replace(settings, judges=planned))


def _plan(shape: ModelShape, settings: PlanSettings) -> MemoryPlan:
    if settings.cuts_weights and settings.imitates and shape.tied and not settings.imitation_head:
        raise ValueError(
            f"memory_plan(shard={settings.shard!r}, imitation=True): the vocabulary head of {shape.name} is its embedding, which "
            f"{CUT_HEAD}. Give imitation_head=True for one of its own, train without, or on one card."
        )
    return MemoryPlan(shape, settings, phases(shape, _counted(shape, settings)))


def _counted(shape: ModelShape, settings: PlanSettings) -> PlanSettings:
    """With the bits that bitsandbytes can give it."""
    return replace(settings, bits=None) if shape.refuses_bits else settings


def _check_card(card_bytes: int) -> None:
    if isinstance(card_bytes, bool) or not isinstance(card_bytes, int | float) or not card_bytes > 0:
        raise ValueError(
            f"MemoryPlan(card_bytes={card_bytes!r}): expected the card's memory in bytes. Give e.g. 24 * 2**30."
        )
