"""What became of a prompt's completion: as it was when the prompt was first looked at, and when it was last."""

from dataclasses import asdict, dataclass
from typing import Any

from trl_ext.diagnostics.look import Look

PROMPTS = 1000  # that are kept at most
LONGEST = 2000  # characters of a text that are kept


@dataclass
class Seen:
    """One completion.

    Args:
        step: When it was sampled.
        text: What it says.
        score, gold: What it got; None where there is none.
    """

    step: int
    text: str
    score: float
    gold: float | None = None


@dataclass
class Change:
    """A prompt with its first completion and its last."""

    prompt: str
    first: Seen
    last: Seen

    @property
    def gain(self) -> float:
        """By gold, where there is one: what the score pays for is in doubt."""
        if self.first.gold is None or self.last.gold is None:
            return self.last.score - self.first.score
        return self.last.gold - self.first.gold


class FirstAndLast:
    """Keeps, of each prompt, the first completion of its first look and the first of its last; at most 1000 prompts."""

    def __init__(self):
        self.of_prompt: dict[str, Change] = {}

    def take(self, look: Look) -> None:
        taken: set[str] = set()
        for i, key in enumerate(look.groups):
            if look.scores[i] is None or key in taken:
                continue
            taken.add(key)
            gold = None if look.gold is None else look.gold[i]
            seen = Seen(look.step, look.said[i][:LONGEST], look.scores[i], gold)
            if key in self.of_prompt:
                self.of_prompt[key].last = seen
            elif len(self.of_prompt) < PROMPTS:
                self.of_prompt[key] = Change(look.asked[i][:LONGEST], seen, seen)

    def extremes(self, count: int) -> tuple[list[Change], list[Change]]:
        """The most improved and the most degraded, by gold or else by score; none that did not change."""
        changed = [each for each in self.of_prompt.values() if each.first.step != each.last.step]
        ordered = sorted(changed, key=lambda each: each.gain, reverse=True)
        better, worse = ([each for each in ordered if each.gain * sign > 0] for sign in (1, -1))
        return better[:count], worse[::-1][:count]

    def as_json(self) -> list[dict[str, Any]]:
        return [{"key": key} | asdict(change) for key, change in self.of_prompt.items()]

    def load(self, rows: list[dict[str, Any]], *, until: int) -> None:
        """Take back what `as_json` gave, up to a step."""
        changes = {row["key"]: Change(row["prompt"], Seen(**row["first"]), Seen(**row["last"])) for row in rows}
        kept = {key: change for key, change in changes.items() if change.first.step <= until}
        for change in kept.values():
            change.last = change.last if change.last.step <= until else change.first
        self.of_prompt = kept
