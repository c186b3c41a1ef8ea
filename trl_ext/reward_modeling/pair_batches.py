"""How a batch of soft labels, or of ranked lists, changes what TRL's loss says of it."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from trl_ext.reward_modeling.collation import LIST_OF
from trl_ext.reward_modeling.pair_labels import PROBABILITY
from trl_ext.reward_modeling.pair_loss import (
    label_agreement,
    list_weights,
    ranked_pairs,
    soft_label_term,
    weighting_term,
)
from trl_ext.reward_modeling.ranked_lists import RANKS
from trl_ext.sequences.preference_rows import PROMPT_TOKENS

Measures = dict[str, tuple[Tensor, Tensor]]  # by TRL's name of a metric: a sum, and over how many


class PlainPairs:
    """All is TRL's."""

    def read_by(self, model: Callable) -> Callable:
        """What TRL's loss calls in the model's place."""
        return model

    def rows(self, rewards: Tensor) -> int:
        """Of the data set, in this batch."""
        return len(rewards) // 2

    def added(self, rewards: Tensor, margin: Tensor | float, centering: float | None) -> Tensor | None:
        """What is added to TRL's loss, a scalar, of the rewards of P chosen and P rejected completions."""
        return None

    def measures(self, rewards: Tensor, own: int | None) -> Measures:
        """What takes the place of TRL's metrics, of this process's first `own` rows; None: of all, as TRL counts them."""
        if own is None:
            return {}
        chosen, rejected = (half[:own] for half in rewards.chunk(2))
        pairs = rewards.new_tensor(own)
        return {
            "accuracy": ((chosen > rejected).sum(), pairs),
            "margin": ((chosen - rejected).sum(), pairs),
            "mean_reward": (chosen.sum() + rejected.sum(), 2 * pairs),
        }

    def sides(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sequences that were compared, P chosen and P rejected ones, in the order of their rewards."""
        return batch


class SoftPairs(PlainPairs):
    """Pairs that say how likely it is that the chosen completion is the better."""

    def __init__(self, probability: Tensor):
        self.probability = probability

    def added(self, rewards, margin, centering):
        chosen, rejected = rewards.chunk(2)
        return soft_label_term(chosen - rejected - margin, self.probability).mean()

    def measures(self, rewards, own):
        chosen, rejected = (half[:own] for half in rewards.chunk(2))
        agreement = label_agreement(chosen - rejected, self.probability[:own])
        return super().measures(rewards, own) | {"accuracy": agreement}


class RankedLists(PlainPairs):
    """All pairs of lists, of which each completion is read once.

    TRL gathers the rewards of pairs over processes, which must have equally many: P is that of the process with the most,
    the others repeat some of theirs, with weights that take it back.

    Args:
        list_of, ranks: Of N completions, `(N,)` each.
        accelerator: The trainer's.
    """

    def __init__(self, list_of: Tensor, ranks: Tensor, accelerator: Accelerator):
        better, worse = ranked_pairs(list_of, ranks)
        self.count = len(better)
        most = self.count
        if accelerator.num_processes > 1:
            most = int(accelerator.gather(list_of.new_tensor([self.count])).max())
        origin = torch.arange(most, device=list_of.device) % self.count
        self.better, self.worse, self.list_of = better[origin], worse[origin], list_of
        weights = list_weights(list_of[better])[origin]
        self.weights = weights * most / (self.count * torch.bincount(origin)[origin])
        self.scores = ranks.new_zeros(0)  # of the N completions, once they are read

    def read_by(self, model):
        def read(**inputs) -> SequenceClassifierOutputWithPast:
            outputs = model(**inputs)
            self.scores = outputs.logits.detach()
            outputs.logits = outputs.logits[torch.cat([self.better, self.worse])]
            return outputs

        return read

    def rows(self, rewards):
        return int(self.list_of.max()) + 1

    def added(self, rewards, margin, centering):
        chosen, rejected = rewards.chunk(2)
        return weighting_term(chosen, rejected, self.weights, centering).mean()

    def measures(self, rewards, own):
        counted = torch.ones_like(self.list_of, dtype=torch.bool) if own is None else self.list_of < own
        compared = counted[self.better[: self.count]]
        chosen, rejected = (half[: self.count][compared] for half in rewards.chunk(2))
        return {
            "accuracy": ((chosen > rejected).sum(), compared.sum()),
            "margin": ((chosen - rejected).sum(), compared.sum()),
            "mean_reward": (self.scores.flatten()[counted].sum(), counted.sum()),
        }

    def sides(self, batch):
        compared = torch.cat([self.better, self.worse])
        found = {name: batch[name][compared] for name in ("input_ids", "attention_mask")}
        if PROMPT_TOKENS in batch:
            found[PROMPT_TOKENS] = batch[PROMPT_TOKENS][batch[LIST_OF][self.better]]
        return found


def pairs_of(beside: dict[str, Tensor], accelerator: Accelerator) -> PlainPairs:
    """What the columns beside a batch's tokens make of it."""
    if LIST_OF in beside:
        return RankedLists(beside[LIST_OF], beside[RANKS], accelerator)
    return SoftPairs(beside[PROBABILITY]) if PROBABILITY in beside else PlainPairs()


def scores_in_float32(model: Callable) -> Callable:
    """A model whose scores come in 32 bits where an engine gives them in 16, so that no difference of two is rounded to those."""

    def read(**inputs) -> SequenceClassifierOutputWithPast:
        outputs = model(**inputs)
        outputs.logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))
        return outputs

    return read


def lists_alone(batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Each list of a batch, as a batch of its own."""
    of, several = batch[LIST_OF], len(batch[LIST_OF])
    for i in range(int(of.max()) + 1):
        yield {
            name: value[of == i] if len(value) == several else value[i : i + 1]
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }


def first_rows(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first pairs or lists of a batch, as a batch."""
    if LIST_OF in batch:
        of, several = batch[LIST_OF], len(batch[LIST_OF])
        kept = of < count
        return {name: value[kept] if len(value) == several else value[:count] for name, value in _tensors(batch)}
    pairs = len(batch["input_ids"]) // 2

    def of_both(value: Tensor) -> Tensor:
        return torch.cat([half[:count] for half in value.split(pairs)])

    return {name: of_both(value) if len(value) > pairs else value[:count] for name, value in _tensors(batch)}


def _tensors(batch: dict) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in batch.items() if isinstance(value, Tensor)]
