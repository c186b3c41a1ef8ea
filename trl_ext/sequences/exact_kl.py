"""KL from a policy to a reference over completions, exactly over the vocabulary, and never with all logits in memory.

`B` rows, `L` columns, `N` completion tokens, each of which is read from the state before it, `V` tokens of the vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trl_ext.sequences.log_probs import reads_logits_off_states
from trl_ext.sequences.training_rows import IGNORED, TrainingRow, collate
from trl_ext.trainer_kit.passes import eval_mode, under_adapter
from trl_ext.trainer_kit.trunk import answering, logits_of

CHUNK_LOGITS = 2**22  # 16 MiB in fp32, of which some six are needed at one time


@torch.no_grad()
def completion_kl(
    policy: nn.Module, reference: nn.Module, rows: list[TrainingRow], *, batch_size: int
) -> list[tuple[float, float]]:
    """Of each completion y, its end token included, KL exactly given its states, and k1; both at temperature 1, in nats.

        kl = Σ_t Σ_v π(v|s_t) (log π(v|s_t) − log π_ref(v|s_t))        k1 = Σ_t log π(y_t|s_t) − log π_ref(y_t|s_t)

    Over completions that π has sampled untruncated both have the same mean, KL(π ‖ π_ref); k1 varies more, and can be
    negative. Models are in eval mode, which is left as it was found.

    Args:
        policy, reference: Causal LMs of one vocabulary.
        rows: What π has sampled.
        batch_size: Rows per pass; those of like length go together.

    Raises:
        ValueError: Where one of the models computes NaN.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found: dict[int, tuple[float, float]] = {}
    with eval_mode(policy), eval_mode(reference):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([rows[i] for i in chosen], pad_token_id=0)
            sums = (values.double().sum(1).tolist() for values in label_kl(policy, reference, batch))
            found |= zip(chosen, zip(*sums, strict=True), strict=True)
    bad = [i for i in range(len(rows)) if any(map(math.isnan, found[i]))]
    if bad:
        raise ValueError(
            f"completion_kl: KL of {len(bad)} of {len(rows)} completions is not a number, of number {bad[0]} first: the "
            "policy's or the reference's weights, or what they compute, are not finite. Look at both models."
        )
    return [found[i] for i in range(len(rows))]


def label_kl(policy: nn.Module, reference: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """KL over the vocabulary before each label, and k1 of the label, `(B, L − 1)` each on the CPU; 0 where it is ignored."""
    following = batch["labels"][:, 1:]
    places = following != IGNORED
    (states, logits), (others, other_logits) = (_states(model, batch, places) for model in (policy, reference))
    labels, device = following[places].to(states.device), states.device
    words = under_adapter(policy).config.get_text_config().vocab_size
    values = []
    for at in torch.arange(len(labels), device=device).split(max(CHUNK_LOGITS // words, 1)):
        ours = logits(states[at]).float().log_softmax(-1)
        theirs = other_logits(others[at.to(others.device)]).to(device).float().log_softmax(-1)
        values.append(torch.stack([exact_kl(ours, theirs), _of(ours, labels[at]) - _of(theirs, labels[at])]))
    result = torch.zeros(2, *places.shape)
    result[:, places] = torch.cat(values, dim=1).cpu()
    return result[0], result[1]


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_v p_v (log p_v − log q_v), `(…,)` of `(…, V)`; a token that p rules out counts 0.

    >>> exact_kl(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.25, 0.5]).log()).item()  # log 2
    0.6931471824645996
    """
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == -torch.inf, 0.0).sum(-1)


def _of(log_probs: Tensor, labels: Tensor) -> Tensor:
    return log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)


def _states(model: nn.Module, batch: dict[str, Tensor], places: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What the logits at the places are made from, `(N, …)`, and how: last hidden states, or, where that is not all, logits."""
    base, (ids, mask) = (
        under_adapter(model),
        (batch[name].to(model.device) for name in ("input_ids", "attention_mask")),
    )
    at = places.to(ids.device)
    if not reads_logits_off_states(model):
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1][at], lambda logits: logits
    with answering(base, model, lambda states: states[:, :-1][at.to(states.device)]):
        states = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return states, lambda chunk: logits_of(chunk.unsqueeze(0), base)[0]
