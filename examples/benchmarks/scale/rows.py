"""Seconds and memory of a run's parts by the number of its rows: what grows with a data set, and how.

    python -m examples.benchmarks.scale.rows --rows 1000 10000 100000 1000000

Each part has a process of its own, in which everything but the rows is there before: `MiB` is how far the peak of its resident
memory then rises, `s` the CPU seconds. Rows have a prompt of about 12 tokens, or for what is behind a Grow --tokens sampled ones.

    PPO, RAFT          the trainer is made of a data set of so many prompts
    prompts asked      the rows of a stage become parts, which are read one after another, as a generator does
    stream found       a stream is read up to the place where a run was before, as a resumed one does
    what it says       a finished Grow's metrics and cost, as the main process logs them once a stage
    opened             all its rows are kept: what an Improve learns from is written, mapped and put in order
    held               bytes a row that stay in the process while the Improve runs, beside the tokens, which are in the file
    rows read          one pass over the Improve's rows, as the sampler reads them: microseconds a row
"""

import argparse
import gc
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from trl_ext import PPOConfig, PPOTrainer, RAFTConfig, RAFTTrainer
from trl_ext.demo import ASSETS
from trl_ext.generation.sample_files import Parts, prompt_type, sample_schema
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grow_summary import grow_cost, grow_metrics
from trl_ext.self_training.improve_rows import ImproveRows, KeptRows
from trl_ext.self_training.prompt_stream import PromptStream
from trl_ext.self_training.schedule import Schedule

MIB = 2**20
PIECE = 10_000  # rows that are written at a time


def no_reward(completions, **_):
    return [0.0] * len(completions)


def prompts(rows: int) -> Dataset:
    return Dataset.from_dict(
        {"prompt": [f"Question number {i}: of which colour is the cat of Anna?" for i in range(rows)]}
    )


def memory(name: str) -> int:
    """Bytes of the process: `VmHWM`, the peak of all that is resident, or `RssAnon`, its own without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def measured(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of some work, MiB by which it raises the peak, and bytes that it leaves."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, own, began = memory("VmRSS"), memory("RssAnon"), time.process_time()
    kept = work()
    found = {"s": time.process_time() - began, "mib": max(memory("VmHWM") - before, 0) / MIB}
    gc.collect()
    pa.default_memory_pool().release_unused()
    found["left"] = memory("RssAnon") - own
    del kept
    return found


def of_ppo(rows: int, folder: Path, tokens: int) -> dict:
    return of_trainer(PPOTrainer, PPOConfig(max_completion_length=16, **on_cpu(folder, 0)), rows)


def of_raft(rows: int, folder: Path, tokens: int) -> dict:
    return of_trainer(
        RAFTTrainer, RAFTConfig(max_completion_length=16, stage_batch_size=64, **on_cpu(folder, 0)), rows
    )


def of_trainer(kind: type, args: object, rows: int) -> dict:
    policy, few, many = str(ASSETS / "policy"), prompts(64), prompts(rows)
    kind(policy, no_reward, args, train_dataset=few)  # what is read and made but once
    return measured(lambda: kind(policy, no_reward, args, train_dataset=many))


def of_asking(rows: int, folder: Path, tokens: int) -> dict:
    dataset, schedule = prompts(rows), schedule_of(rows)

    def work() -> Parts:
        sample_schema(prompt_type(dataset), "t")
        parts = Parts(dataset, schedule.stage_rows(0), size=256)
        for _ in parts:
            pass
        return parts

    return measured(work)


def of_stream(rows: int, folder: Path, tokens: int) -> dict:
    stream, again = (PromptStream(prompts(rows).to_iterable_dataset(), call="rows") for _ in range(2))
    for _ in range(0, rows, 100):
        stream.take(min(100, rows))
    return measured(lambda: again.seek(stream.position))


def of_saying(rows: int, folder: Path, tokens: int) -> dict:
    files = finished_grow(folder, rows, tokens)
    return measured(lambda: (grow_metrics(files), grow_cost(files, "transformers", passes=0)))


def said(count: int, tokens: int, numbers: np.random.Generator) -> list[str]:
    """Completions of three words for each four tokens, as frequent as words are (Zipf), of 20,000 words."""
    words = np.minimum(numbers.zipf(1.2, (count, 3 * tokens // 4)), 20_000)
    return [" ".join(f"w{word}" for word in row) for row in words]


def of_opening(rows: int, folder: Path, tokens: int) -> dict:
    files, improve = finished_grow(folder, rows, tokens), ImproveRows(rows, {"input_ids": [1], "labels": [1]})

    def work() -> ImproveRows:
        files.write_kept(0, importance=False)
        improve.set_rows(KeptRows(files.kept(0)), schedule_of(rows).row_order(0, rows))
        return improve

    found = measured(work)
    began = time.process_time()
    for place in range(min(rows, PIECE)):
        improve[place]
    return found | {"us_per_row": (time.process_time() - began) / min(rows, PIECE) * 1e6, "held": found["left"] / rows}


def schedule_of(rows: int) -> Schedule:
    return Schedule(rows, rows, 1, 1, steps_per_improve=1, rows_per_step=rows, seed=0)


def finished_grow(folder: Path, rows: int, tokens: int) -> GrowFiles:
    """As a Grow leaves it: a sample of each prompt, all of them kept."""
    files, numbers = GrowFiles(folder, 0), np.random.default_rng(0)
    schema = sample_schema(pa.string(), "t")
    further = [
        ("duplicate", pa.bool_()),
        ("reward/r", pa.float64()),
        ("score", pa.float64()),
        ("key", pa.float64()),
        ("kept", pa.int32()),
    ]
    schema = pa.schema([*schema, *further])
    with pq.ParquetWriter(files.finished, schema) as writer:
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            ids = pa.array(list(numbers.integers(5, 500, (count, tokens), dtype=np.int32)), pa.list_(pa.int32()))
            same = {
                "prompt": "of which colour is the cat?",
                "ended": True,
            }
            same |= {"generator": "transformers", "duplicate": False, "kept": 1}
            columns = {name: pa.array([value] * count) for name, value in same.items()}
            columns |= {
                "row": pa.array(range(start, start + count)),
                "sample": pa.array([0] * count),
                "seed": pa.array([0] * count),
            }
            columns |= {"prompt_ids": ids, "completion_ids": ids}
            columns |= {"completion": pa.array(said(count, tokens, numbers))}
            columns |= {name: pa.array(numbers.random(count)) for name in ("reward/r", "score", "key")}
            writer.write_table(pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema))
    return files


PARTS = {
    "PPO": of_ppo,
    "RAFT": of_raft,
    "prompts asked": of_asking,
    "stream found": of_stream,
    "what it says": of_saying,
    "opened": of_opening,
}


def in_its_own_process(name: str, rows: int, tokens: int) -> dict:
    """What a part of so many rows takes; `spawn`: nothing of another part is in its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(part, (name, rows, tokens))


def part(name: str, rows: int, tokens: int) -> dict:
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        return PARTS[name](rows, Path(folder), tokens)


def line(rows: int, found: dict[str, dict]) -> str:
    cells = [f"{found[name]['s']:.2f} s, {found[name]['mib']:,.0f} MiB" for name in PARTS]
    last = found["opened"]
    return f"| {rows:,} | {' | '.join(cells)} | {last['held']:.0f} | {last['us_per_row']:.0f} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--tokens", type=int, default=64, help="of a sample's prompt, and of its completion")
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        raise SystemExit("scale.rows: the peak of a part is read from /proc, which only Linux has.")
    print(f"| rows | {' | '.join(PARTS)} | held, bytes a row | read, µs a row |")
    print("|---" * (len(PARTS) + 3) + "|")
    for rows in options.rows:
        print(line(rows, {name: in_its_own_process(name, rows, options.tokens) for name in PARTS}), flush=True)


if __name__ == "__main__":
    main()
