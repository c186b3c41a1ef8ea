"""Log-probabilities of options where several questions share a long prompt: it is read once, and they behind it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trl_ext.sequences.causal_lms import Model
from trl_ext.sequences.common_prefix import LEAST_SAVED, common_length
from trl_ext.sequences.option_log_probs import Choice, read_choices
from trl_ext.trainer_kit.passes import can_share


def grouped_log_probs(model: Model, choices: Sequence[Choice], prompts: Sequence[str], *, batch_size: int) -> Tensor:
    """`choice_log_probs` of all choices, those of one long prompt read together; arguments as of `read_grouped`."""
    found = dict(read_grouped(model, choices, prompts, batch_size=batch_size))
    return torch.stack([found[row] for row in range(len(choices))])


def read_grouped(
    model: Model, choices: Sequence[Choice], prompts: Sequence[str], *, batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """Of each choice its number and log p of its options, as soon as they are read.

    Args:
        model: A causal LM.
        choices: N, of as many options each.
        prompts: What each asks about, equal where it is the same.
        batch_size: Sequences of a pass.
    """
    groups = groups_apart(prompts, [each.context for each in choices]) if can_share(model) else []
    rest = sorted({*range(len(choices))}.difference(*groups))
    for rows in [*groups, *([rest] if rest else [])]:
        read = read_choices(model, [choices[row] for row in rows], batch_size=batch_size)
        yield from ((rows[number], log_probs) for number, log_probs in read)


def groups_apart(prompts: Sequence[str], contexts: Sequence[list[int]]) -> list[list[int]]:
    """Numbers of the contexts of one prompt that are read apart from others: where what they begin with saves more so.

    All contexts share c tokens, n of one prompt share g: read together these cost n · (g − c) tokens more, and apart g.

    >>> question = [0] * 40
    >>> groups_apart(["a", "a", "b"], [question + [1] * 600 + [i, 9] for i in (5, 6)] + [question + [7]])
    [[0, 1]]
    """
    common, groups = common_length([*contexts]), defaultdict(list)
    for row, prompt in enumerate(prompts):
        groups[prompt].append(row)
    begin = {prompt: common_length([contexts[row] for row in rows]) for prompt, rows in groups.items()}
    return [
        rows
        for prompt, rows in groups.items()
        if len(rows) < len(contexts) and len(rows) * (begin[prompt] - common) - begin[prompt] >= LEAST_SAVED
    ]
