"""Does a 7B run with four roles fit a card of 24 GB, and how fast is it? Peaks, speed, and what the plan had said.

    python -m examples.benchmarks.memory.ppo_7b_24gb                                   # on a GPU: Llama-2-7B, every row
    python -m examples.benchmarks.memory.ppo_7b_24gb --shape qwen2.5-7b --rows ppo raft --bits 8
    python -m examples.benchmarks.memory.ppo_7b_24gb --shape 100m --device cpu         # without: a smoke test

Nothing is downloaded: models have the given shape and random weights, made and quantised on the device, with a few loud
channels as trained models have them, so that LLM.int8() takes its slow path where it would (`made_models.py`).
Completions end by a given distribution of lengths (`completion_lengths.py`), prompts have their full length.

Rows, each in a process of its own:

    ppo        policy, reference, value and reward model on one shared base
    reward     training a reward model on it, with the imitation term
    raft       RAFT, policy and reward model on it
    separate   ppo with four models
    grpo, rloo TRL's trainers, policy and reward model on one shared base
    trl-grpo   TRL's trainer alone: two models
    trl-reward TRL's RewardTrainer alone

On CUDA a phase's peak is what torch has allocated, and a row's is what it has reserved plus the driver's context (with
what other processes have on the card); `--card` makes a larger card refuse what one of 24 GB would. On the CPU both are
bytes of live tensors. The first of several steps warms up: it counts for peaks, not for speed. Exit code 1 if `ppo`
fails or passes --limit.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from itertools import product
from pathlib import Path

from examples.benchmarks.common.made_models import SHAPES

GIB = 2**30
SHOWN = ("load", "generate", "score", "train")
NAMES = ("ppo", "reward", "raft", "separate", "grpo", "rloo", "trl-reward", "trl-grpo")
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "trl-ext")
DEFAULTS = {  # batch, prompt length, completion length, samples, epochs, steps
    "cuda": (16, 512, 512, 8, 4, 3),
    "cpu": (2, 24, 24, 2, 1, 1),
}
SIZES = ("batch", "prompt_length", "completion_length", "samples", "epochs", "steps")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", default="llama-2-7b", choices=list(SHAPES), metavar="SHAPE", help=", ".join(SHAPES))
    add("--device", choices=list(DEFAULTS), default="cuda")
    add("--rows", nargs="+", choices=NAMES, default=list(NAMES), metavar="ROW")
    add("--bits", nargs="+", type=int, choices=[4, 8], default=[4, 8])
    add("--batch", type=int, help="completions (pairs) per step; default: 16, on the CPU 2")
    add("--micro-batch", type=int, help="sequences per pass; default: the most that the plan gives room for")
    add("--prompt-length", type=int, help="tokens; default: 512, on the CPU 24")
    add("--completion-length", type=int, help="tokens at most; default: 512, on the CPU 24")
    add("--lengths", help="uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, geometric:MEAN, or a file of numbers; "
        "default: log-normal, its median at 0.4 of the longest, σ 0.6")  # fmt: skip
    add("--samples", type=int, help="completions per prompt of RAFT, GRPO and RLOO; default: 8, on the CPU 2")
    add("--epochs", type=int, help="over each batch of completions, on-policy; default: 4, on the CPU 1")
    add("--steps", type=int, help="batches of completions, the first to warm up; default: 3, on the CPU 1")
    add("--int8-threshold", type=float, default=6.0, help="of LLM.int8(); 0: no activation in 16 bits")
    add("--limit", type=size, default=22 * GIB, help="what ppo may need, e.g. 22GiB")
    add("--card", type=size, default=24 * GIB, help="how large the card acts, e.g. 24GiB")
    add("--threads", type=int, help="default: on the CPU 1, which other processes do not stall")
    add("--seed", type=int, default=0)
    add("--seconds", type=float, help="after which a row ends with what it has measured; default: none")
    add("--json", type=Path, metavar="FILE", help="where the table's numbers go as well, after each row")
    add("--one", nargs=3, metavar=("ROW", "BITS", "FILE"), help=argparse.SUPPRESS)  # a row in its own process
    options = parser.parse_args(words)
    for name, value in zip(SIZES, DEFAULTS[options.device], strict=True):
        setattr(options, name, value if getattr(options, name) is None else getattr(options, name))
    if options.threads is None and options.device == "cpu":
        options.threads = 1
    options.lengths = options.lengths or f"lognormal:{0.4 * options.completion_length:g}:0.6"
    if options.batch % options.samples:
        parser.error(f"--batch {options.batch} must be a multiple of --samples {options.samples}")
    return options


def check_device(options: argparse.Namespace) -> None:
    """End here, and not once per row, where there is no GPU."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "ppo_7b_24gb.py --device cuda: expected a GPU, and torch sees none. For a smoke test without one: "
            "--shape 100m --device cpu."
        )


def size(text: str) -> int:
    """Bytes.

    >>> size("22GiB") == 22 * 2**30, size("24GB"), size("500 MiB")
    (True, 24000000000, 524288000)
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([GM])(i?)B\s*", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 22GiB or 24GB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** {"M": 2, "G": 3}[unit])


# One row, in a process of its own


def run_one(options: argparse.Namespace) -> None:
    """Run the row that `--one` names, and write what it took."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    from examples.benchmarks.common.completion_lengths import lengths_from
    from examples.benchmarks.memory import ppo_7b_rows
    from examples.benchmarks.memory.ppo_7b_work import Work

    be_quiet()

    row, bits, path = options.one
    settings = {name: getattr(options, name) for name in ("shape", "device", "micro_batch", "limit", "seed", *SIZES)}
    lengths = lengths_from(options.lengths, limit=options.completion_length)
    work = Work(row=row, bits=int(bits), threshold=options.int8_threshold, lengths=lengths, **settings)
    print(work.plan.line(), flush=True)
    Path(path).write_text(json.dumps(ppo_7b_rows.run(work, card=options.card, seconds=options.seconds)))


def be_quiet() -> None:
    """Leave out what libraries say while they load, and bitsandbytes' note on each layer that its inputs are cast."""
    import datasets
    from transformers.utils import logging as hub_logging

    hub_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


# All rows


def in_own_process(words: list[str], row: str, bits: int) -> dict:
    """The result of a row; its status tells where there is none."""
    print(f"\n{row}, {bits} bits", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", __spec__.name, *words, "--one", row, str(bits), str(path)]
        code = subprocess.run(command, check=False).returncode
        result = json.loads(path.read_text()) if path.exists() else {"status": ended_by(code)}
    print(summary(result), flush=True)
    return {"row": row, "bits": bits} | result


def ended_by(code: int) -> str:
    """What a process without a result has died of."""
    return "killed, probably out of memory" if code in (-9, 137) else f"failed, exit code {code}"


def summary(result: dict) -> str:
    """One line of a row, as soon as it is over."""
    if "peaks" not in result:
        return result["status"]
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in result["seconds"].items())
    warm = "" if result["warmed_up"] else " (with warming up)"
    return f"{result['status']}: peak {result['peak'] / GIB:.2f} GiB; a step took {parts}{warm}"


def table(results: list[dict]) -> str:
    """Markdown, a row each."""
    head = ["row", "bits", "micro-batch", *SHOWN, "peak", "tokens/s generated", "tokens/s trained"]
    head += ["hours per 10 000 prompts", "rewards' share of a step", "longest completion", "outcome"]
    name, unit = unit_of(results)
    rows = [head, ["---"] * len(head), *(cells(result, unit) for result in results)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"Memory in {name}, measured / planned."])


def unit_of(results: list[dict]) -> tuple[str, int]:
    """GiB, or for small models MiB."""
    largest = max((result.get("peak", 0) for result in results), default=0)
    return ("GiB", GIB) if largest >= GIB else ("MiB", 2**20)


def cells(result: dict, unit: int) -> list[str]:
    """One line of the table."""
    start = [result["row"], str(result["bits"])]
    if "peaks" not in result:
        return [*start, *["–"] * (len(SHOWN) + 7), result["status"]]
    peaks = Counter(result["peaks"])
    peaks["score"] = max(peaks["score"], peaks["rewards"])
    memory = [both(peaks[name] / unit, result["plan"].get(name, 0) / unit) for name in SHOWN]
    rates = [f"{result['rates'][name]:.0f}" if name in result["rates"] else "–" for name in ("generate", "train")]
    done = result["status"] == "ok"
    return [
        *start,
        str(result["micro_batch"]),
        *memory,
        both(result["peak"] / unit, result["plan_peak"] / unit),
        *rates,
        f"{result['hours']:.2f}" if done else "–",
        f"{result['rewards_share']:.1%}" if done and "rewards" in result["seconds"] else "–",
        str(result["longest"] or "–"),
        result["status"],
    ]


def both(measured: float, planned: float) -> str:
    """Measured / planned; a dash where a row has no such phase.

    >>> both(2, 1.004), both(0, 0)
    ('2.00 / 1.00', '–')
    """
    return f"{measured:.2f} / {planned:.2f}" if measured or planned else "–"


def setting(options: argparse.Namespace, words: list[str]) -> str:
    """Where and with what the table was made."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    card = f"CPU, threads: {options.threads}"
    if options.device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        card = f"{properties.name}, {properties.total_memory / GIB:.1f} GiB, acting as {options.card / GIB:.1f} GiB"
    sizes = ", ".join(f"{name.replace('_', ' ')} {getattr(options, name)}" for name in SIZES)
    command = " ".join(["python -m", __spec__.name, *words])
    return f"{options.shape}, {sizes}, lengths {options.lengths}\n{card}; {versions}\n{command}"


def passed(results: list[dict], limit: int) -> bool:
    """Whether PPO on a shared base ran and stayed within the limit."""
    return all(result["status"] == "ok" and result["peak"] <= limit for result in results if result["row"] == "ppo")


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    if options.one:
        run_one(options)
        return 0
    check_device(options)
    results = []
    for row, bits in product(options.rows, options.bits):
        results.append(in_own_process(words, row, bits))
        if options.json:
            options.json.write_text(json.dumps(results))
    print(f"\n{table(results)}\n{setting(options, words)}")
    for result in results:
        if 0 < result.get("longest", 0) < options.completion_length:
            print(
                f"{result['row']}, {result['bits']} bits: no completion came to {options.completion_length} tokens, with "
                "which its peak may be higher; more --steps make one likelier"
            )
    if not passed(results, options.limit):
        print(f"ppo failed, or needed more than --limit {options.limit / GIB:.1f} GiB")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
