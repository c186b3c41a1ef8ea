"""A reward that pays, the proxy, against one that training does not see, gold: do both rise, and where do they part?"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

from trl_ext.rewards.within_prompts import correlation, ranks
from trl_ext.trainer_kit.run_log import LOG, is_number, lines

PREFIX = "diagnostics/"
WINDOWS = 10  # at most, that the looks of a run are divided into
LEVEL = 0.05  # chance of a turning point where there is none
FEWEST = 3  # looks before anything is said


@dataclass(frozen=True)
class GoldCurve:
    """Mean proxy and mean gold over the looks of a run.

    Args:
        steps: Of the looks.
        proxy, gold: Means over prompts.
        proxy_errors, gold_errors: Their standard errors over prompts; NaN where one look has one prompt.
        within: Spearman's correlation of the two within prompts, at each look; None where prompts have one completion.
    """

    steps: list[int]
    proxy: list[float]
    gold: list[float]
    proxy_errors: list[float]
    gold_errors: list[float]
    within: list[float | None]

    @property
    def spearman(self) -> float | None:
        """Of proxy and gold over the looks; R³'s authors judge a proxy by it. None of fewer than 3, or without a change."""
        if len(self.steps) < FEWEST:
            return None
        one = ["run"] * len(self.steps)
        return correlation(ranks(self.proxy, one), ranks(self.gold, one), groups=one)

    @property
    def turning_point(self) -> int | None:
        """The step after which gold falls while proxy rises; None where noise could have made it.

        The looks are divided into m ≤ 10 windows. g is the window of the highest gold, and the last one is L:

            gold_g − gold_L > z √(se_g² + se_L²)  and  proxy_L − proxy_g > z √(…)    z = Φ⁻¹(1 − 0.05 / m)

        z allows for g having been chosen as the highest of m.
        """
        windows = self._windows()
        if len(windows) < 2:
            return None
        peak, last = _highest(windows), windows[-1]
        falls = peak["gold"] - last["gold"] > self._least("gold")
        return int(peak["step"]) if falls and last["proxy"] - peak["proxy"] > self._least("proxy") else None

    @property
    def smallest_fall(self) -> float | None:
        """Of gold, from its highest window to the last, above which it is told from noise; None where it is not known."""
        least = self._least("gold") if self._windows() else None
        return least if least is not None and isfinite(least) and least > 0 else None

    def _least(self, name: str) -> float:
        """z √(se_g² + se_L²); where gold is highest last, of the window before it."""
        windows = self._windows()
        peak = _highest(windows[:-1]) if _highest(windows) is windows[-1] else _highest(windows)
        z = NormalDist().inv_cdf(1 - LEVEL / len(windows))
        return z * (peak[f"{name}_error"] ** 2 + windows[-1][f"{name}_error"] ** 2) ** 0.5

    def _windows(self) -> list[dict[str, float]]:
        """Means of consecutive looks, and their standard errors."""
        count = len(self.steps)
        if count < FEWEST:
            return []
        m = min(WINDOWS, count)
        cuts = [range(i * count // m, (i + 1) * count // m) for i in range(m)]
        return [
            {
                "step": self.steps[cut[-1]],
                "proxy": fmean(self.proxy[i] for i in cut),
                "gold": fmean(self.gold[i] for i in cut),
                "proxy_error": sum(self.proxy_errors[i] ** 2 for i in cut) ** 0.5 / len(cut),
                "gold_error": sum(self.gold_errors[i] ** 2 for i in cut) ** 0.5 / len(cut),
            }
            for cut in cuts
        ]

    def said(self) -> str:
        """What it shows, in a sentence: from how many looks, and what they could not show."""
        looks = f"{len(self.steps)} look{'s' * (len(self.steps) != 1)}"
        if self.spearman is None:
            return f"proxy against gold: {looks}, of which too little can be said"
        point, least = self.turning_point, self.smallest_fall
        fall = "" if least is None else f": a fall of gold above {least:.3g} could have been seen"
        end = f"after step {point} gold falls while proxy rises" if point is not None else (
            f"a point after which gold falls while proxy rises is not resolved{fall}"
        )  # fmt: skip
        few = "" if len(self.steps) >= WINDOWS else f", which are few, below {WINDOWS}"
        return f"proxy against gold: Spearman {self.spearman:.2f} over {looks}{few}; {end}"


def _highest(windows: Sequence[dict[str, float]]) -> dict[str, float]:
    return max(windows, key=lambda window: window["gold"])


def proxy_against_gold(log: Iterable[Mapping[str, Any]] | str | PathLike) -> GoldCurve:
    """The curve of a run that `RewardDiagnostics(gold=…)` watched.

    Args:
        log: `trainer.state.log_history`; or the run's folder, or its log, or its `trainer_state.json`.

    Raises:
        ValueError: Where nothing of a gold reward was logged.
    """
    entries = [entry for entry in _entries(log) if isinstance(entry, Mapping)]
    entries = [entry for entry in entries if is_number(entry.get(f"{PREFIX}gold"))]
    if not entries:
        raise ValueError(
            f"proxy_against_gold({_named(log)}): expected a log with {PREFIX}gold, and there is none in it. Train with "
            "RewardDiagnostics(trainer, gold=…)."
        )
    columns = {name: [entry.get(f"{PREFIX}{name}") for entry in entries] for name in ("proxy", "gold", "gold_within")}
    errors = [[entry.get(f"{PREFIX}{name}_error", 0.0) for entry in entries] for name in ("proxy", "gold")]
    steps = [entry["step"] for entry in entries]
    return GoldCurve(steps, columns["proxy"], columns["gold"], *errors, columns["gold_within"])


def _entries(log: Iterable[Mapping[str, Any]] | str | PathLike) -> list[Mapping[str, Any]]:
    if not isinstance(log, str | PathLike | Iterable):
        raise ValueError(
            f"proxy_against_gold({type(log).__name__}): expected trainer.state.log_history, or a run's folder. Give one."
        )
    if not isinstance(log, str | PathLike):
        return list(log)
    path = Path(log)
    path = path / LOG if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"proxy_against_gold({_named(log)}): there is no run's log. Give the folder that a trainer wrote to."
        )
    if path.suffix == ".json":
        state = json.loads(path.read_text(encoding="utf-8"))
        return state.get("log_history", []) if isinstance(state, dict) else state
    return [line for line in lines(path) if line["kind"] == "log"]


def _named(log: object) -> str:
    return repr(str(log)) if isinstance(log, str | PathLike) else "…"
