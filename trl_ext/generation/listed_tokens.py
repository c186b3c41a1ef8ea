"""The likeliest tokens that a server lists, place by place, and what they say of a few words."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

BLANKS = " \t\n▁ĠĊ"  # also as tokenizers write them, which some servers show


class NoLogProbs(Exception):
    """An answer that is whole, and has no log-probabilities."""


class Place(NamedTuple):
    """What was taken there, and log p of each listed token."""

    taken: str
    listed: dict[str, float]


def places_of(content: Any) -> list[Place]:
    """Of a server's answer, to a chat or to text.

    Raises:
        NoLogProbs: Where its choice has none.
        ValueError, TypeError, LookupError, AttributeError: For what is no such answer.
    """
    choice = content["choices"][0]
    if choice.get("message", choice.get("text")) is None:
        raise ValueError("a choice that says nothing")
    told = choice.get("logprobs")
    if not told:
        raise NoLogProbs
    places = _of_chat(told["content"]) if "content" in told else _of_text(told)
    if not places or not all(place.listed for place in places[:1]):
        raise NoLogProbs
    return places


def option_bounds(places: Sequence[Place], options: Sequence[str]) -> list[float]:
    """log p of each option, over the places up to the first where no blank was taken; at most, where it is not listed.

    >>> listed = {" 1": math.log(0.6), "1": math.log(0.2), "A": math.log(0.1)}
    >>> [round(math.exp(each), 6) for each in option_bounds([Place(" 1", listed)], ["1", "2"])]
    [0.8, 0.1]

    Args:
        places: As listed.
        options: Words of a token each.
    """
    found, before, least, rest = dict.fromkeys(options, -math.inf), 0.0, 0.0, -math.inf
    for place in places:
        for token, log_prob in place.listed.items():
            if (word := token.strip(BLANKS)) in found:
                found[word] = _log_sum(found[word], before + log_prob)
        left = 1 - sum(map(math.exp, place.listed.values()))
        least = min(least, before + min(place.listed.values()))
        rest = _log_sum(rest, before + math.log(max(left, 1e-12)))
        if place.taken.strip(BLANKS):
            break
        before += place.listed[place.taken]
    return [min(least, rest) if found[option] == -math.inf else found[option] for option in options]


def _of_chat(content: list[dict[str, Any]] | None) -> list[Place]:
    return [
        Place(place["token"], _listed([(each["token"], each["logprob"]) for each in [*place["top_logprobs"], place]]))
        for place in content or []
    ]


def _of_text(told: dict[str, Any]) -> list[Place]:
    tokens, own, top = told["tokens"] or [], told["token_logprobs"] or [], told["top_logprobs"] or []
    return [
        Place(token, _listed([*(listed or {}).items(), (token, log_prob)]))
        for token, log_prob, listed in zip(tokens, own, top, strict=True)
    ]


def _listed(pairs: list[tuple[str, float]]) -> dict[str, float]:
    """Each once: the one that was taken is listed too, mostly."""
    for token, log_prob in pairs:
        if not isinstance(token, str) or not log_prob <= 0.01:  # NaN is none, and rounding may be above 0
            raise ValueError(f"log p of {token!r} is {log_prob!r}")
    return {token: min(float(log_prob), 0.0) for token, log_prob in pairs}


def _log_sum(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
