"""Whether a generator gave what a rollout asked for: a completion per row, in the policy's tokens."""

import math
from collections.abc import Mapping
from numbers import Integral, Real

import numpy as np

from trl_ext.generation.completion_checks import vocabulary_size
from trl_ext.generation.decoding import until_end
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.text_shapes import shown
from trl_ext.sequences.vocabulary import unread_id

MEND = "Mend the generator"


def checked_samples(
    samples: list[Sample], part: Part, sampling: Sampling, policy: Policy, *, call: str
) -> list[Sample]:
    """One sample per row of the part, in their order, each up to its first end token.

    Args:
        samples: What the generator gave.
        part, sampling, policy: What it was asked.
        call: Where it was given, for messages.

    Raises:
        ValueError: For rows that are missing, doubled or not asked for, and for completions without tokens, with too
            many, or with other than the policy's.
    """
    by_row = _by_row(samples, part, call)
    missing = [row for row in part.rows if row not in by_row]
    if missing:
        raise ValueError(
            f"{call}: expected one completion for each of {len(part.rows)} prompts, got {len(by_row)}; row {missing[0]} "
            f"({shown(part.prompts[part.rows.index(missing[0])])}) has none. {MEND}, whose `generate` yields every part "
            "with all its rows."
        )
    vocabulary, ends = vocabulary_size(policy), policy.end_token_ids(part.prompts)
    checked = []
    for row, prompt in zip(part.rows, part.prompts, strict=True):
        where = f"{call}: row {row} ({shown(prompt)})"
        prompt_ids = _checked_prompt(by_row[row], policy.prompt_ids(prompt), where)
        ids = _checked_ids(by_row[row], vocabulary, where)
        log_probs = _checked_log_probs(by_row[row], len(ids), where)
        ids = until_end(ids, ends)
        if len(ids) > sampling.max_completion_length:
            raise ValueError(
                f"{where} has {len(ids)} tokens: expected at most max_completion_length="
                f"{sampling.max_completion_length}. {MEND}, which is told so by `sampling`."
            )
        log_probs = None if log_probs is None else log_probs[: len(ids)]
        checked.append(by_row[row] | {"prompt_ids": prompt_ids, "completion_ids": ids, "log_probs": log_probs})
    return checked


def _by_row(samples: list[Sample], part: Part, call: str) -> dict[int, Sample]:
    by_row: dict[int, Sample] = {}
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise ValueError(
                f"{call}: expected samples, dictionaries as trl_ext.sequences.samples.Sample names them, got {sample!r}. "
                f"{MEND}."
            )
        row = sample.get("row")
        if row not in part.rows or row in by_row:
            fault = "a second completion" if row in part.rows else "a completion"
            asked = f"one completion for each of the rows {part.rows[0]} to {part.rows[-1]}"
            raise ValueError(f"{call}: expected {asked}, got {fault} of row {row!r}. {MEND}, or its `row`s.")
        by_row[row] = sample
    return by_row


def _checked_prompt(sample: Sample, read: list[int], where: str) -> list[int]:
    """The prompt's tokens, as the policy reads it; a generator need not say them."""
    given = sample.get("prompt_ids")
    if given is not None and list(given) != read:
        raise ValueError(
            f"{where} comes with the prompt_ids {shown(given)}: expected {shown(read)}, as the policy reads it, so they are "
            "another tokenizer's or another prompt's. Give a generator that serves the policy, with its tokenizer."
        )
    return read


def _checked_ids(sample: Sample, vocabulary: int, where: str) -> list[int]:
    ids = _listed(sample.get("completion_ids"))
    if not isinstance(ids, list | tuple) or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids):
        raise ValueError(
            f"{where} has the completion_ids {shown(ids)}: expected a list of whole numbers, the tokens that were sampled. "
            f"{MEND}: text alone does not say which tokens to learn from."
        )
    if not ids:
        raise ValueError(
            f"{where} has no token: expected at least one. {MEND}: an answer that says nothing is the end token alone."
        )
    unread = unread_id(ids, vocabulary)
    if unread is not None:
        raise ValueError(
            f"{where} has the token {unread}, and the policy's vocabulary has {vocabulary}: another tokenizer's ids. "
            "Give a generator that serves the policy, with its tokenizer."
        )
    return [int(i) for i in ids]


def _listed(numbers: object) -> object:
    """NumPy's as a list; else as given."""
    return numbers.tolist() if isinstance(numbers, np.ndarray) else numbers


def _checked_log_probs(sample: Sample, length: int, where: str) -> list[float] | None:
    log_probs = _listed(sample.get("log_probs"))
    if log_probs is None:
        return None
    numbers = isinstance(log_probs, list | tuple) and all(isinstance(x, Real | None) for x in log_probs)
    if not numbers or len(log_probs) != length:
        came = f"{len(log_probs)} of them" if numbers else shown(log_probs)
        raise ValueError(
            f"{where}, log_probs: expected a number for each of its {length} tokens, got {came}. {MEND}, or leave "
            "`log_probs` out."
        )
    return [math.nan if number is None else float(number) for number in log_probs]
