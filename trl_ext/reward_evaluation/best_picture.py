"""Best-of-n curves as a picture, by matplotlib, which needs no screen."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np

from trl_ext.reward_evaluation.overoptimization import Overoptimization
from trl_ext.trainer_kit.whole_files import written_whole


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
    """Write proxy (dashed), gold (points) and Gao's fit of gold (line) against √KL as PNG, for each of several proxies.

        draw_curves("curves.png", {"one": one.curve, "ensemble": ensemble.curve})

    Args:
        path: The file.
        curves: By the name in the legend; each is in units of its own.

    Raises:
        ImportError: Where matplotlib is not installed, with the line that installs it.
    """
    if not curves:
        raise ValueError("draw_curves(curves={}): expected at least one curve by its name. Give one.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('BestOfNCurve.save_png draws with matplotlib: pip install "trl-ext[plots]"') from error
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for number, (name, curve) in enumerate(curves.items()):
        _draw_one(axes, name, curve, color=f"C{number}")
    axes.set(xlabel="√KL to the start (nats), at most", ylabel="gain over the start, in its deviations")
    largest = max(curves.values(), key=lambda curve: curve.sizes[-1])
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.sqrt(largest.kl), [str(n) for n in largest.sizes], fontsize=7)
    top.set_xlabel("n", fontsize=8)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    with written_whole(Path(path)) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _draw_one(axes, name: str, curve: Drawn, *, color: str) -> None:
    distances = np.sqrt(curve.kl)
    label = (f"{name}: " if name else "").replace("$", r"\$")
    axes.errorbar(
        distances, curve.proxy, curve.proxy_errors, color=color, linestyle="--", linewidth=1, label=f"{label}proxy"
    )
    if curve.gold is None:
        return
    axes.errorbar(
        distances,
        curve.gold,
        curve.gold_errors,
        color=color,
        marker="o",
        markersize=4,
        linestyle="",
        label=f"{label}gold",
    )
    if curve.fit is None:
        return
    fine = np.linspace(0, curve.fit.largest, 100)
    axes.plot(fine, curve.fit.gold_at(fine), color=color, linewidth=1.2)
    if curve.fit.peak is not None:
        axes.axvline(curve.fit.peak, color=color, linestyle=":", linewidth=1)
