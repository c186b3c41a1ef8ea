"""How far is `memory_plan` from what real runs need? Predicted and measured peaks of each phase, side by side.

    python -m examples.benchmarks.memory.plan_error                 # all combinations, each in a process of its own
    python -m examples.benchmarks.memory.plan_error --quick         # a handful
    python -m examples.benchmarks.memory.plan_error --only phi3     # of one architecture
    python -m examples.benchmarks.memory.plan_error --wide          # six of 200 million parameters, for a GPU

Each combination builds random models, gives them to the real trainers (PPO, GRPO, RAFT, ReST, SFT, reward model), and
runs two steps, so that the second one meets the optimiser's state.

On the CPU it counts the bytes of live tensors, phase by phase, and compares them with `memory_plan(device="cpu")`.
That is a check of the arithmetic: of shapes, copies and lifetimes, not of a GPU's kernels or allocator, and nothing is
fitted. On CUDA it reads `torch.cuda.max_memory_allocated` and `max_memory_reserved`: the first against the plan without
context and slack; the second fits slack, a share of what is allocated, on every other combination, and the error is
reported on the rest. There cuBLAS's workspaces, up to 64 MiB whatever the model, are kept small.
"""

import argparse
import io
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from examples.benchmarks.memory.plan_cases import CARD, CASES, QUICK, Case

MIB = 2**20
NEAR = 0.10
WORKSPACES = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "128"}  # 128 KiB each


def main() -> None:
    args = arguments()
    chosen = CARD if args.wide else QUICK if args.quick else CASES
    cases = [case for case in chosen if not args.only or any(word in case.name for word in args.only)]
    rows, failed = run_all(cases, args)
    if rows:
        print_rows(rows, args.device)
        print_summary(rows, args.device)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(cases)} combinations failed: {'; '.join(failed)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="A handful of combinations.")
    parser.add_argument("--wide", action="store_true", help="Six of 200 million parameters.")
    parser.add_argument(
        "--only", metavar="WORD", nargs="+", help="Combinations whose name has one of them, e.g. phi3."
    )
    parser.add_argument("--jobs", type=int, default=1, help="Processes at once; each counts its own bytes.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Where the rows go as well, after each combination.")
    return parser.parse_args()


def run_all(cases: list[Case], args: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Rows of all combinations, in order, each run in a process that has run nothing before; and those that failed."""
    os.environ |= {"HF_HUB_OFFLINE": "1"} | (WORKSPACES if args.device == "cuda" else {})
    context = processes(args.device)
    with ProcessPoolExecutor(args.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        runs = {case.name: pool.submit(_run, case, args.device) for case in cases}
        found, failed = [], []
        for count, (name, run) in enumerate(runs.items(), start=1):
            try:
                found += run.result()
            except Exception as error:  # one combination's, which is no reason to lose the others
                failed.append(name)
                print(f"{name}: {error!r}", file=sys.stderr)
            if args.json:
                args.json.write_text(json.dumps(found))
            print(f"{count} of {len(cases)}", end="\r", file=sys.stderr, flush=True)
        return found, failed


def processes(device: str) -> BaseContext:
    """How processes begin: on the CPU with all imports done once, before any model is made.

    On CUDA each imports anew: bitsandbytes asks the card what it can while it is imported, and a fork of a process that
    has talked to the card cannot use it.
    """
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.plan_run", "bitsandbytes"])
    return context


def _run(case: Case, device: str) -> list[dict]:
    from examples.benchmarks.memory.plan_run import compare

    with redirect_stderr(io.StringIO()):  # progress bars
        return compare(case, device)


def print_rows(rows: list[dict], device: str) -> None:
    table = Table(title="Peak per phase, MiB", title_justify="left")
    for column in ("combination", "phase", "predicted", "measured", "error"):
        table.add_column(column, justify="left" if column in ("combination", "phase") else "right")
    for row in rows:
        table.add_row(
            row["case"],
            row["phase"],
            f"{row['predicted'] / MIB:.2f}",
            f"{row['measured'] / MIB:.2f}",
            f"{error(row):+.1%}",
        )
    Console(width=110).print(table)


def print_summary(rows: list[dict], device: str) -> None:
    """Shares within 10 %, by phase and of whole runs, and the worst."""
    say = Console(width=110).print
    if device == "cpu":
        say("CPU: a check of the arithmetic (live tensor bytes). Nothing is fitted; this says nothing of a GPU yet.")
    else:
        rows = with_slack(rows, say)
    for phase in ("load", "generate", "score", "train", "run"):
        errors = sorted(abs(error(row)) for row in rows if row["phase"] == phase)
        if errors:
            near = sum(value <= NEAR for value in errors) / len(errors)
            say(
                f"{phase:8} {len(errors):3} combinations, {near:.0%} within {NEAR:.0%}, median error "
                f"{errors[len(errors) // 2]:.1%}, largest {errors[-1]:.1%}"
            )
    worst = sorted(rows, key=lambda row: -abs(error(row)))[:5]
    say("worst: " + "; ".join(f"{row['case']} {row['phase']} {error(row):+.1%}" for row in worst))


def with_slack(rows: list[dict], say) -> list[dict]:
    """Fit the share of slack on even combinations; the odd ones, with it, against what was reserved."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    fitting = [row for row in rows if row["case"] in names[::2]]
    share = max(row["reserved"] / row["measured"] - 1 for row in fitting)
    say(f"slack fitted on {len(names[::2])} combinations ({', '.join(names[::2])}): {share:.1%} of what is allocated")
    held_out = [row for row in rows if row["case"] in names[1::2]]
    failed = ran_out(held_out, share)
    say(f"on the smallest card of which the plan says that it fits, {len(failed)} of the others run out: {failed}")
    return [row | {"predicted": row["predicted"] * (1 + share), "measured": row["reserved"]} for row in held_out]


def ran_out(rows: list[dict], share: float) -> list[str]:
    """Combinations that reserve more than a card whose verdict is "fits" must have: the peak with slack, and slack."""
    runs = [row for row in rows if row["phase"] == "run"]
    return [row["case"] for row in runs if row["reserved"] > row["predicted"] * (1 + 2 * share)]


def error(row: dict) -> float:
    return row["predicted"] / row["measured"] - 1


if __name__ == "__main__":
    main()
