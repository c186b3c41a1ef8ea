"""One combination of `memory_plan_error.py`: the real trainers on random models, and what they need by phase."""

import io
import logging
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from memory_plan_cases import SIZES, VOCABULARY, Case
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from trl_ext import (
    LearnedReward,
    PPOConfig,
    PPOTrainer,
    RAFTConfig,
    RAFTTrainer,
    ReSTConfig,
    ReSTTrainer,
    SharedBase,
    memory_plan,
)
from trl_ext.low_memory.live_bytes import LiveBytes, PhasePeaks, unique_bytes
from trl_ext.low_memory.offloading import tensor_slots
from trl_ext.low_memory.plan_phases import CONTEXT_LINE, SLACK_LINE
from trl_ext.low_memory.plan_training import WEIGHT
from trl_ext.self_training.grower import Grower

PROMPTS = 32  # rows of each data set


def compare(case: Case, device: str) -> list[dict]:
    """Rows of predicted and measured bytes: of each phase, and of the run, which is the largest of them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        plan = memory_plan(saved_model(case, Path(folder)), **case.settings, device=device)
        measured = measure(case, Path(folder), device)
    known = {name: tensor_bytes(name, phase.terms) for name, phase in plan.phases.items()}
    rows = [{"phase": name, "predicted": size} | measured[name] for name, size in known.items()]
    largest = {key: max(row[key] for row in rows) for key in ("predicted", "measured", "reserved")}
    return [row | {"case": case.name} for row in [*rows, {"phase": "run"} | largest]]


def tensor_bytes(phase: str, terms: dict[str, int]) -> int:
    """Without what no tensor accounts for; of loading, what is there in the end: how it came is not seen."""
    left_out = {CONTEXT_LINE, SLACK_LINE} | ({WEIGHT} if phase == "load" else set())
    return sum(size for name, size in terms.items() if name not in left_out)


# Models and data


def saved_model(case: Case, folder: Path) -> str:
    """A random model, written to a folder."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(VOCABULARY[case.size])
    kind = LlamaConfig if case.size.startswith("llama") else Qwen2Config
    config = kind(
        **SIZES[case.size],
        vocab_size=VOCABULARY[case.size],
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.settings["dtype"]))
    model.save_pretrained(folder / "model")
    return str(folder / "model")


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token per word `w3`, so that lengths are counted by eye."""
    words = ["<pad>", "<end>", *(f"w{i}" for i in range(size - 2))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")


def texts(lengths: list[int], seed: int) -> list[str]:
    source = random.Random(seed)
    return [" ".join(f"w{source.randrange(400)}" for _ in range(length)) for length in lengths]


def prompts(case: Case) -> list[str]:
    """Of the longest length but for every fourth, which is padded."""
    longest = case.settings["prompt_length"]
    return texts([longest - 3 * (i % 4 == 3) for i in range(PROMPTS)], seed=0)


def dataset(case: Case) -> Dataset:
    """What the method reads; an end token is added to completions."""
    columns = {"prompt": prompts(case)}
    length = case.settings["completion_length"] - 1
    if case.settings["method"] == "sft":
        columns["completion"] = [" " + text for text in texts([length] * PROMPTS, seed=1)]
    if case.settings["method"] == "reward":
        columns["chosen"] = [" " + text for text in texts([length] * PROMPTS, seed=1)]
        columns["rejected"] = [" " + text for text in texts([length] * PROMPTS, seed=2)]
    return Dataset.from_dict(columns)


class Roles:
    """The models of a run, over one base or each with its own.

    Args:
        case: The run.
        path: Of the saved model.
        device: Where they are.
    """

    def __init__(self, case: Case, path: str, device: str):
        self.case, self.path, self.device = case, path, device
        self.rank, self.dtype = case.settings["lora"], getattr(torch, case.settings["dtype"])
        self.shared = case.settings.get("shared", True)
        self.made: list[nn.Module] = []
        if self.shared:
            tokenizer, bits = word_tokenizer(VOCABULARY[case.size]), case.settings.get("bits")
            self.base = SharedBase.from_pretrained(path, bits=bits, dtype=self.dtype, tokenizer=tokenizer)
            self.made.append(self.base.model)

    def policy(self) -> nn.Module:
        if self.shared:
            return self.base.policy(self.lora())
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=self.dtype).to(self.device)

    def scorer(self, *, trains: bool) -> nn.Module:
        """A reward or value model."""
        self.made.append(self._scorer(trains))
        self.made[-1].config._name_or_path = ""  # so that nobody looks there for a tokenizer
        return self.made[-1]

    def _scorer(self, trains: bool) -> nn.Module:
        if self.shared:
            return self.base.value_model(self.lora()) if trains else self.base.reward_model(self.lora()).module
        model = AutoModelForSequenceClassification.from_pretrained(self.path, num_labels=1, dtype=self.dtype)
        if self.rank:
            model = get_peft_model(model, self.lora("SEQ_CLS"))
        return model.to(self.device) if trains else model.to(self.device).requires_grad_(False)

    def lora(self, task: str = "CAUSAL_LM") -> LoraConfig:
        return LoraConfig(r=self.rank, target_modules="all-linear", task_type=task)

    def policy_options(self) -> dict:
        """The policy, with an adapter to be made by the trainer where it has none."""
        adapter = self.lora() if self.rank and not self.shared else None
        return {"model": self.policy(), "peft_config": adapter}


# Trainers


def trainer_of(case: Case, roles: Roles, folder: Path):
    """The trainer of a method, and all models that it uses."""
    method, settings = case.settings["method"], case.settings
    options = {"train_dataset": dataset(case), "processing_class": word_tokenizer(VOCABULARY[case.size])}
    if method == "reward":
        return reward_trainer(case, roles, options, folder)
    if method == "sft":
        return SFTTrainer(args=SFTConfig(**quiet(case, folder), max_length=None), **roles.policy_options(), **options)
    reward = LearnedReward(roles.scorer(trains=False), options["processing_class"], batch_size=8)
    options |= {"reward_funcs": reward}
    if method in ("raft", "rest"):
        return self_trainer(case, roles, options, folder)
    sampled = {"max_completion_length": settings["completion_length"], "beta": 0.05 * settings.get("reference", True)}
    sampled |= {"generation_kwargs": {"min_new_tokens": settings["completion_length"]}, "num_iterations": 1}
    sampled |= {"num_generations": settings.get("num_generations", 1)} | quiet(case, folder)
    if method == "grpo":
        return GRPOTrainer(args=GRPOConfig(**sampled), **roles.policy_options(), **options)
    value = roles.scorer(trains=True) if settings.get("value_model", True) else None
    return PPOTrainer(args=PPOConfig(**sampled), value_model=value, **roles.policy_options(), **options)


def reward_trainer(case: Case, roles: Roles, options: dict, folder: Path):
    model = roles.scorer(trains=True)
    return RewardTrainer(model=model, args=RewardConfig(**quiet(case, folder), max_length=None), **options)


def self_trainer(case: Case, roles: Roles, options: dict, folder: Path):
    settings = quiet(case, folder) | {
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


def quiet(case: Case, folder: Path) -> dict:
    """Options of every trainer: two optimiser steps."""
    settings = case.settings
    return {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": settings["micro_batch"],
        "gradient_accumulation_steps": settings["batch"] // settings["micro_batch"],
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": settings.get("reentrant", False)},
        "bf16": settings["dtype"] == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
    }


# Measuring


def measure(case: Case, folder: Path, device: str) -> dict[str, dict[str, int]]:
    """Bytes of each phase: of live tensors, or as CUDA's allocator counted them."""
    roles = Roles(case, str(folder / "model"), device)
    trainer = trainer_of(case, roles, folder)
    meter = CudaPeaks() if device == "cuda" else PhasePeaks(LiveBytes())
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


class CudaPeaks:
    """`PhasePeaks` by CUDA's allocator: `peaks` allocated, `reserved` reserved."""

    def __init__(self):
        self.peaks, self.reserved, self._names = {}, {}, []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._settle()
        self._names.append(name)
        try:
            yield
        finally:
            self._settle()
            self._names.pop()

    def _settle(self) -> None:
        if self._names:
            name = self._names[-1]
            self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated())
            self.reserved[name] = max(self.reserved.get(name, 0), torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()


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
