"""Does the demo improve its policy for every seed? Runs `trl-ext demo` once per seed and prints mean ± deviation.

    python -m examples.benchmarks.demo.demo_seeds --seeds 0 1 2 3 4 --output-dir demo_seeds

A seed whose results are in the folder already is not run again. Exits with 1 if with PPO R³, the reward model's
score or the share of closed questions answered right fell for any seed, if with RAFT or ReST R³ fell, or if the control
kept up with PPO on R³.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.benchmarks.common.over_seeds import mean_and_deviation

RUNS = ("before", "PPO", "RAFT", "ReST", "control")
MUST_RISE = ("R³", "reward model's score", "closed questions answered right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output-dir", type=Path, default=Path("demo_seeds"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    measures = [measures_of(seed, args.output_dir / f"seed-{seed}", args.quick) for seed in args.seeds]
    print_table(measures, args.seeds)
    sys.exit(any([failures(one, seed) for one, seed in zip(measures, args.seeds, strict=True)]))


def measures_of(seed: int, folder: Path, quick: bool) -> dict[str, dict[str, float]]:
    done = folder / "measures.json"
    if not done.is_file():
        from trl_ext.demo.chain import run_demo

        run_demo(folder, seed=seed, quick=quick)
    return json.loads(done.read_text())


def print_table(measures: list[dict], seeds: list[int]) -> None:
    table = Table(title=f"Held-out questions, {len(seeds)} seeds", title_justify="left")
    for column in ("", *RUNS):
        table.add_column(column, justify="right" if column else "left")
    for name in measures[0]["before"]:
        columns = ([one[run][name] for one in measures] for run in RUNS)
        table.add_row(name, *(mean_and_deviation(column, digits=3) for column in columns))
    Console().print(table)


def failures(measures: dict[str, dict[str, float]], seed: int) -> list[str]:
    """What should have risen and did not; printed."""
    before, ppo, raft, rest, control = (measures[run] for run in RUNS)
    failed = [f"PPO: {name}" for name in MUST_RISE if ppo[name] <= before[name]]
    failed += [f"{run}: R³" for run, after in (("RAFT", raft), ("ReST", rest)) if after["R³"] <= before["R³"]]
    failed += ["R³ beside the control's"] if ppo["R³"] <= control["R³"] else []
    for name in failed:
        print(f"seed {seed}: {name} did not rise")
    return failed


if __name__ == "__main__":
    main()
