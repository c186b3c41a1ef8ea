"""What PPO needs of the policy that TRL does not hand over: its sequences, its dropout, its start."""

import copy
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer import grpo_trainer
from trl.trainer.utils import disable_dropout_in_model

from trl_ext.trainer_kit.overrides import replaced


def whole_sequences(rollout: dict) -> dict[str, Tensor]:
    """Prompt and completion together: `input_ids` and `attention_mask`, `(B, P + T)`."""
    return {
        "input_ids": torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1),
        "attention_mask": torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1),
    }


def turn_off_dropout(model: nn.Module) -> None:
    """All dropout of a model: that of modules, as TRL does, and that which modules hold as a number.

    Llama's attention and all of OPT call dropout as a function, which TRL's `disable_dropout` does not find.
    """
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def reference_from(model: str | PreTrainedModel | PeftModel, *, has_adapter: bool) -> AbstractContextManager:
    """While GRPOTrainer is built, let its reference be a copy of the policy object as it is.

    TRL loads the reference from the checkpoint that the object once came from; it may have been trained since, or
    never have had one. A name needs no copy, and an adapter's reference is made by TRL from the adapter itself.
    """
    if isinstance(model, str) or has_adapter:
        return nullcontext()
    return replaced(
        grpo_trainer, create_model_from_path=lambda *args, **kwargs: copy.deepcopy(model).requires_grad_(False)
    )


@contextmanager
def without_reference(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside the block, save a model without TRL's frozen copy of its adapter, `ref`.

    It is not the user's, and beside it transformers would find the copy, and not the adapter, when it resumes.
    """
    if not isinstance(model, PeftModel) or "ref" not in model.peft_config:
        yield
        return
    own = [name for name in model.peft_config if name != "ref"]
    model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=own)
    try:
        yield
    finally:
        del model.save_pretrained  # the class's own again
