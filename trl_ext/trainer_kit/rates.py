"""Rates and decay of an optimizer, which a checkpoint brings with it: how today's take their place."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments

from trl_ext.trainer_kit.run_changes import LONGER

# What only the optimizer and its schedule read.
RATES = {"learning_rate", "critic_learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}
RATES |= {
    "improve_lr_factor",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_grad_norm",
    "optimizer",
    *LONGER,
}


def is_stepwise(scheduler: LRScheduler | None, args: TrainingArguments) -> bool:
    """Whether the learning rate is a function of the step alone, so that another may take its place."""
    if scheduler is not None:
        return isinstance(scheduler, LambdaLR)
    return args.lr_scheduler_type not in ("reduce_lr_on_plateau", "greedy")


@contextmanager
def own_rates(optimizer: Optimizer, scheduler: LRScheduler) -> Iterator[None]:
    """Let what is read inside the block be moments and the step alone: rates, decay and so on stay as they were built."""
    own = [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]
    rates = list(scheduler.base_lrs)
    yield
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
    scheduler.base_lrs = rates
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler._last_lr = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
    for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate
