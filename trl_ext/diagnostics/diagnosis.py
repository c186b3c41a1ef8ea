"""What looks have shown: measures from the first to the last, completions side by side, proxy against gold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike

from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from trl_ext.diagnostics.first_and_last import Change, FirstAndLast, Seen
from trl_ext.diagnostics.gold_curve import PREFIX, GoldCurve, proxy_against_gold
from trl_ext.diagnostics.look import Look
from trl_ext.diagnostics.pictures import draw
from trl_ext.trainer_kit.whole_text import cut

SIDE_BY_SIDE = 3  # completions of each kind that are shown
SHOWN = 300  # characters of each


@dataclass
class Diagnosis:
    """What a reward paid for, look by look.

    Args:
        history: Of each look its step and its measures, which are named as in the trainer's log, `diagnostics/…`.
        changes: Completions of the same prompts at their first look and at their last.
        first, last: Those looks themselves, where they are at hand.
    """

    history: list[Mapping[str, float]]
    changes: FirstAndLast = field(default_factory=FirstAndLast)
    first: Look | None = None
    last: Look | None = None

    @property
    def measures(self) -> dict[str, float]:
        """Of the last look, by the names of `Look.measures`."""
        last = self.history[-1] if self.history else {}
        return {name.removeprefix(PREFIX): value for name, value in last.items() if name.startswith(PREFIX)}

    @property
    def gold(self) -> GoldCurve | None:
        """Proxy against gold over the looks; None without a gold reward."""
        return proxy_against_gold(self.history) if any(f"{PREFIX}gold" in entry for entry in self.history) else None

    @property
    def most_improved(self) -> list[Change]:
        return self.changes.extremes(SIDE_BY_SIDE)[0]

    @property
    def most_degraded(self) -> list[Change]:
        return self.changes.extremes(SIDE_BY_SIDE)[1]

    def table(self) -> Group:
        """Measures of the first look and of the last, what is said of gold, and completions side by side."""
        parts: list = [_measures_table(self.history)]
        if self.gold is not None:
            parts.append(Text(self.gold.said()))
        for title, changes in (("most improved", self.most_improved), ("most degraded", self.most_degraded)):
            if changes:
                parts.append(_changes_table(title, changes))
        return Group(*parts)

    def print(self, console: Console | None = None) -> None:
        (console or Console(highlight=False)).print(self.table())

    def save_png(self, path: str | PathLike) -> None:
        """Score against length, shares and gold over the run, as a picture; an ImportError without matplotlib."""
        looks = [look for look in (self.first, self.last) if look is not None]
        draw(path, self.history, looks, self.gold)


def _measures_table(history: list[Mapping[str, float]]) -> Table:
    first, last = (history[0], history[-1]) if history else ({}, {})
    steps = [f"step {entry['step']}" if "step" in entry else "" for entry in (first, last)]
    columns = [Column(name, overflow="fold") for name in ("", *(steps if len(history) > 1 else steps[:1]))]
    table = Table(*columns, title="what the reward pays for", title_justify="left")
    for name in dict.fromkeys(name for entry in (first, last) for name in entry if name.startswith(PREFIX)):
        cells = [f"{entry[name]:.3g}" if name in entry else "·" for entry in (first, last)]
        table.add_row(name.removeprefix(PREFIX), *(cells if len(history) > 1 else cells[:1]))
    return table


def _changes_table(title: str, changes: list[Change]) -> Table:
    table = Table("prompt", "first", "last", title=title, title_justify="left", show_lines=True)
    for change in changes:  # as Text, or rich would read what a model wrote as markup
        table.add_row(Text(cut(change.prompt, SHOWN)), _seen(change.first), _seen(change.last))
    return table


def _seen(seen: Seen) -> Text:
    gold = "" if seen.gold is None else f", gold {seen.gold:.3g}"
    return Text(f"step {seen.step}, score {seen.score:.3g}{gold}\n").append(cut(seen.text, SHOWN))
