"""One line of the table that `.ci/gpu` prints, from each of its stages."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

MIB = 2**20
GIB = 2**30


class Row(dict):
    """A line of the table.

    >>> Row("load, GiB", "5.10", "plan 5.00", "−2.0%")
    {'what': 'load, GiB', 'measured': '5.10', 'beside': 'plan 5.00', 'off': '−2.0%'}

    Args:
        what: It is of, with its unit.
        measured: A number.
        beside: What was planned, asked or is the alternative.
        off: How far the two are apart.
    """

    def __init__(self, what: str, measured: str, beside: str = "", off: str = ""):
        super().__init__(what=what, measured=measured, beside=beside, off=off)


def made_rows(path: Path) -> list[Row]:
    """Of a stage that writes the table's rows itself."""
    return [Row(**row) for row in json.loads(path.read_text())]


def junit_rows(path: Path) -> list[Row]:
    """Of pytest's JUnit file: how many passed, and each that did not."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    ended = {case.get("name", ""): next((part for part in case if part.tag != "properties"), None) for case in cases}
    kinds = {
        kind: [name for name, end in ended.items() if _kind(end) == kind] for kind in ("passed", "skipped", "failed")
    }
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
    failed = [Row(name, "failed", _reason(ended[name])) for name in kinds["failed"]]
    return [Row("tests", counts), *failed]


def _kind(end: ElementTree.Element | None) -> str:
    if end is None or end.tag.startswith("system"):
        return "passed"
    return "skipped" if end.tag == "skipped" else "failed"


def _reason(end: ElementTree.Element | None) -> str:
    said = "" if end is None else end.get("message", "")
    return said.splitlines()[0][:100] if said else ""


def ppo_rows(path: Path) -> list[Row]:
    """Of `ppo_7b_24gb.py`: each phase's peak beside the plan's, that of the card, and both speeds."""
    return [row for result in json.loads(path.read_text()) for row in _ppo_rows(result)]


def _ppo_rows(result: dict) -> list[Row]:
    name = f"{result['row']}, {result['bits']} bits"
    if "peaks" not in result:
        return [Row(name, result["status"])]
    peaks = result["peaks"] | {"score": max(result["peaks"].get(part, 0) for part in ("score", "rewards"))}
    rows = [_bytes(f"{name}: {part}", peaks.get(part, 0), size) for part, size in result["plan"].items()]
    rows.append(_bytes(f"{name}: the card", result["peak"], result["plan_peak"]))
    verbs = {"generate": "generated", "train": "trained"}
    warm = "" if result["warmed_up"] else "with warming up"
    rows += [Row(f"{name}: tokens/s {verbs[part]}", f"{rate:.0f}", warm) for part, rate in result["rates"].items()]
    return [*rows, Row(f"{name}: micro-batch", str(result["micro_batch"]), result["status"])]


def _bytes(what: str, measured: int, planned: int) -> Row:
    """In GiB; a phase that did not come to pass has a dash."""
    unit, name = (GIB, "GiB") if planned >= GIB else (MIB, "MiB")
    if not measured:
        return Row(f"{what}, {name}", "–", f"plan {planned / unit:.2f}")
    return Row(
        f"{what}, {name}", f"{measured / unit:.2f}", f"plan {planned / unit:.2f}", f"{planned / measured - 1:+.1%}"
    )


def plan_rows(path: Path) -> list[Row]:
    """Of `plan_error.py`: each run's peak, and the phases' errors."""
    found: dict[str, dict[str, dict]] = {}
    for row in json.loads(path.read_text()):
        found.setdefault(row["case"], {})[row["phase"]] = row
    return [_plan_row(name, phases) for name, phases in found.items()]


def _plan_row(name: str, phases: dict[str, dict]) -> Row:
    run = _bytes(f"{name}: peak", phases["run"]["measured"], phases["run"]["predicted"])
    errors = [f"{part} {row['predicted'] / row['measured'] - 1:+.1%}" for part, row in phases.items() if part != "run"]
    reserved = phases["run"]["reserved"] / phases["run"]["measured"] - 1
    return Row(**run | {"off": f"{run['off']} ({', '.join(errors)}); reserved {reserved:+.1%}"})


def imitation_rows(path: Path) -> list[Row]:
    """Of `imitation_cost.py`: time and memory with the term, those without it being 1."""
    return [
        Row(
            f"{words} words, {row}: × time, × peak",
            f"{time}, {memory}",
            f"FLOPs ask {asked}",
            f"{seconds} s, {peak} MiB",
        )
        for words, row, seconds, time, asked, _, peak, memory in json.loads(path.read_text())
        if row != "without imitation"
    ]
