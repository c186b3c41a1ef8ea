"""One look at the completions of a moment, and what is measured of it. N completions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from trl_ext.diagnostics.text_signs import copied_share, prompt_text, repetition
from trl_ext.rewards.checked_reward import finite_number
from trl_ext.rewards.within_prompts import correlation, explained_share, ranks
from trl_ext.sequences.texts import Text, text_of, wordpunct

Numbers = Sequence[float | None]


@dataclass
class Look:
    """Completions of one moment of a run, with what rewards made of them.

    Args:
        step: The moment: a step, or the number of a Grow.
        prompts, completions: Text or messages, N of each; completions of equal prompts are compared with each other.
        scores: What training learns from; None where there is none.
        lengths: In tokens; None: in words and runs of punctuation.
        ended: Whether each came to its own end; None: not known.
        factors: Single rewards, and factors of products, by name; None where one does not apply.
        gold: Of a reward that training does not see.
    """

    step: int
    prompts: list[Text]
    completions: list[Text]
    scores: Numbers
    lengths: Sequence[int] | None = None
    ended: Sequence[bool] | None = None
    factors: Mapping[str, Numbers] = field(default_factory=dict)
    gold: Numbers | None = None

    def __post_init__(self):
        self.groups = [key_of(prompt) for prompt in self.prompts]
        self.asked = [prompt_text(prompt) for prompt in self.prompts]
        self.said = [text_of(completion) for completion in self.completions]
        if self.lengths is None:
            self.lengths = [len(wordpunct(text)) for text in self.said]
        self.scores = _numbers(self.scores, "the scores")
        self.factors = {name: _numbers(values, f"the factor {name!r}") for name, values in self.factors.items()}
        self.gold = self.gold and _numbers(self.gold, "gold")

    def measures(self) -> dict[str, float]:
        """All that can be measured, by name; what cannot, as variance within prompts of one completion each, is left out.

        length_share          R² of score and length within prompts: near 1, the score ranks a prompt's completions by length
        length_share/<f>      the same of one reward or factor; factor_share/<f>: how much of the score it alone explains
        length_correlation    Spearman's, of score and length over all completions
        correlation/<f>/<g>   of two factors: Pearson's within prompts, or over all where each prompt has one completion
        copied, repetition    share of the prompt's trigrams that are copied, share of own trigrams that repeat
        no_eos                share that did not end
        proxy, gold           mean over prompts, with `_error`; gold_within: Spearman's within prompts
        """
        found = {"length": fmean(self.lengths), **self._of_texts(), **self._of_score(), **self._of_factors()}
        if self.gold is not None:
            found |= self._of_gold()
        return {name: float(value) for name, value in found.items() if value is not None}

    def _of_texts(self) -> dict[str, float | None]:
        return {
            "copied": fmean(map(copied_share, self.asked, self.said)),
            "repetition": fmean(map(repetition, self.said)),
            "no_eos": None if self.ended is None else 1 - fmean(map(float, self.ended)),
        }

    def _of_score(self) -> dict[str, float | None]:
        score, length, groups = self._both(self.scores, self.lengths)
        one = ["all"] * len(score)
        return {
            "length_share": explained_share(length, score, groups=groups),
            "length_correlation": correlation(ranks(length, one), ranks(score, one), groups=one),
        }

    def _of_factors(self) -> dict[str, float | None]:
        found = {}
        for name, values in self.factors.items():
            value, length, groups = self._both(values, self.lengths)
            found[f"length_share/{name}"] = explained_share(length, value, groups=groups)
            value, score, groups = self._both(values, self.scores)
            found[f"factor_share/{name}"] = explained_share(value, score, groups=groups)
        several = len(set(self.groups)) < len(self.groups)
        for one, other in combinations(self.factors, 2):
            a, b, groups = self._both(self.factors[one], self.factors[other])
            found[f"correlation/{one}/{other}"] = correlation(a, b, groups=groups if several else ["all"] * len(a))
        return found

    def _of_gold(self) -> dict[str, float | None]:
        proxy, gold, groups = self._both(self.scores, self.gold)
        within = correlation(ranks(proxy, groups), ranks(gold, groups), groups=groups)
        (proxy, proxy_error), (gold, gold_error) = (mean_over_prompts(values, groups) for values in (proxy, gold))
        errors = {"proxy_error": proxy_error, "gold_error": gold_error}
        return {"proxy": proxy, "gold": gold, "gold_within": within} | errors

    def _both(self, one: Numbers, other: Numbers) -> tuple[list[float], list[float], list[str]]:
        """Two columns and the prompts where both have a number."""
        rows = [i for i in range(len(self.groups)) if one[i] is not None and other[i] is not None]
        return [one[i] for i in rows], [other[i] for i in rows], [self.groups[i] for i in rows]


def _numbers(values: Numbers, what: str) -> list[float | None]:
    """As floats; NaN, which stands for none in files and tensors, is None.

    Raises:
        ValueError: For what is no number, or infinite.
    """
    found = [None if value is None or value != value else finite_number(value) for value in values]
    for row, (number, value) in enumerate(zip(found, values, strict=True)):
        if number is None and value is not None and value == value:
            raise ValueError(
                f"diagnostics: expected finite numbers or None as {what}, got {value!r} for completion {row}. Mend that row."
            )
    return found


def mean_over_prompts(values: Sequence[float], groups: Sequence[str]) -> tuple[float | None, float | None]:
    """Mean of the prompts' means, and its standard error s / √P; None of none, and of one.

    >>> mean_over_prompts([1.0, 3.0, 4.0], ["x", "x", "y"])  # 2 and 4
    (3.0, 1.0)
    """
    of_prompt: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        of_prompt.setdefault(group, []).append(value)
    means = [fmean(own) for own in of_prompt.values()]
    if not means:
        return None, None
    return fmean(means), stdev(means) / len(means) ** 0.5 if len(means) > 1 else None


def key_of(prompt: Any) -> str:
    """What is equal for equal prompts, in whatever order a file has a message's fields.

    >>> key_of([{"role": "user", "content": "Hi", "name": None}]) == key_of([{"content": "Hi", "role": "user"}])
    True
    """
    if isinstance(prompt, str):
        return prompt
    return json.dumps(
        [{name: value for name, value in turn.items() if value is not None} for turn in prompt], sort_keys=True
    )
