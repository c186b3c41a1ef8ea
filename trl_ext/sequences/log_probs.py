"""Log-probabilities of completions under the policy, at temperature 1, i.e. of the model that fine-tuning changes.

Logits over all positions and words are 2 to 5 times their size in memory on the way to them, so they are never whole.
"""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy, pad
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from trl_ext.sequences.training_rows import IGNORED, TrainingRow, collate
from trl_ext.trainer_kit.passes import eval_mode, under_adapter
from trl_ext.trainer_kit.trunk import answering, logits_of

CHUNK_LOGITS = 2**23  # 32 MiB in fp32, of which some four are needed at one time
_shown: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def label_log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """log π of each label, `(B, L)`; position t is read where the token t − 1 stands, 0 where the label is ignored.

    The trunk runs once. Logits are made by the model's own `forward` from the states before labels, chunk by chunk,
    and made again in the backward pass, unless the model's logits need more than its last hidden states, or FSDP2 cuts it.

    Args:
        model: A causal LM, with or without an adapter, or DDP around it.
        inputs: `input_ids`, `attention_mask` and `labels`, `(B, L)` each, padded on the right.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    read = _from_states if reads_logits_off_states(inner) else _from_whole_logits
    return read(model, inputs)


def in_chunks(read: Callable[[Tensor, Tensor], Tensor], states: Tensor, labels: Tensor, *, rows: int) -> Tensor:
    """`read(states, labels)` of one chunk after the other, so that the logits of few states are in memory at a time.

    Args:
        read: Makes of n states and labels one number each, `(n,)`; n is 0 where there is no label at all.
        states, labels: `(N, H)` and `(N,)`, each label beside the state that it is read from.
        rows: States of a chunk; one where it is below.

    Returns:
        `(N,)`.
    """
    rows = max(rows, 1)
    return torch.cat([read(*chunk) for chunk in zip(states.split(rows), labels.split(rows), strict=True)])


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


def reads_logits_off_states(model: nn.Module) -> bool:
    """Whether a model's logits are those of its trunk's states alone, wherever they stand; tried once on two short rows.

    Not of one that FSDP2 cuts: it counts on each part's running once.
    """
    if isinstance(model, FSDPModule):
        return False
    if model not in _shown:
        _shown[model] = isinstance(model, PreTrainedModel | PeftModel) and _shows_it(model)
    return _shown[model]


@torch.no_grad()
def _shows_it(model: PreTrainedModel | PeftModel) -> bool:
    words = under_adapter(model).config.get_text_config().vocab_size
    ids = torch.arange(16, device=model.device).view(2, 8) % words
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with eval_mode(model):
        whole = _from_whole_logits(model, inputs)[:, 1:]
        try:
            ours = _from_states(model, inputs)[:, 1:]
        except (RuntimeError, AttributeError, TypeError, LookupError):  # its forward is built in another way
            ours = torch.full_like(whole, torch.nan)
    torch.clear_autocast_cache()  # in which torch 2.9 would later find weights that were cast without gradient
    return bool((ours - whole).norm() < 0.05 * (whole - whole.mean()).norm())  # far above what rounding does


def _from_whole_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    logits = _outputs(model, inputs).logits
    labels = inputs["labels"][:, 1:]
    nll = cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return pad(-nll, (1, 0))


def _from_states(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    base = under_adapter(inner)
    with answering(base, inner, lambda states: _log_probs(states, inputs["labels"], base)):
        return _outputs(model, inputs).logits


def _outputs(model: nn.Module, inputs: dict[str, Tensor]):
    return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)


def _log_probs(states: Tensor, labels: Tensor, model: PreTrainedModel) -> Tensor:
    """Those of `labels`, from the states `(B, L, H)`; without any label there is one chunk without rows, of gradient 0."""
    following = pad(labels[:, 1:], (0, 1), value=IGNORED).flatten().to(states.device)
    places = (following != IGNORED).nonzero().squeeze(1)
    read = partial(checkpoint, partial(_chunk, model=model), use_reentrant=False)
    words = model.config.get_text_config().vocab_size
    found = in_chunks(read, states.flatten(0, 1)[places], following[places], rows=CHUNK_LOGITS // words)
    log_probs = states.new_zeros(labels.numel(), dtype=torch.float32).index_copy(0, places, found)
    return pad(log_probs.view(labels.shape)[:, :-1], (1, 0)).to(labels.device)


def _chunk(states: Tensor, labels: Tensor, model: PreTrainedModel) -> Tensor:
    logits = logits_of(states.unsqueeze(0), model)[0].float()
    return -cross_entropy(logits, labels.to(logits.device), ignore_index=IGNORED, reduction="none").to(labels.device)
