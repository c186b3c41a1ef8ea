"""What the numbers of `TrainingArguments`, and those that TRL's configs have in common, may be: a part of each config's rules."""

import math
from typing import Any

from trl_ext.trainer_kit.option_rules import Rule

FINITE = Rule(fits=math.isfinite, expected="a finite number")
SEED = Rule(0, 2**32 - 1)  # NumPy's seeds
SHARE = Rule(0.0, fits=lambda share: share < 1, expected="a number in [0, 1)")


def pads(multiple: Any) -> bool:
    """Whether rows can be padded to a multiple of it, a number or its text; "auto" and "none" leave the number to TRL.

    >>> pads(8), pads("8"), pads("auto"), pads("0"), pads("all")
    (True, True, True, False, False)
    """
    if not isinstance(multiple, str):
        return multiple >= 1
    return multiple.lower() in ("auto", "none", "null") or (multiple.isdecimal() and int(multiple) >= 1)


TRAINING_RULES = {
    "learning_rate": Rule(0.0),
    "weight_decay": Rule(0.0),
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": Rule(0.0),
    "max_grad_norm": Rule(0.0),
    "warmup_steps": Rule(0.0),
    "warmup_ratio": Rule(0.0, 1.0),
    "neftune_noise_alpha": Rule(0.0),
    "label_smoothing_factor": Rule(0.0, 1.0),
    "num_train_epochs": Rule(above=0.0),
    "max_steps": Rule(-1),
    "gradient_accumulation_steps": Rule(1),
    "per_device_train_batch_size": Rule(1),
    "per_device_eval_batch_size": Rule(1),
    "eval_accumulation_steps": Rule(1),
    "pad_to_multiple_of": Rule(1, fits=pads),
    "logging_steps": Rule(above=0.0),
    "save_steps": Rule(above=0.0),
    "eval_steps": Rule(0.0),  # 0: every `logging_steps`
    "eval_delay": Rule(0.0),
    "dataloader_num_workers": Rule(0),
    "seed": SEED,
    "data_seed": SEED,
    "fsdp": Rule(
        typed=False,  # transformers' own annotation is text, which it makes True of
        fits=lambda asked: isinstance(asked, bool | str | list | None),
        expected="True, or None",
    ),
    "router_aux_loss_coef": Rule(0.0),
    "reward_weights": Rule(
        fits=lambda weights: all(map(math.isfinite, weights)), expected="finite numbers, one per reward function"
    ),
}
