"""One combination of `plan_error.py`: the real trainers on random models, and what they need by phase."""

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path

import torch
import transformers
from torch import nn
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from examples.benchmarks.common.live_bytes import CudaPhasePeaks, LiveBytes, PhasePeaks, leave_peaks, unique_bytes
from examples.benchmarks.common.made_models import word_tokenizer
from examples.benchmarks.memory.plan_cases import VOCABULARY, Case
from examples.benchmarks.memory.plan_models import Roles, dataset, saved_model
from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    LearnedReward,
    PPOConfig,
    PPOTrainer,
    RAFTConfig,
    RAFTTrainer,
    ReSTConfig,
    ReSTTrainer,
    memory_plan,
)
from trl_ext.memory_planning.plan_phases import CONTEXT_LINE, SLACK_LINE
from trl_ext.memory_planning.plan_training import WEIGHT
from trl_ext.self_training.grow import Grower
from trl_ext.trainer_kit.offloading import tensor_slots


def compare(case: Case, device: str) -> list[dict]:
    """Rows of predicted and measured bytes: of each phase, and of the run, which is the largest of them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        plan = memory_plan(saved_model(case, Path(folder)), **case.settings, device=device)
        measured = bytes_by_phase(case, Path(folder), device)
    known = {name: tensor_bytes(name, phase.terms) for name, phase in plan.phases.items()}
    rows = [{"phase": name, "predicted": size} | measured[name] for name, size in known.items()]
    largest = {key: max(row[key] for row in rows) for key in ("predicted", "measured", "reserved")}
    return [row | {"case": case.name} for row in [*rows, {"phase": "run"} | largest]]


def tensor_bytes(phase: str, terms: dict[str, int]) -> int:
    """Without what no tensor accounts for; of loading, what is there in the end: how it came is not seen."""
    left_out = {CONTEXT_LINE, SLACK_LINE} | ({WEIGHT} if phase == "load" else set())
    return sum(size for name, size in terms.items() if name not in left_out)


# Trainers


def trainer_of(case: Case, roles: Roles, folder: Path):
    """The trainer of a method, and all models that it uses."""
    method, settings = case.settings["method"], case.settings
    options = {"train_dataset": dataset(case), "processing_class": word_tokenizer(VOCABULARY[case.size])}
    if method == "reward":
        return reward_trainer(case, roles, options, folder)
    if method == "sft":
        return SFTTrainer(
            args=SFTConfig(**common_options(case, folder), max_length=None), **roles.policy_options(), **options
        )
    reward = LearnedReward(roles.scorer(trains=False), options["processing_class"], batch_size=8)
    options |= {"reward_funcs": reward}
    if method in ("raft", "rest"):
        return self_trainer(case, roles, options, folder)
    sampled = {"max_completion_length": settings["completion_length"], "beta": 0.05 * settings.get("reference", True)}
    sampled |= {"generation_kwargs": {"min_new_tokens": settings["completion_length"]}, "num_iterations": 1}
    sampled |= {"num_generations": settings.get("num_generations", 1)} | common_options(case, folder)
    if method == "grpo":
        return GRPOTrainer(args=GRPOConfig(**sampled), **roles.policy_options(), **options)
    value = roles.scorer(trains=True) if settings.get("value_model", True) else None
    return PPOTrainer(args=PPOConfig(**sampled), value_model=value, **roles.policy_options(), **options)


def reward_trainer(case: Case, roles: Roles, options: dict, folder: Path):
    model, settings = roles.scorer(trains=True), common_options(case, folder) | {"max_length": None}
    if case.settings.get("imitation"):
        head = roles.base.model.get_output_embeddings() if roles.shared else roles.path
        return ImitationRewardTrainer(model, ImitationRewardConfig(**settings), imitation_head=head, **options)
    return RewardTrainer(model=model, args=RewardConfig(**settings), **options)


def self_trainer(case: Case, roles: Roles, options: dict, folder: Path):
    settings = common_options(case, folder) | {
        "num_stages": 2,
        "stage_batch_size": 16,
        "prompts_per_part": 16,
        "num_generations": case.settings["num_generations"],
        "max_completion_length": case.settings["completion_length"],
        "drop_truncated": False,
        "generation_batch_size": case.settings["batch"],
    }
    settings.pop("max_steps")
    is_raft = case.settings["method"] == "raft"
    cls, config = (RAFTTrainer, RAFTConfig) if is_raft else (ReSTTrainer, ReSTConfig)
    settings |= {} if is_raft else {"selection": "percentile", "thresholds": [0.5]}
    return cls(args=config(**settings), **roles.policy_options(), **options)


def common_options(case: Case, folder: Path) -> dict:
    """Options of every trainer: two optimiser steps."""
    settings = case.settings
    return {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": settings["micro_batch"],
        "gradient_accumulation_steps": settings["batch"] // settings["micro_batch"],
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": settings.get("reentrant", False)},
        "bf16": settings["dtype"] == "bfloat16" or settings.get("autocast", False),
        "use_cpu": not torch.cuda.is_available(),
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
    }


# Measuring


def bytes_by_phase(case: Case, folder: Path, device: str) -> dict[str, dict[str, int]]:
    """Bytes of each phase: of live tensors, or as CUDA's allocator counted them."""
    roles = Roles(case, str(folder / "model"), device)
    trainer = trainer_of(case, roles, folder)
    if hasattr(trainer, "memory"):
        leave_peaks(trainer)
    meter = CudaPhasePeaks() if device == "cuda" else PhasePeaks(LiveBytes())
    models = all_models(trainer, roles)
    loaded = loaded_bytes(models)
    with ExitStack() as stack:
        if device == "cpu":
            stack.enter_context(meter.live)
            meter.live.watch(all_tensors(models))
        for name, (owner, attribute) in seams(trainer).items():
            stack.enter_context(as_phase(owner, attribute, name, meter))
        with meter.phase("train"), redirect_stdout(io.StringIO()):
            trainer.train()
    peaks = {"load": loaded} | meter.peaks
    reserved = getattr(meter, "reserved", {})
    return {name: {"measured": size, "reserved": reserved.get(name, size)} for name, size in peaks.items()}


def seams(trainer) -> dict[str, tuple]:
    """Where phases other than training begin and end."""
    if isinstance(trainer, GRPOTrainer):
        return {"score": (trainer, "_generate_and_score_completions"), "generate": (trainer, "_generate")}
    return {"generate": (Grower, "_sample"), "score": (Grower, "_score")}


@contextmanager
def as_phase(owner, attribute: str, name: str, meter) -> Iterator[None]:
    original = getattr(owner, attribute)

    @wraps(original)
    def wrapped(*args, **kwargs):
        with meter.phase(name):
            return original(*args, **kwargs)

    setattr(owner, attribute, wrapped)
    try:
        yield
    finally:
        setattr(owner, attribute, original)


def all_models(trainer, roles: Roles) -> list[nn.Module]:
    """All models of a run, whoever keeps them."""
    found = [trainer.model, getattr(trainer, "ref_model", None), *roles.made]
    found += [trainer.critic.module] if hasattr(trainer, "critic") else []
    return [model for model in found if model is not None]


def all_tensors(models: list[nn.Module]) -> list[torch.Tensor]:
    """Also what bitsandbytes keeps beside its weights."""
    return [getattr(*slot) for model in models for slot in tensor_slots(model)]


def loaded_bytes(models: list[nn.Module]) -> int:
    """Of the bases, without adapters and new heads."""
    added = [
        parameter
        for model in models
        for name, parameter in model.named_parameters()
        if "lora_" in name or "score" in name
    ]
    return unique_bytes(all_tensors(models)) - unique_bytes(added)
