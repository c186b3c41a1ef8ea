"""What trainers pass on to TRL's by name, so that a type checker knows it: `**others: Unpack[SFTArguments]`."""

from collections.abc import Callable
from typing import Any, TypedDict

from datasets import Dataset, IterableDataset
from peft import PeftConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase, TrainerCallback


class TrainerArguments(TypedDict, total=False):
    """Of every trainer of TRL."""

    processing_class: PreTrainedTokenizerBase | None
    callbacks: list[TrainerCallback] | None
    optimizers: tuple[Optimizer | None, LRScheduler | None]
    quantization_config: BitsAndBytesConfig | None
    peft_config: PeftConfig | None


class GRPOArguments(TrainerArguments, total=False):
    """Of `GRPOTrainer`; its tools and environments are not supported."""

    eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None
    rollout_func: Callable[..., dict[str, Any]] | None


class SFTArguments(TrainerArguments, total=False):
    """Of `SFTTrainer`; rows are made from samples, and the loss is the method's."""

    optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None
    preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None
