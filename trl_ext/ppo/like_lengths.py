"""Rows of like length in a micro-batch, each cut to its own longest row, so that little of what is computed is padding.

TRL pads a batch of rollouts to its longest prompt and its longest completion, shuffles its rows and deals them out to
micro-batches. Which rows make up an optimizer step stays as it is; which of its micro-batches a row is in does not matter
to the step, since the loss is a sum over tokens, divided by their number in the whole batch of rollouts.

Shapes: `B` rollouts of a prompt of up to `P` tokens, padded at the left, and a completion of up to `T`, at the right.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from trl.trainer import grpo_trainer

from trl_ext.ppo.policy import whole_sequences
from trl_ext.trainer_kit.overrides import replaced

Batch = dict[str, Tensor]
PROMPT = (
    "prompt_ids",
    "prompt_mask",
)  # what of a rollout has the prompt's columns; what else has T has the completion's
TOKEN_MEANS = ("entropy", *(f"clip_ratio/{name}_mean" for name in ("low", "high", "region")))  # TRL's, per micro-batch
SHARE = "token_share"


def rows_alike(prompts: Tensor, completions: Tensor, *, size: int, group: int, order: Tensor) -> list[Tensor]:
    """The rows of each micro-batch: like lengths together, the longest first.

    Rows are ordered by their tokens, by their completion's or by their prompt's, whichever leaves the least padding; not at
    all where nothing is gained.

    Args:
        prompts, completions: Lengths in tokens, `(B,)`.
        size: Rows of a micro-batch, 1 or more.
        group: Rows that may change places, those of an optimizer step; `size`: none may.
        order: A permutation of the rows, `(B,)`, the first `group` of which are the first group, and so on.

    >>> lengths = torch.tensor([2, 9, 3, 8])
    >>> rows_alike(torch.ones(4, dtype=int), lengths, size=2, group=4, order=torch.arange(4))
    [tensor([1, 3]), tensor([2, 0])]
    """
    p, c = prompts.tolist(), completions.tolist()

    def padded(rows: list[int]) -> int:  # tokens that are computed
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        return sum(len(batch) * (max(p[i] for i in batch) + max(c[i] for i in batch)) for batch in batches)

    found = []
    for rows in order.split(group):
        keys = (lambda i: 0, lambda i: -p[i] - c[i], lambda i: (-c[i], -p[i]), lambda i: (-p[i], -c[i]))
        best = min((sorted(rows.tolist(), key=key) for key in keys), key=padded)
        found += torch.tensor(best).split(size)
    return found


def cut(rollout: Batch, rows: Tensor, *, multiple_of: int | None = None) -> Batch:
    """Some rows of a rollout, without the columns that are padding in all of them.

    Args:
        rollout: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`, and others of their columns, `(B, T)`; of
            one number per row, `(B,)`; or of one number.
        rows: Their indices.
        multiple_of: What the numbers of columns are to be multiples of; None: any.
    """
    taken = {name: tensor[rows.to(tensor.device)] if tensor.ndim else tensor for name, tensor in rollout.items()}
    own = taken["completion_mask"] + taken.get("tool_mask", 0)
    length = rollout["completion_mask"].size(1)
    first = _kept(taken["prompt_mask"].flip(1), multiple_of)  # counted from the right
    last = _kept(own, multiple_of, least=2)  # TRL's means take one column for a number per sequence
    for name, tensor in taken.items():
        if name in PROMPT:
            taken[name] = tensor[:, -first:].contiguous()
        elif tensor.ndim == 2 and tensor.size(1) == length:
            taken[name] = tensor[:, :last].contiguous()
    return taken


def _kept(mask: Tensor, multiple_of: int | None, *, least: int = 1) -> int:
    """Columns up to the last that is not padding in all rows, and `least` at least."""
    used = mask.any(0).nonzero()
    columns = max(least, int(used.max()) + 1 if len(used) else 0)
    return min(mask.size(1), math.ceil(columns / (multiple_of or 1)) * (multiple_of or 1))


def joined(rows: Iterable[Tensor], parts: Iterable[Tensor], *, like: Tensor) -> Tensor:
    """What was computed of some rows at a time, `(b, t)` each, in their places among all, `(B, T)`; 0 where it was cut."""
    parts = list(parts)
    whole = parts[0].new_zeros(like.shape)
    for places, part in zip(rows, parts, strict=True):
        whole[places.to(whole.device), : part.size(1)] = part
    return whole


def token_shares(tokens: Tensor, *, group: int) -> Tensor:
    """By what a micro-batch's mean over tokens is multiplied, so that the mean over a step's micro-batches is one over its
    tokens: how often it has the step's mean number of tokens.

    Args:
        tokens: Real tokens of each micro-batch, `(micro-batches,)`.
        group: Micro-batches of an optimizer step.

    >>> token_shares(torch.tensor([30.0, 10.0]), group=2)
    tensor([1.5000, 0.5000])
    """
    steps = tokens.view(-1, group)
    return (steps / steps.mean(1, keepdim=True).clamp(min=1 / group)).flatten()


class LikeLengths:
    """Mixin before `GRPOTrainer`: micro-batches of rows of like length, and passes over the whole rollout in the same ones.

    TRL's shuffle is drawn when completions have been sampled, so that the reference, the old log-probabilities and values
    and the loss read each row among the same columns: equal weights give equal bits. Each process orders its own rows.

    Rows are cut, but not ordered, where a term of the loss is a mean over the micro-batch: an entropy bonus, a quantile of
    entropies, and the load balance of a mixture of experts.
    """

    _order: Tensor | None = None

    def _generate(self, prompts):
        training = self.model.training
        outputs = super()._generate(prompts)
        self._order = torch.randperm(len(prompts)) if training else None
        return outputs

    def _prepare_inputs(self, inputs):
        with replaced(grpo_trainer, shuffle_sequence_dict=lambda rollout: rollout, split_tensor_dict=self._split):
            return super()._prepare_inputs(inputs)

    def _split(self, rollout: Batch, count: int) -> list[Batch]:
        """The micro-batches of a rollout."""
        batches = [self._cut(rollout, rows) for rows in self._rows_alike(rollout, len(rollout["prompt_ids"]) // count)]
        tokens = torch.stack([batch["tool_mask"].sum() for batch in batches]).float()
        shares = token_shares(self.accelerator.reduce(tokens, reduction="sum"), group=self._micro_batches_in_step())
        return [batch | {SHARE: share} for batch, share in zip(batches, shares, strict=True)]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **options
    ):
        read = super()._get_per_token_logps_and_entropies
        if batch_size is None:  # a micro-batch
            return read(model, input_ids, attention_mask, logits_to_keep, **options)
        rollout = _parts(input_ids, attention_mask, logits_to_keep)
        places = self._rows_alike(rollout, batch_size)
        passes = [
            read(model, **whole_sequences(part), logits_to_keep=part["completion_ids"].size(1), **options)
            for part in (self._cut(rollout, rows) for rows in places)
        ]
        like = rollout["completion_ids"]
        return tuple(
            None if parts[0] is None else joined(places, parts, like=like) for parts in zip(*passes, strict=True)
        )

    def _rows_alike(self, rollout: Batch, size: int) -> list[Tensor]:
        rows = len(rollout["prompt_mask"])
        order = self._order if self._order is not None and len(self._order) == rows else torch.arange(rows)
        lengths = (rollout[name].sum(1) for name in ("prompt_mask", "completion_mask"))
        group = size if self._order_matters() else size * self._micro_batches_in_step()
        return rows_alike(*lengths, size=size, group=group, order=order)

    def _cut(self, rollout: Batch, rows: Tensor) -> Batch:
        return cut(rollout, rows, multiple_of=self.pad_to_multiple_of)

    def _order_matters(self) -> bool:
        """Whether a term of the loss depends on which rows share a micro-batch."""
        return self.top_entropy_quantile < 1.0 or self._entropy_bonus_enabled or self.aux_loss_enabled

    def _micro_batches_in_step(self) -> int:
        """Neighbouring micro-batches of a rollout that are always in the same optimizer step."""
        return math.gcd(self.args.steps_per_generation, self.args.gradient_accumulation_steps)


def _parts(input_ids: Tensor, attention_mask: Tensor, length: int) -> Batch:
    """Prompts and completions of whole sequences, the last `length` tokens of which are the completions'."""
    parts = {}
    for name, tensor in {"ids": input_ids, "mask": attention_mask}.items():
        parts |= {f"prompt_{name}": tensor[:, :-length], f"completion_{name}": tensor[:, -length:]}
    return parts


def weigh(logged: dict[str, list[float]], names: Iterable[str], inputs: Batch) -> None:
    """Let a micro-batch's means over tokens, which were taken down last, count by its tokens."""
    if SHARE in inputs:
        for name in names:
            logged[name][-1] *= inputs[SHARE].item()
