"""What differs between a run as it was begun and as it is gone on with: refused by name, unless it is accepted."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

from transformers import TrainingArguments

from trl_ext.trainer_kit.run_record import Record, as_json

MOVABLE = {
    "base_model_name_or_path",
    "peft_version",
}  # an adapter's: the model's own fingerprint says which base it has
FOLLOWS = ("generation_batch_size",)  # from options that may not change
LONGER = ("max_steps", "num_train_epochs", "num_stages")  # a run may go on for longer than it was begun for

# What no option of the config lets change within a run, and why.
FIXED = {
    "trainer": "a run is gone on with by the trainer that began it",
    "processes": "random states and batches are the processes' own",
    "engine": "each writes weights and moments in its own way",
    "model": "a run goes on from its own weights",
    "adapter": "a run goes on from its own weights",
    "reference": "KL is measured to where the run began",
    "tokenizer": "the weights know the former's tokens",
    "optimizer.class": "the moments are another optimizer's",
    "optimizer.optimizer": "the moments are another optimizer's",  # the config's before, or now
    "optim": "the moments are another optimizer's",
    "optim_args": "the moments are another optimizer's",
    "optim_target_modules": "the moments are another optimizer's",
    "seed": "random states go on from the checkpoint's",
    "data_seed": "random states go on from the checkpoint's",
    "full_determinism": "random states go on from the checkpoint's",
}


@dataclass(frozen=True)
class Change:
    """One difference.

    Args:
        name: By which it is accepted: a config's option, or a part of the record.
        place: Where in it, for who reads of it.
        then, now: Its values.
    """

    name: str
    place: str
    then: Any
    now: Any

    def __str__(self) -> str:
        if self.name == "processes":
            return f"it was written by {self.then} processes, and now their number is {self.now}"
        if self.name == "engine":
            then, now = (one or "one device or data parallelism" for one in (self.then, self.now))
            return f"it was written under {then}, and now runs under {now}"
        return f"{self.place}: {_short(self.then)} then, {_short(self.now)} now"

    @property
    def is_longer(self) -> bool:
        return self.name in LONGER and 0 < self.then < self.now

    def fixed(self, fixed: dict[str, str]) -> str | None:
        """Why it cannot be accepted, or None."""
        return fixed.get(self.name) or fixed.get(f"{self.name}.{self.place}")


def changes(before: Record, now: Record, args: TrainingArguments) -> list[Change]:
    """What a run's record and another's both say, and otherwise.

    An older record may lack what is new since: options had their defaults then, of other parts nothing is known.
    """
    options = _options(before.get("config", {}), now["config"], args)
    parts = [(name, before[name], now[name]) for name in before.keys() & now.keys() - {"config", "adapter"}]
    parts.append(("adapter", *_of_both_versions(before.get("adapter", {}), now.get("adapter", {}))))
    found = [Change(top, place, *values) for top, *two in (*options, *parts) for place, *values in _leaves(top, *two)]
    return sorted(found, key=lambda change: (change.name, change.place))


def _options(before: Record, now: Record, args: TrainingArguments) -> Iterator[tuple[str, Any, Any]]:
    before, now = _resolved(before), _resolved(now)
    defaults = {field.name: field.default for field in fields(args)}
    for name, value in now.items():
        if name in before:
            yield name, before[name], value
        elif defaults[name] is not None and defaults[name] is not MISSING:  # None: it follows from others
            yield name, as_json(defaults[name]), value


def _resolved(options: Record) -> Record:
    """Options with None in place of what None stands for, so that equal runs have equal ones.

    >>> _resolved({"reward_weights": [1.0, 1.0], "min_p": 0.0, "num_generations": 4, "acceptance_ratio": 0.25})
    {'reward_weights': None, 'min_p': None, 'num_generations': 4, 'acceptance_ratio': None}
    """
    count = options.get("num_generations")
    as_none = {
        "reward_weights": lambda weights: set(weights) == {1.0},
        "min_p": lambda share: share == 0,
        "acceptance_ratio": lambda share: count and share == 1 / count,
    }
    given = {name: value for name, value in options.items() if name in as_none and value is not None}
    return options | {name: None for name, value in given.items() if as_none[name](value)}


def _of_both_versions(then: Record, now: Record) -> tuple[Record, Record]:
    """Adapters' settings, by their names, without those that only one version of PEFT knows."""

    def known(one: Record, other: Record) -> Record:
        return {name: {k: v for k, v in each.items() if k in other.get(name, each)} for name, each in one.items()}

    return known(then, now), known(now, then)


def _leaves(place: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The innermost differences of two values, each with its key. What one does not have is as None, also in lists of parts."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted((then.keys() | now.keys()) - MOVABLE):
            yield from _leaves(key, then.get(key), now.get(key))
    elif _are_parts(then) and _are_parts(now) and len(then) == len(now):
        for one, other in zip(then, now, strict=True):
            yield from _leaves(place, one, other)
    elif then != now:
        yield place, then, now


def _are_parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)


def check_unchanged(before: Record, now: Record, *, call: str) -> None:
    """Raise a ValueError that names the first differences between a folder's run and this one."""
    different = differences(before, now)
    if different:
        raise ValueError(f"{call}: the folder's run was begun otherwise; {'; '.join(different[:5])}. {GO_ON}.")


GO_ON = "Go on with the same values, or begin anew with another output_dir"


def differences(before: Record, now: Record, *, names: tuple[str, str] = ("then", "now")) -> list[str]:
    """What two records say otherwise, in words, by the names of what differs; `names`: of the records."""
    one, other = names
    return [f"{place}: {_short(then)} {one}, {_short(now)} {other}" for place, then, now in _leaves("", before, now)]


def check_accepted(accepted: object, options: Iterable[str], parts: Iterable[str], *, call: str) -> None:
    """Raise a ValueError unless `accept_changes` is a list of names of options, or of a record's other parts."""
    if isinstance(accepted, str) or not isinstance(accepted, list | tuple):
        raise ValueError(f"{call}, accept_changes={accepted!r}: expected a list of names, e.g. ['learning_rate'].")
    unknown = [name for name in accepted if name not in {*options, *parts}]
    if unknown:
        raise ValueError(
            f"{call}, accept_changes={list(accepted)}: nothing of a run is called {unknown[0]!r}. Give names of options, or "
            f"of {', '.join(sorted({*parts} - {'config', *FIXED}))}."
        )


def check_allowed(
    found: list[Change], accepted: Iterable[str], fixed: dict[str, str], *, call: str, by: str = "accept_changes"
) -> None:
    """Raise a ValueError for changes that were not accepted, or that could not take effect; `by`: what accepts them."""
    refused = [c for c in found if c.fixed(fixed) or not (c.is_longer or c.name in accepted)]
    if not refused:
        return
    remedy = GO_ON
    why = {change.name: change.fixed(fixed) for change in refused if change.fixed(fixed)}
    names = dict.fromkeys(change.name for change in refused if not change.fixed(fixed))
    free = [name for name in names if not (why and name in FOLLOWS)]
    if free:
        remedy += f"; to change them within the run, {by}={free}"
    because = "".join(f" {name!r} cannot change within a run: {reason}." for name, reason in why.items())
    raise ValueError(
        f"{call}: the folder's run was begun otherwise; {'; '.join(map(str, refused[:5]))}. {remedy}.{because}"
    )


def warn_of_changes(found: list[Change], accepted: Iterable[str], *, call: str) -> None:
    """Say with what else than before a run goes on."""
    if found:
        longer = " Where the rate falls over the whole run, it now falls over the new length."
        said = longer if any(change.is_longer for change in found) else ""
        warnings.warn(f"{call} goes on with {'; '.join(map(str, found))}.{said}", stacklevel=2)
    unchanged = sorted(set(accepted) - {change.name for change in found})
    if unchanged:
        warnings.warn(
            f"{call}, accept_changes: {unchanged} did not change, or may do so at any time. Leave it out.",
            stacklevel=2,
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
