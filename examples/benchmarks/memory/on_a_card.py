"""What a card says in eight minutes: the tests marked gpu, PPO at 7B under a cap of 24 GB, the plan's error, and speeds.

    .ci/gpu wheels           where there is a network: brings the wheels that the other machine lacks (card_wheels.py)
    .ci/gpu                  on a bare machine with a card and no network, the wheels beside it: one table
    .ci/gpu --cpu-rehearsal  every stage as far as a CPU goes, with the smallest sizes

Each stage is a process of its own with a limit of its own; what it found is written as it ends, so that a stage that
fails, or the end of the time, loses no other's. The standard library only: what is measured imports the rest.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from examples.benchmarks.memory.card_rows import Row, imitation_rows, junit_rows, made_rows, plan_rows, ppo_rows
from examples.benchmarks.memory.card_wheels import FOLDER, ROOT, unpack

BUDGET = 470  # seconds
PATIENCE = 4  # times as long, on a CPU
ENDING = 8  # seconds, for a stage to be ended in and the table to be written
MEMORY, SPEED = "examples.benchmarks.memory", "examples.benchmarks.speed"
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Stage:
    """One of the things that are measured.

    Args:
        name: Of its result's file.
        module: Run as `python -m`.
        words: Its arguments on a card; `{result}` is the file it writes, `{seconds}` what is left of its limit.
        rehearsal: The same on a CPU.
        limit: Seconds.
        rows: From that file to the table's lines.
    """

    name: str
    module: str
    words: tuple[str, ...]
    rehearsal: tuple[str, ...]
    limit: int
    rows: Callable[[Path], list[Row]]

    def command(self, result: Path, seconds: float, rehearsal: bool) -> list[str]:
        words = self.rehearsal if rehearsal else self.words
        return [
            sys.executable,
            "-m",
            self.module,
            *(word.format(result=result, seconds=int(seconds)) for word in words),
        ]


def marked() -> tuple[str, ...]:
    """The files that have tests marked gpu."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return tuple(str(file.relative_to(ROOT)) for file in files if "@pytest.mark.gpu" in file.read_text())


def ppo_7b(bits: int, limit: int) -> Stage:
    """768 tokens and up to 256 new: in the window of 512 and 512, with half of its steps of sampling."""
    work = ("--rows", "ppo", "--bits", str(bits), "--steps", "2", "--json", "{result}")
    sizes = ("--shape", "llama-2-7b", "--prompt-length", "768", "--completion-length", "256", "--epochs", "2")
    rehearsal = (*work, "--shape", "tiny", "--device", "cpu", "--epochs", "1")
    return Stage(
        f"ppo-{bits}", f"{MEMORY}.ppo_7b_24gb", (*work, *sizes, "--seconds", "{seconds}"), rehearsal, limit, ppo_rows
    )


TESTS = ("-m", "gpu", "-p", "no:cacheprovider", "-q", "--junitxml", "{result}", *marked())
JSON = ("--json", "{result}")
STAGES = (  # by worth; what they may take is more than the budget, and what they should take is less
    Stage("tests", "pytest", TESTS, TESTS, 90, junit_rows),
    ppo_7b(4, 140),
    ppo_7b(8, 165),
    Stage(
        "plan",
        f"{MEMORY}.plan_error",
        ("--wide", "--device", "cuda", "--jobs", "3", *JSON),
        ("--device", "cpu", "--only", "sft llama-64", *JSON),
        90,
        plan_rows,
    ),
    Stage(
        "imitation",
        f"{SPEED}.imitation_cost",
        ("--device", "cuda", *JSON),
        ("--words", "500", "--repeats", "1", *JSON),
        45,
        imitation_rows,
    ),
    Stage("head", f"{MEMORY}.card_head", JSON, ("--device", "cpu", *JSON), 30, made_rows),
    Stage("fp16", f"{MEMORY}.card_fp16", JSON, ("--device", "cpu", *JSON), 45, made_rows),
)
GOOD = ("ok", "rehearsed")
IMPORTS = 30  # seconds of a stage in which it does not look at the clock yet


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-rehearsal", action="store_true", help="Without a card, and with the smallest sizes.")
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in STAGES], metavar="STAGE")
    parser.add_argument("--seconds", type=int, default=BUDGET, help="For all on a card; default: %(default)s.")
    parser.add_argument("--output-dir", type=Path, help="Default: $OUT, or a new folder.")
    args = parser.parse_args(words)
    folder = args.output_dir or Path(os.environ.get("OUT") or tempfile.mkdtemp(prefix="card-"))
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    stages = [stage for stage in STAGES if not args.only or stage.name in args.only]
    session = Session(folder, args.seconds, args.cpu_rehearsal)
    try:
        return session.run(stages)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        if session.found["stages"]:
            print(f"\n{table(session.found)}\n\nresults.json, table.md and log.txt are in {folder}")


class Session:
    """The stages of one call, and what they have found so far.

    Args:
        folder: Where it is written.
        seconds: For all of them.
        rehearsal: Whether it is one on a CPU, which takes its time.
    """

    def __init__(self, folder: Path, seconds: float, rehearsal: bool):
        self.folder, self.rehearsal = folder, rehearsal
        self.patience = PATIENCE if rehearsal else 1
        self.end = time.monotonic() + seconds * self.patience
        self.found: dict = {"setting": "not known", "stages": []}

    def run(self, stages: list[Stage]) -> int:
        """0 if every stage ended well, else 1."""
        with tempfile.TemporaryDirectory() as place:
            unpack(Path(place) / "site", sorted(FOLDER.glob("*.whl")))
            paths = [str(Path(place) / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = os.environ | SETTINGS | {"PYTHONPATH": os.pathsep.join(paths)}
            with (self.folder / "log.txt").open("w") as log:
                self.found["setting"] = setting(environment, self.rehearsal)
                for stage in stages:
                    self._stage(stage, Path(place) / f"{stage.name}.result", environment, log)
        return int(any(stage["outcome"] not in GOOD for stage in self.found["stages"]))

    def _stage(self, stage: Stage, result: Path, environment: dict[str, str], log) -> None:
        left = self.end - time.monotonic() - ENDING
        limit = min(stage.limit * self.patience, left)
        if left <= IMPORTS / 2:
            self._add(stage, "no time left", 0.0, result)
            return
        command = stage.command(result, max(limit - IMPORTS, 1), self.rehearsal)
        print(f"+ {stage.name}, at most {limit:.0f} s", file=sys.stderr, flush=True)
        print("+", *command, file=log, flush=True)
        start, outcome = time.monotonic(), "interrupted"
        try:
            outcome = ended(command, environment, log, limit)
            outcome = "rehearsed" if self.rehearsal and outcome == "ok" else outcome
        finally:
            self._add(stage, outcome, time.monotonic() - start, result)

    def _add(self, stage: Stage, outcome: str, seconds: float, result: Path) -> None:
        try:
            rows = stage.rows(result)
        except (OSError, ValueError, KeyError, SyntaxError) as error:  # it was ended before, or while, it wrote
            outcome, rows = f"no result: {error!r}" if outcome in GOOD else outcome, []
        self.found["stages"].append({"name": stage.name, "outcome": outcome, "seconds": seconds, "rows": rows})
        self.write()

    def write(self) -> None:
        (self.folder / "results.json").write_text(json.dumps(self.found, indent=1))
        (self.folder / "table.md").write_text(table(self.found) + "\n")


def ended(command: list[str], environment: dict[str, str], log, limit: float) -> str:
    """How a command ended, which is given so many seconds, and is ended with all that it has started."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        code = process.wait(limit)
        return "ok" if code == 0 else f"failed, exit code {code}"
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """End a process and its children; it may already have ended, and they not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(3)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


LOOK = """
import json, re, subprocess, sys, tomllib
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import Requirement
import torch
names, lacking = ["trl-ext"], []
for one in map(Requirement, tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]):
    names.append(one.name)
    try:
        if not one.specifier.contains(version(one.name), prereleases=True):
            lacking.append(f"{one} (it has {version(one.name)})")
    except PackageNotFoundError:
        lacking.append(str(one))
card = "CPU"
if torch.cuda.is_available():
    found = torch.cuda.get_device_properties(0)
    card = f"{found.name}, {found.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}"
packages = ", ".join(f"{name} {version(name)}" for name in names if not any(name in text for text in lacking))
print(json.dumps({"card": card, "packages": packages, "lacking": lacking, "python": sys.version.split()[0]}))
"""


def setting(environment: dict[str, str], rehearsal: bool) -> str:
    """Date, card and versions; a SystemExit where the machine lacks something, or a card."""
    asked = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(asked.stdout.splitlines()[-1])
    if found["lacking"]:
        raise SystemExit(
            f".ci/gpu: this machine lacks {'; '.join(found['lacking'])}. Bring wheels: .ci/gpu wheels [--also NAME==VERSION]"
        )
    if found["card"] == "CPU" and not rehearsal:
        raise SystemExit(".ci/gpu: expected a GPU, and torch sees none. Without one: .ci/gpu --cpu-rehearsal")
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    kind = " (a rehearsal: no number of it says anything of a card)" if rehearsal else ""
    return f"{date} UTC; {found['card']}{kind}; Python {found['python']}; {found['packages']}"


def table(found: dict) -> str:
    """Markdown: a line for each thing that was measured, and for each stage how it ended."""
    lines = ["| stage | what | measured | beside | apart |", "|---|---|---|---|---|"]
    for stage in found["stages"]:
        lines.append(f"| **{stage['name']}** | | {stage['outcome']} | {stage['seconds']:.0f} s | |")
        lines += ["| | " + " | ".join(row[key] for key in Row("", "")) + " |" for row in stage["rows"]]
    return "\n".join([found["setting"], "", *lines])


if __name__ == "__main__":
    sys.exit(main())
