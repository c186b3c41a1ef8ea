"""Log-probabilities of completions under the policy, at temperature 1, i.e. of the model that fine-tuning changes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trl_ext.sequences.training_rows import IGNORED, TrainingRow, collate
from trl_ext.trainer_kit.passes import eval_mode


def label_log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """log π of each label, `(B, L)`; position t is read where the token t − 1 stands, 0 where the label is ignored.

    Args:
        model: A causal LM.
        inputs: `input_ids`, `attention_mask` and `labels`, `(B, L)` each, padded on the right.
    """
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    labels = inputs["labels"][:, 1:]
    nll = cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return nn.functional.pad(-nll, (1, 0))


@torch.no_grad()
def completion_log_probs(
    model: nn.Module, rows: list[TrainingRow], *, pad_token_id: int, batch_size: int, device: torch.device
) -> list[list[float]]:
    """log π of each completion token of each row, in eval mode, which is left as it was found.

    Args:
        model: A causal LM.
        rows: What would be trained on.
        pad_token_id, batch_size, device: Of the passes; rows of like length go together.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    results: list[list[float]] = [[] for _ in rows]
    with eval_mode(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            inputs = collate([rows[i] for i in chosen], pad_token_id=pad_token_id)
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            log_probs = label_log_probs(model, inputs).cpu()
            own = (inputs["labels"] != IGNORED).cpu()
            for i, row, mask in zip(chosen, log_probs, own, strict=True):
                results[i] = row[mask].tolist()
    return results
