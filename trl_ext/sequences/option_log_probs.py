"""How likely a causal LM answers with one of a few options: read in one pass per context, nothing is sampled.

`N` contexts, `K` options of each.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from trl_ext.sequences.causal_lms import Model
from trl_ext.sequences.common_prefix import LEAST_SAVED, common_length
from trl_ext.sequences.log_probs import reads_logits_off_states
from trl_ext.sequences.padding import right_padded
from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import prompt_ids, whole_ids
from trl_ext.trainer_kit.passes import behind, can_share, eval_mode, under_adapter
from trl_ext.trainer_kit.trunk import answering, logits_of

CHUNK_LOGITS = 2**23  # 32 MiB in fp32
Tokens = tuple[int, ...]
Node = tuple[int, Tokens]  # number of a choice, and what stands behind its context


class Choice(NamedTuple):
    """A context and the options behind it, by their tokens."""

    context: list[int]
    options: list[Tokens]


def option_log_probs(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Text],
    options: Sequence[str],
    *,
    batch_size: int = 16,
) -> Tensor:
    """log p(option | context), `(N, K)`, in float64 on the CPU; exp and Σ over K is the mass on the options.

    Of an option of several tokens it is the sum over them. Where an option's tokens begin another's, as those of "1" do
    "10", its is the probability that it is not the longer one: p(1) − p(10), so that all sum to at most 1.

    Args:
        model: In eval mode while it reads, left as it was found.
        tokenizer: Its tokenizer.
        contexts: Text, which an option follows as it stands (mind the blank: " A"), or messages, whose next turn it begins.
        options: That the tokenizer tells apart.
        batch_size: Sequences of a pass; those of like length go together, and what all begin with is read once.

    Raises:
        ValueError: For options that are the same tokens, none, or behind nothing at all.
    """
    choices = [option_ids(context, options, tokenizer) for context in contexts]
    if not choices:
        return torch.empty(0, len(options), dtype=torch.float64)
    return choice_log_probs(model, choices, batch_size=batch_size)


def option_ids(context: Text, options: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Choice:
    """Context and options as the tokenizer reads them together.

    A token that merges the context's end with an option's beginning is the options': of all, so that they can be compared.
    What a chat template writes before each answer, as a blank or empty thoughts, is the context's.
    """
    wholes = [
        whole_ids(
            context,
            option if isinstance(context, str) else [{"role": "assistant", "content": option}],
            tokenizer,
            ended=False,
        )
        for option in options
    ]
    if isinstance(context, str):
        common = common_length([prompt_ids(context, tokenizer), *wholes])
    else:
        common = min(common_length(wholes), min(map(len, wholes)) - 1)
    choice = Choice(wholes[0][:common], [tuple(whole[common:]) for whole in wholes])
    _check_told_apart(choice, options)
    return choice


def choice_log_probs(model: Model, choices: Sequence[Choice], *, batch_size: int = 16) -> Tensor:
    """`option_log_probs` of tokens; all choices have equally many options."""
    found = dict(read_choices(model, choices, batch_size=batch_size))
    return torch.stack([found[number] for number in range(len(choices))])


def read_choices(model: Model, choices: Sequence[Choice], *, batch_size: int = 16) -> Iterator[tuple[int, Tensor]]:
    """Of each choice its number and log p of its options, `(K,)`, as soon as they are read."""
    follow = {
        (i, before): next_ for i, each in enumerate(choices) for before, next_ in followers(each.options).items()
    }
    rows = [row for i, choice in enumerate(choices) for row in _rows(i, choice, follow)]
    rows.sort(key=lambda row: len(row.ids))
    found: dict[Node, dict[int, float]] = {}
    left = Counter(number for number, _ in follow)  # places that are not read yet
    with torch.no_grad(), eval_mode(model):
        beginning = _Beginning(model, [choice.context for choice in choices], len(rows))
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        nodes = [node for row in batch for _, node in row.nodes]
        wanted, _ = right_padded([follow[node] for node in nodes], 0)
        with torch.no_grad(), eval_mode(model):
            values = _log_probs(*beginning.read(batch), wanted).tolist()
        found |= {node: dict(zip(follow[node], own, strict=False)) for node, own in zip(nodes, values, strict=True)}
        left.subtract(numbers := Counter(number for number, _ in nodes))
        yield from ((i, _of_options(choices[i].options, i, found)) for i in numbers if not left[i])


def followers(options: Sequence[Tokens]) -> dict[Tokens, list[int]]:
    """Where options part: after each beginning of one, the tokens by which it, or another, goes on.

    >>> followers([(1,), (2,), (1, 0)])
    {(): [1, 2], (1,): [0]}
    """
    found: dict[Tokens, list[int]] = {}
    for option in options:
        for n, token in enumerate(option):
            after = found.setdefault(option[:n], [])
            after.extend([token] * (token not in after))
    return found


def without_longer(log_probs: Tensor, options: Sequence[Tokens]) -> Tensor:
    """log p of each option and none that it begins: p less those of its next longer ones, `(K,)`.

    >>> without_longer(torch.tensor([0.5, 0.4]).log(), [(1,), (1, 0)]).exp()
    tensor([0.1000, 0.4000])
    """
    longest_first = sorted(range(len(options)), key=lambda j: len(options[j]), reverse=True)
    share = torch.zeros_like(log_probs)  # of an option's probability that longer ones have
    for j, option in enumerate(options):
        begins = [
            i for i in longest_first if len(options[i]) < len(option) and option[: len(options[i])] == options[i]
        ]
        if begins:
            share[begins[0]] += (log_probs[j] - log_probs[begins[0]]).exp()
    return log_probs + torch.log1p(-share.clamp(max=1.0))


class _Row(NamedTuple):
    """A sequence to read, and the places in it before which options part."""

    ids: list[int]
    nodes: list[tuple[int, Node]]


def _rows(number: int, choice: Choice, follow: dict[Node, list[int]]) -> list[_Row]:
    """The fewest sequences in which each place is once: of options of a token, the context alone."""
    context, rows, seen = choice.context, [], set()
    for path in sorted((before for i, before in follow if i == number), key=len, reverse=True):
        if path not in seen:
            own = [path[:n] for n in range(len(path) + 1) if path[:n] not in seen]
            seen.update(own)
            places = [(len(context) + len(before) - 1, (number, before)) for before in own]
            rows.append(_Row([*context, *path], places))
    return rows


def _of_options(options: Sequence[Tokens], number: int, found: dict[Node, dict[int, float]]) -> Tensor:
    """Of each option the sum over its tokens, in float64, less the longer ones."""
    sums = [sum(found[number, option[:n]][token] for n, token in enumerate(option)) for option in options]
    return without_longer(torch.tensor(sums, dtype=torch.float64), options)


class _Beginning:
    """What all contexts begin with, read once, if that saves enough and the model's cache can be copied."""

    def __init__(self, model: Model, contexts: list[list[int]], rows: int):
        self.model, self.base, self.cache = model, under_adapter(model), None
        common = common_length([context[:-1] for context in contexts])
        self.common = common if common * (rows - 1) >= LEAST_SAVED and can_share(model) else 0
        if self.common:
            self.cache = DynamicCache(config=self.base.config)
            ids = torch.tensor([contexts[0][: self.common]], device=model.device)
            self.base.base_model(ids, **behind(self.cache, self.base.base_model))

    def read(self, rows: list[_Row]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What the logits at the rows' places are made of, `(P, …)`, and how."""
        ids, mask = right_padded([row.ids[self.common :] for row in rows], 0, device=self.model.device)
        places = [(at, place - self.common) for at, row in enumerate(rows) for place, _ in row.nodes]
        at, columns = torch.tensor(places, device=ids.device).T
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False} | self._behind(mask)
        if not reads_logits_off_states(self.model):
            return self.model(**inputs).logits[at, columns], lambda logits: logits
        with answering(self.base, self.model, lambda states: states[at.to(states.device), columns.to(states.device)]):
            states = self.model(**inputs).logits
        return states, lambda chunk: logits_of(chunk.unsqueeze(0), self.base)[0]

    def _behind(self, mask: Tensor) -> dict:
        if self.cache is None:
            return {}
        cache = deepcopy(self.cache)
        cache.batch_repeat_interleave(len(mask))
        whole = torch.cat([mask.new_ones(len(mask), self.common), mask], dim=1)
        return {"attention_mask": whole} | behind(cache, self.model)


def _log_probs(states: Tensor, logits: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
    """log p of the wanted tokens, `(P, M)`, from what their logits are made of, a chunk of places after the other."""
    words = logits(states[:1]).shape[-1]
    chunks = zip(
        *(each.split(max(CHUNK_LOGITS // words, 1)) for each in (states, wanted.to(states.device))), strict=True
    )
    return torch.cat([logits(own).float().log_softmax(-1).gather(1, tokens) for own, tokens in chunks])


def _check_told_apart(choice: Choice, options: Sequence[str], call: str = "option_log_probs") -> None:
    if len({*choice.options}) < len(options) or () in choice.options or not all(options):
        said = {option: list(tokens) for option, tokens in zip(options, choice.options, strict=True)}
        raise ValueError(
            f"{call}(options={list(options)}): expected options that the tokenizer tells apart, and writes as a token or more; "
            f"behind this context it makes {said}. Take others."
        )
    if not choice.context:
        raise ValueError(
            f"{call}: expected a context of a token or more, that the options do not merge with, to read from; got none. Give "
            "a longer one."
        )
