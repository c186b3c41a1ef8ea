"""Best-of-n curves as a picture, by matplotlib, which needs no screen."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from trl_ext.reward_evaluation.overoptimization import Overoptimization
from trl_ext.trainer_kit.whole_files import written_whole


@runtime_checkable
class Drawn(Protocol):
    """What of a `BestOfNCurve` is drawn."""

    @property
    def sizes(self) -> list[int]: ...
    @property
    def kl(self) -> list[float]: ...
    @property
    def proxy(self) -> np.ndarray: ...
    @property
    def proxy_errors(self) -> np.ndarray: ...
    @property
    def gold(self) -> np.ndarray | None: ...
    @property
    def gold_errors(self) -> np.ndarray | None: ...
    @property
    def fit(self) -> Overoptimization | None: ...


def draw_curves(path: str | PathLike, curves: Mapping[str, Drawn]) -> None:
    """Write proxy and, beside it, gold (points) with Gao's fit (line) against √KL as PNG, for each of several proxies.

    Each has an axis of its own: by a proxy that is over-optimised, gold would be a line at 0.

        draw_curves("curves.png", {"one": one.curve, "ensemble": ensemble.curve})

    Args:
        path: The file.
        curves: By the name in the legend; each is in units of its own.

    Raises:
        ImportError: Where matplotlib is not installed, with the line that installs it.
    """
    if not curves:
        raise ValueError("draw_curves(curves={}): expected at least one curve by its name. Give one.")
    wrong = next((name for name, curve in curves.items() if not isinstance(curve, Drawn)), None)
    if wrong is not None:
        raise ValueError(
            f"draw_curves(curves=…): {wrong!r} is of type {type(curves[wrong]).__name__}: expected a curve. Give what "
            "best_of_n_curve made, or the `curve` of what best_of_n found."
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('BestOfNCurve.save_png draws with matplotlib: pip install "trl-ext[plots]"') from error
    panels = ["proxy"] + (["gold"] if any(curve.gold is not None for curve in curves.values()) else [])
    figure = Figure(figsize=(4.6 * len(panels), 4.0), layout="constrained")
    largest = max(curves.values(), key=lambda curve: curve.sizes[-1])
    for axes, what in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for number, (name, curve) in enumerate(curves.items()):
            draw = _draw_proxy if what == "proxy" else _draw_gold
            draw(axes, name.replace("$", r"\$"), curve, color=f"C{number}")
        axes.set(xlabel="√KL to the start (nats), at most", ylabel=f"{what}: gain over the start, in its deviations")
        _add_sizes(axes, largest)
        if any(curves):  # a name to show
            axes.legend(fontsize=8, frameon=False)
    with written_whole(Path(path)) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _add_sizes(axes, curve: Drawn) -> None:
    """n above √KL."""
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.sqrt(curve.kl), [str(n) for n in curve.sizes], fontsize=7)
    top.set_xlabel("n", fontsize=8)


def _draw_proxy(axes, name: str, curve: Drawn, *, color: str) -> None:
    line = {"linestyle": "--", "linewidth": 1, "marker": "o", "markersize": 3}
    axes.errorbar(np.sqrt(curve.kl), curve.proxy, curve.proxy_errors, color=color, label=name, **line)


def _draw_gold(axes, name: str, curve: Drawn, *, color: str) -> None:
    if curve.gold is None:
        return
    points = {"marker": "o", "markersize": 4, "linestyle": ""}
    axes.errorbar(np.sqrt(curve.kl), curve.gold, curve.gold_errors, color=color, label=name, **points)
    if curve.fit is None:
        return
    fine = np.linspace(0, curve.fit.largest, 100)
    axes.plot(fine, curve.fit.gold_at(fine), color=color, linewidth=1.2)
    if curve.fit.peak:  # at 0 it is the start
        axes.axvline(curve.fit.peak, color=color, linestyle=":", linewidth=1)
