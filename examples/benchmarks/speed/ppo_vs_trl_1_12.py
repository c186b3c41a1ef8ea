"""PPO here against the PPO of TRL 1.12, the last release to have one: learning, speed, memory.

    python -m examples.benchmarks.speed.ppo_vs_trl_1_12 --environment trl_1_12 --table curves     # five seeds, equal critics
    python -m examples.benchmarks.speed.ppo_vs_trl_1_12 --environment trl_1_12 --table speed
    python -m examples.benchmarks.speed.ppo_vs_trl_1_12 --table growth                            # ours alone

--environment is a virtual environment with trl 1.12.0 and else the versions of `constraints.txt`; it is made where it
does not exist. Every run is a process of its own, and the two take turns. A run whose result lies in --output-dir is
not run again.

curves: the demo's policy after SFT, in full, paid by the demo's reward model, whose copy begins as the value model in
both; all at the rate that suits ours (3e-4). Score, KL and length are of answers to 256 held-out questions; ± is the
deviation over seeds of the training alone, that of a difference its standard error. `defaults` is ours as it comes: a
head for a critic, scaled scores, clipped gradients.

speed: random models of Qwen2's shape, LoRA on all linear layers, one micro-batch unless --micro-batch says otherwise.
Seconds are those of a rollout with its epochs, the first of a process left out (unless it has one only); memory is the
most that the process ever had, above what it had after its imports. Both have a reward model of the policy's size. TRL
1.12's value model is one more, trained in full; ours is a head, or in the row `equal critic` the same model. The rows
`own sampler` and `equal critic` sample with `TransformersGenerator`, RAFT's sampler. The row `GRPO` is that of the
installed TRL, eight completions to a prompt. A trunk pass is all tokens of the batch, prompts included, once through one
model's layers.

growth: time and memory of ours, 20M, over the batch, the new tokens and the epochs, in micro-batches of 8.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.benchmarks.common.over_seeds import mean_and_deviation
from examples.benchmarks.speed.meter import GENERATION, PASSES, PHASES, SCORING
from examples.benchmarks.speed.work import CURVES, SPEED, held_out, make_curves_work, make_speed_work

ROOT = Path(__file__).parents[3]
OLD, EQUAL, DEFAULT = "TRL 1.12", "trl_ext, equal critic", "trl_ext, defaults"
SAMPLER, GRPO = "the same, own sampler", "TRL 1.16, GRPO"
EQUAL_SETTINGS = "trl_ext, same settings"
MEASURES = {"score": "score", "kl": "KL, nats per answer", "length": "tokens"}
Rows = dict[tuple[str, int], dict[str, list[dict]]]  # results by size, prompt tokens and arm
GROWTH = {"batch": (8, 16, 32, 64, 128), "new_tokens": (32, 64, 128, 256), "epochs": (1, 2, 4, 8)}


def make_environment(folder: Path) -> Path:
    """The interpreter of an environment with TRL 1.12, made with pip if there is none."""
    python = folder.absolute() / "bin" / "python"
    version = "from importlib.metadata import version; print(version('trl'))"
    if (
        python.is_file()
        and subprocess.run([python, "-c", version], capture_output=True, text=True).stdout == "1.12.0\n"
    ):
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(line for line in lines if not line.startswith("trl==")))
        constraints.flush()
        wanted = ["trl==1.12.0", "requests", "rich", "pandas", "peft", "datasets"]
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints.name, *wanted], check=True)
    return python


def run(python: Path, script: str, task: dict, result: Path) -> dict:
    """One run in a process of its own, unless its result is there; with the machine's load before and after."""
    if result.is_file():
        found = json.loads(result.read_text())
        if found["task"] != task:
            raise SystemExit(f"{result} is of another task. Give another --output-dir.")
        return found
    result.parent.mkdir(parents=True, exist_ok=True)
    raw, load = result.with_suffix(".raw"), os.getloadavg()[0]
    request = result.with_suffix(".task")
    request.write_text(json.dumps(task))
    log = result.with_suffix(".log")
    with log.open("w") as file:
        command = [python, "-m", f"{__package__}.{script}", request.absolute(), raw.absolute()]
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{log.read_text()[-3000:]}")
    found = json.loads(raw.read_text()) | {"task": task, "load": [load, os.getloadavg()[0]]}
    result.write_text(json.dumps(found))
    for path in (raw, request, log):
        path.unlink()
    print(f"{result.stem}: {sum(map(sum_of, found['seconds'])):.0f} s, load {load:.1f}", flush=True)
    return found


def sum_of(seconds: dict[str, float]) -> float:
    return sum(seconds.values())


def arms(args: argparse.Namespace) -> dict[str, tuple[Path, str, dict]]:
    """Interpreter, script and settings by name."""
    ours, script = Path(sys.executable), "arm_trl_ext"
    found = {}
    if args.table != "growth":
        found[OLD] = (make_environment(args.environment), "arm_trl_1_12", {"critic": "model"})
    if args.table == "curves":
        found[EQUAL_SETTINGS] = (ours, script, {"critic": "model", "as_trl_1_12": True})
    as_it_comes = {"critic": "head", "as_trl_1_12": False}
    found[DEFAULT] = (ours, script, as_it_comes)
    if args.table == "speed":
        found[SAMPLER] = (ours, script, as_it_comes | {"sampler": "ours"})
        found[EQUAL] = (ours, script, {"critic": "model", "sampler": "ours"})
        found[GRPO] = (ours, script, {"critic": "none"})
    return found


# Learning


def curves(args: argparse.Namespace) -> None:
    work = make_curves_work(args.output_dir / f"curves_work_{args.rollouts}", rollouts=args.rollouts)
    found: dict[str, list[dict]] = {arm: [] for arm in arms(args)}
    for seed in args.seeds:
        for arm, (python, script, settings) in arms(args).items():
            result = args.output_dir / f"curves_{slug(arm)}_{seed}.json"
            task = place(args, work) | CURVES | {"as_trl_1_12": True} | settings
            task |= {"seed": seed, "rollouts": args.rollouts, "save": str(result.with_suffix(""))}
            one = run(python, script, task, result)
            found[arm].append(one | {"end": held_out(Path(task["save"]), work)})
    print_curves(found, held_out(work / "policy", work))
    picture = args.output_dir / "curves.png"
    draw(found, picture)
    print(f"Picture: {picture}")


def print_curves(found: dict[str, list[dict]], start: dict[str, float]) -> None:
    seeds = len(next(iter(found.values())))
    table = Table(title=f"Answers to held-out questions after the run, {seeds} seeds", title_justify="left")
    for column in ("", *MEASURES.values()):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("before", *(f"{start[name]:.2f}" for name in MEASURES))
    for arm, runs in found.items():
        table.add_row(arm, *(mean_and_deviation([one["end"][name] for one in runs]) for name in MEASURES))
    for arm, runs in list(found.items())[1:]:
        ends = [([one["end"][name] for one in runs], [old["end"][name] for old in found[OLD]]) for name in MEASURES]
        table.add_row(f"{arm} − {OLD}", *(difference_of_means(*values) for values in ends))
    Console(width=140).print(table)


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """Score, KL and length of the completions trained on, over the rollouts: each seed thin, their mean thick."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(MEASURES), figsize=(12, 3.6))
    for axis, (name, title) in zip(axes, MEASURES.items(), strict=True):
        for (arm, runs), color in zip(found.items(), ("tab:gray", "tab:blue", "tab:green"), strict=True):
            lines = [one[name] for one in runs]
            for line in lines:
                axis.plot(line, color=color, alpha=0.2, linewidth=0.7)
            axis.plot([statistics.mean(values) for values in zip(*lines, strict=True)], color=color, label=arm)
        axis.set_title(title)
        axis.set_xlabel("batches of rollouts")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


# Speed


def speed(args: argparse.Namespace) -> None:
    rows: Rows = {}
    for size in args.sizes:
        for prompt_tokens in args.prompt_tokens:
            folder = args.output_dir / f"speed_work_{size}_{prompt_tokens}_{args.batch}"
            work = make_speed_work(folder, size, prompt_tokens=prompt_tokens, prompts=4 * args.batch)
            runs = rows[size, prompt_tokens] = {arm: [] for arm in arms(args)}
            for repeat in range(args.repeats if size != "100M" else 1):
                for arm, (python, script, settings) in arms(args).items():
                    batch = {name: getattr(args, name) for name in ("batch", "micro_batch", "rollout_batch")}
                    cut = "_".join(map(str, batch.values()))
                    result = args.output_dir / f"speed_{size}_{prompt_tokens}_{cut}_{slug(arm)}_{repeat}.json"
                    task = place(args, work) | SPEED | settings | batch | {"rollouts": args.rollouts}
                    runs[arm].append(run(python, script, task, result))
    batch = f"Batch {args.batch} in micro-batches of {args.micro_batch}"
    print_speed(rows, f"{batch}, {SPEED['new_tokens']} new tokens, {SPEED['epochs']} epochs, LoRA r {SPEED['lora']}")
    print_phases(rows)
    print_passes(rows)


def print_speed(rows: Rows, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in (
        "parameters, prompt",
        "",
        "s per rollout",
        "episodes/s",
        "× TRL 1.12",
        "memory, GB",
        "× TRL 1.12",
        "load",
    ):
        table.add_column(column, justify="right" if column else "left")
    for (size, prompt_tokens), runs in rows.items():
        old_speed, old_memory = episodes_per_second(runs[OLD]), memory(runs[OLD])
        for arm, results in runs.items():
            new_speed, new_memory = episodes_per_second(results), memory(results)
            loads = [value for one in results for value in one["load"]]
            seconds = [sum_of(rollout) for rollout in timed_rollouts(results)]
            table.add_row(
                f"{size}, {prompt_tokens}",
                arm,
                " – ".join(f"{limit:.1f}" for limit in sorted({min(seconds), max(seconds)})),
                f"{new_speed:.2f}",
                f"{new_speed / old_speed:.2f}",
                f"{new_memory / 1e9:.2f}",
                f"{new_memory / old_memory:.2f}",
                f"{min(loads):.1f} – {max(loads):.1f}",
            )
    Console(width=140).print(table)


def print_phases(rows: Rows) -> None:
    table = Table(title="Seconds per rollout", title_justify="left")
    for column in ("parameters, prompt", "", *PHASES):
        table.add_column(column, justify="right" if column else "left")
    for (size, prompt_tokens), runs in rows.items():
        for arm, results in runs.items():
            rollouts = timed_rollouts(results)
            medians = (statistics.median(rollout.get(phase, 0.0) for rollout in rollouts) for phase in PHASES)
            table.add_row(f"{size}, {prompt_tokens}", arm, *(f"{value:.2f}" for value in medians))
    Console(width=160).print(table)


def print_passes(rows: Rows) -> None:
    """Of the last row: they are the same in all."""
    (_, prompt_tokens), runs = list(rows.items())[-1]
    tokens = runs[OLD][0]["task"]["batch"] * (prompt_tokens + SPEED["new_tokens"])
    table = Table(title="Trunk passes per rollout", title_justify="left")
    for column in ("", "generation", "scoring", "reference and values", "training", "forward, all", "backward"):
        table.add_column(column, justify="right" if column else "left")
    for arm, results in runs.items():
        forward = Counter({name: value / tokens for name, value in results[0]["forward"][-1].items()})
        before = [forward.pop(phase, 0.0) for phase in (GENERATION, SCORING, PASSES)]
        passes = [*before, forward.total(), sum(before) + forward.total()]
        backward = sum(results[0]["backward"][-1].values()) / tokens
        table.add_row(arm, *(f"{value:.2f}" for value in (*passes, backward)))
    Console(width=140).print(table)


def timed_rollouts(results: Iterable[dict]) -> list[dict[str, float]]:
    """Seconds by phase of every rollout but the first of each process, which warms up; of that if there is no other."""
    return [rollout for result in results for rollout in result["seconds"][1:] or result["seconds"]]


def episodes_per_second(results: list[dict]) -> float:
    """Of the median rollout."""
    batch = results[0]["task"]["batch"]
    return batch / statistics.median(sum_of(rollout) for rollout in timed_rollouts(results))


def memory(results: list[dict]) -> float:
    return statistics.median(result["memory"] for result in results)


# Growth


def growth(args: argparse.Namespace) -> None:
    size = args.sizes[0]
    work = make_speed_work(args.output_dir / f"growth_work_{size}", size, prompt_tokens=16, prompts=256)
    ((python, script, settings),) = arms(args).values()
    table = Table(
        title=f"{size}, micro-batches of 8; the others at batch 32, 64 new tokens, 4 epochs", title_justify="left"
    )
    for column in ("", "", "s per rollout", "of it generation", "ms per new token", "memory, GB", "load"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in GROWTH.items():
        for value in values:
            task = place(args, work) | SPEED | settings | {"rollouts": args.rollouts, "micro_batch": 8, name: value}
            result = args.output_dir / f"growth_{size}_{task['batch']}_{task['new_tokens']}_{task['epochs']}.json"
            one = run(python, script, task, result)
            seconds = statistics.median(map(sum_of, timed_rollouts([one])))
            generation = statistics.median(rollout[GENERATION] for rollout in timed_rollouts([one]))
            table.add_row(
                name,
                str(value),
                f"{seconds:.1f}",
                f"{generation:.1f}",
                f"{1000 * seconds / (task['batch'] * task['new_tokens']):.2f}",
                f"{one['memory'] / 1e9:.2f}",
                " – ".join(f"{load:.1f}" for load in one["load"]),
            )
    Console(width=140).print(table)


def place(args: argparse.Namespace, work: Path) -> dict:
    """Where a run reads and writes, and how it is timed."""
    return {
        "folder": str(work),
        "output_dir": str(args.output_dir / "trainer"),
        "threads": args.threads,
        "clock": args.clock,
    }


def slug(arm: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in arm.lower())


def difference_of_means(ours: list[float], theirs: list[float]) -> str:
    """With its standard error: the seeds of two trainers have nothing in common."""
    error = sum(statistics.variance(values) / len(values) for values in (ours, theirs) if len(values) > 1) ** 0.5
    return f"{statistics.mean(ours) - statistics.mean(theirs):.2f} ± {error:.2f}"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--environment", type=Path, default=Path("trl_1_12"), help="made if it does not exist")
    add("--table", choices=["curves", "speed", "growth"], required=True)
    add("--output-dir", type=Path, default=Path("ppo_vs_trl_1_12"))
    add("--seeds", type=int, nargs="+", default=list(range(5)), help="of the curves")
    add("--rollouts", type=int, help="batches of rollouts; default: 40 for curves, else 2")
    add("--repeats", type=int, default=2, help="processes per row and arm of the speeds (100M: 1)")
    add("--sizes", nargs="+", choices=["tiny", "20M", "100M"], default=["20M", "100M"])
    add("--prompt-tokens", type=int, nargs="+", default=[16, 128])
    add("--batch", type=int, default=SPEED["batch"], help="completions per rollout, of the speeds")
    add("--micro-batch", type=int, help="of the speeds; default: the whole batch")
    add("--rollout-batch", type=int, help="rows that TRL 1.12 samples and evaluates at once; default: the whole batch")
    add("--threads", type=int, help="default: 2, for curves 1")
    add("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a busy machine, with --threads 1")
    args = parser.parse_args(words)
    args.rollouts = args.rollouts or (40 if args.table == "curves" else 2)
    args.micro_batch, args.rollout_batch = args.micro_batch or args.batch, args.rollout_batch or args.batch
    args.threads = args.threads or (1 if args.table == "curves" else 2)
    return args


if __name__ == "__main__":
    args = arguments()
    {"curves": curves, "speed": speed, "growth": growth}[args.table](args)
