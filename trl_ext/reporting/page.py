"""The page: one file of HTML, without a network, with text of strangers that stays text."""

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trl_ext.reporting.charts import charts
from trl_ext.reporting.finished_runs import read_runs
from trl_ext.trainer_kit.findings import findings, too_few
from trl_ext.trainer_kit.logged_run import Run, Sample
from trl_ext.trainer_kit.time_left import duration
from trl_ext.trainer_kit.whole_files import written_whole
from trl_ext.trainer_kit.whole_text import cut, whole_text

EACH = 3  # completions that are shown of each kind
TEXTS = (1200, 300, 60)  # characters of them: the most with which the page is small enough
VALUE = 200  # characters of an option
LIMIT = 2_000_000  # bytes of a page
CHARTS = 1_500_000  # of which charts may take so many


def report(folders: Sequence[str | Path], output: str | Path, said: Sequence[str] = ()) -> Path:
    """Write the page of some runs, side by side.

    Args:
        folders: The output_dirs of trainers of this package; one that is given twice is shown once.
        output: The .html file.
        said: What to conclude of them, a sentence or two each, which the page begins with.

    Raises:
        ValueError: For a folder that is no run, or has logged nothing yet.
    """
    html = page(read_runs(folders), said)
    with written_whole(Path(output)) as partial:
        partial.write_text(html, encoding="utf-8")
    return Path(output)


def page(runs: Sequence[Run], said: Sequence[str] = ()) -> str:
    """The HTML of some runs, of at most LIMIT bytes as long as anything of completions can be left out."""
    environment = Environment(
        loader=PackageLoader("trl_ext.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    template = environment.get_template("page.html.jinja")
    drawn = [(title, Markup(svg)) for title, svg in charts(runs)]  # matplotlib has escaped what it wrote
    shown = _within(drawn, CHARTS)
    for length in TEXTS:
        html = template.render(
            runs=[_facts(run, length) for run in runs],
            versions=_shared([run.begin["versions"] for run in runs]),
            said=said,
            charts=shown,
            left_out=len(drawn) - len(shown),
        )
        html = whole_text(html)
        if len(html.encode()) < LIMIT:
            break
    return html


def _within(charts: list[tuple[str, str]], size: int) -> list[tuple[str, str]]:
    """As many as that size holds: the last ones are of single factors, or memory."""
    sizes = accumulate(len(svg) for _, svg in charts)
    return [chart for chart, so_far in zip(charts, sizes, strict=True) if so_far <= size]


def _facts(run: Run, length: int) -> dict[str, Any]:
    """What the page says of a run."""
    return {
        "run": run,
        "state": _state(run),
        "findings": findings(run),
        "too_few": too_few(run),
        "options": _options(run),
        "last": _last(run),
        "groups": _groups(run.samples, length),
    }


def _shared(versions: list[dict[str, str]]) -> dict[str, str]:
    """Of packages in all runs, where they are the same."""
    return versions[0] if all(one == versions[0] for one in versions) else {}


def number(value: Any) -> str:
    """Short; what is no number stays as it is.

    >>> number(0.123456), number(None)
    ('0.1235', '·')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "·"
    return f"{value:.4g}" if isinstance(value, int | float) else cut(str(value), VALUE)


def _state(run: Run) -> str:
    of = f" of {run.of}" if run.of else ""
    if run.end is None:
        so_far = f"logged up to step {run.steps}{of}" if run.logs else "nothing was logged"
        if run.failure is not None:
            return f"failed, {so_far}, {duration(run.seconds)}: {cut(run.failure, VALUE)}"
        return f"has not ended: still going, or killed; {so_far}, {duration(run.seconds)}"
    step = run.end["step"]
    done = f"stopped after step {step}{of}" if run.of and step < run.of else f"ended after step {step}"
    return f"{done}, {duration(run.seconds)}"


def _options(run: Run) -> dict[str, Any]:
    """What a reader asks for first, then the rest."""
    return dict(sorted(run.begin.get("config", {}).items()))


def _last(run: Run) -> dict[str, tuple[float, float]]:
    """First and last value of all that was logged more than once."""
    values = {name: run.values(name) for name in run.names}
    return {name: (found[0], found[-1]) for name, found in values.items() if len(found) > 1}


def _groups(samples: list[Sample], length: int) -> list[tuple[str, list[Sample]]]:
    """Best, worst and other completions of the first and of the last look, each text of so many characters at most."""
    groups = []
    steps = sorted({sample["step"] for sample in samples})
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        own = [_shown(sample, length) for sample in samples if sample["step"] == step]
        ranked = sorted((one for one in own if one["score"] is not None), key=lambda one: one["score"], reverse=True)
        when = f"step {step}" if any("time" in sample for sample in samples) else f"stage {step + 1}"
        groups += [(f"{when}: best", ranked[:EACH]), (f"{when}: worst", ranked[EACH:][-EACH:])]
        others = [one for one in own if one not in ranked[:EACH] and one not in ranked[EACH:][-EACH:]]
        groups.append((f"{when}: others", others[:: max(1, len(others) // EACH)][:EACH]))
    return [(title, group) for title, group in groups if group]


def _shown(sample: Sample, length: int) -> dict[str, Any]:
    rewards = sample.get("rewards") or {}
    paid = [value for value in rewards.values() if value is not None and not math.isnan(value)]
    score = sample.get("score", sum(paid) if paid else None)
    texts = {name: cut(str(sample.get(name, "")), length) for name in ("prompt", "completion")}
    return texts | {"score": score, "rewards": rewards}
