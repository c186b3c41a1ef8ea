"""Charts of runs as SVG, by matplotlib, which needs no network and no screen."""

import io
import re
from collections.abc import Callable, Iterator, Sequence

from trl_ext.trainer_kit.logged_run import Run

GIB = 2**30
STYLES = ("-", "--", ":", "-.")
CURVES = {  # titles, and what is drawn under them where it was logged
    "score": ("score", "grow/score", "grow/score_kept", "accuracy"),
    "held-out": ("eval_score", "eval_accuracy"),
    "KL to the reference, nats per completion": ("kl_per_completion",),
    "length, tokens": ("completions/mean_length", "grow/length"),
    "perplexity of own samples": ("perplexity",),
    "critic: explained variance": ("explained_variance",),
    "share that ends by itself": ("completions/eos_ratio",),
    "share of the ranking within prompts that is length": ("diagnostics/length_share",),
    "copied from the prompt, repeated": ("diagnostics/copied", "diagnostics/repetition"),
    "proxy: the reward that pays": ("diagnostics/proxy",),
    "gold: a reward that training does not see": ("diagnostics/gold",),
    "losses": ("ranking_loss", "imitation_loss", "loss"),
}
FACTOR = re.compile(r"rewards/(.+)/mean|(r3/.+)")  # names of what is logged of single rewards and factors


def charts(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """Titles and SVG of all charts that the runs have something for."""
    colours = {run.name: f"C{i % 10}" for i, run in enumerate(runs)} if len(runs) > 1 else {}
    factors = sorted({name for run in runs for log in run.logs for name in log if FACTOR.fullmatch(name)})
    for title, names in (CURVES | {f"of it: {_short(name)}": (name,) for name in factors}).items():
        drawn = [(run, name, series) for run in runs for name in names if len(series := run.series(name)) > 1]
        if drawn:
            yield title, svg(lambda axes, drawn=drawn: _curves(axes, drawn, colours))
    for title, one, other in (
        ("score against KL", "kl_per_completion", "score"),
        ("score against length", "completions/mean_length", "score"),
        ("score against length", "grow/length", "grow/score"),
        ("gold against proxy", "diagnostics/proxy", "diagnostics/gold"),
    ):
        paths = [(run, pairs) for run in runs if len(pairs := run.pairs(one, other)) > 1]
        if paths:
            yield title, svg(lambda axes, paths=paths, one=one: _paths(axes, paths, one, colours))
    planned = [run for run in runs if run.begin.get("plan")]
    if planned:
        yield "memory by phase, GiB", svg(lambda axes: _memory(axes, planned))


def svg(draw: Callable) -> str:
    """What `draw` draws on axes, as an SVG element."""
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('trl-ext report draws with matplotlib: pip install "trl-ext[plots]"') from error
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    draw(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def _curves(axes, drawn: list, colours: dict[str, str]) -> None:
    """Where there are several runs each has one colour in all charts, and what is drawn of it lines of its own."""
    names = list(dict.fromkeys(name for _, name, _ in drawn))
    for run, name, series in drawn:
        label = " ".join([run.name] * bool(colours) + [_short(name)] * (len(names) > 1))
        style = {"color": colours[run.name], "linestyle": STYLES[names.index(name) % len(STYLES)]} if colours else {}
        axes.plot(*zip(*series, strict=True), label=_plain(label) or None, linewidth=1.2, **style)
    axes.set_xlabel("step", fontsize=8)


def _paths(axes, paths: list, one: str, colours: dict[str, str]) -> None:
    for run, pairs in paths:
        label = _plain(run.name) if len(paths) > 1 else None
        axes.plot(*zip(*pairs, strict=True), linewidth=0.8, alpha=0.6, label=label, color=colours.get(run.name))
        axes.plot(*pairs[0], marker="o", markersize=4, color="grey")
        axes.plot(*pairs[-1], marker="s", markersize=5, color="black")
    axes.set_xlabel(f"{_short(one)} (○ first, ■ last)", fontsize=8)


def _memory(axes, runs: list[Run]) -> None:
    rows = []
    for run in runs:
        peaks = (run.end or {}).get("peaks", {})
        for phase, planned in run.begin["plan"].items():
            rows.append((f"{run.name} {phase}" if len(runs) > 1 else phase, planned / GIB, peaks.get(phase, 0) / GIB))
    rows.reverse()
    places = range(len(rows))
    axes.barh([place + 0.2 for place in places], [row[1] for row in rows], height=0.35, label="planned")
    if any(row[2] for row in rows):
        axes.barh([place - 0.2 for place in places], [row[2] for row in rows], height=0.35, label="measured")
    axes.set_yticks(list(places), [_plain(row[0]) for row in rows], fontsize=8)


def _short(name: str) -> str:
    found = FACTOR.fullmatch(name)
    return next(filter(None, found.groups())) if found else name.removeprefix("diagnostics/")


def _plain(text: str) -> str:
    """No mathematics: matplotlib reads what is between dollars; no label that it would hide."""
    return text.replace("$", r"\$").lstrip("_")
