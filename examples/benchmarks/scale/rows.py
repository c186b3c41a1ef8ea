"""Seconds and memory of a run's parts by the number of its rows: what grows with a data set, and how.

    python -m examples.benchmarks.scale.rows --rows 1000 10000 100000 1000000

Each part has a process of its own, in which everything but the rows is there before: `MiB` is how far the peak of its resident
memory then rises, `s` the CPU seconds. Rows have a prompt of about 12 tokens, or for what is behind a Grow --tokens sampled ones.

    PPO, RAFT          the trainer is made of a data set of so many prompts, and `again` of the same, of which 10,000 and more
                       are not read a second time
    RAFT, chat         the same of messages, all of which become tokens
    prompts asked      the rows of a stage become parts, which are read one after another, as a generator does
    stream found       a stream is read up to the place where a run was before, as a resumed one does
    what it says       a finished Grow's metrics and cost, as the main process logs them once a stage
    opened             all its rows are kept: what an Improve learns from is written, mapped and put in order
    held               bytes of the process's own memory a kept row, while the Improve runs: the tokens are in the mapped file
    rows read          one pass over the Improve's rows, as the sampler reads them: microseconds a row

A reward, and a selection, are of so many samples, 4 to a prompt:

    scored             each part is read, scored by the length of its completions, and written
    best of K          the scores are read, and the best sample of each prompt is kept (RAFT)
    threshold          the same by three rising thresholds (ReST)
"""

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset
from transformers import AutoTokenizer

from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from examples.benchmarks.scale.made_grows import PIECE, SAMPLES, finished_grow, sampled_grow, scored_grow
from trl_ext import PPOConfig, PPOTrainer, RAFTConfig, RAFTTrainer, ReSTConfig
from trl_ext.demo import ASSETS
from trl_ext.generation.sample_files import Parts, prompt_type, sample_schema
from trl_ext.rewards.checked_reward import checked_reward
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.self_training.grow import with_scores
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grow_summary import grow_cost, grow_metrics
from trl_ext.self_training.improve_rows import ImproveRows, KeptRows
from trl_ext.self_training.prompt_stream import PromptStream
from trl_ext.self_training.schedule import Schedule
from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.self_training.stage_selection import score_bounds, select

MIB = 2**20
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}  # what is freed is no longer resident
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def no_reward(completions, **_):
    return [0.0] * len(completions)


def prompts(rows: int, of: Callable[[str], object] = str) -> Dataset:
    asked = (f"Question number {i}: of which colour is the cat of Anna?" for i in range(rows))
    return Dataset.from_dict({"prompt": [of(text) for text in asked]})


def memory(name: str) -> int:
    """Bytes of the process: `VmHWM`, the peak of all that is resident, or `RssAnon`, its own without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def measured(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of some work, MiB by which it raises the peak, and bytes that it leaves."""
    gc.collect()
    pa.default_memory_pool().release_unused()
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


def of_chat(rows: int, folder: Path, tokens: int) -> dict:
    args = RAFTConfig(max_completion_length=16, stage_batch_size=64, **on_cpu(folder, 0))
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "policy")
    tokenizer.chat_template = TEMPLATE
    return of_trainer(RAFTTrainer, args, rows, of=as_messages, processing_class=tokenizer)


def as_messages(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def of_trainer(kind: type, args: object, rows: int, *, of: Callable[[str], object] = str, **given) -> dict:
    """Made of that many prompts for the first time, and `again`, of the same."""
    policy, few = str(ASSETS / "policy"), prompts(64, of)
    kind(policy, no_reward, args, train_dataset=few, **given)  # what is read and made but once
    many, once_more = prompts(rows, of), prompts(rows, of)
    found = measured(lambda: kind(policy, no_reward, args, train_dataset=many, **given))
    return found | {"again": measured(lambda: kind(policy, no_reward, args, train_dataset=once_more, **given))["s"]}


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


def of_opening(rows: int, folder: Path, tokens: int) -> dict:
    for name, count in (("few", 64), ("many", rows)):  # few: for what is made but once
        (folder / name).mkdir()
        files, improve = (
            finished_grow(folder / name, count, tokens),
            ImproveRows(count, {"input_ids": [1], "labels": [1]}),
        )
        found = measured(partial(opened, files, improve, count))
    began = time.process_time()
    for place in range(min(rows, PIECE)):
        improve[place]
    return found | {"us_per_row": (time.process_time() - began) / min(rows, PIECE) * 1e6, "held": found["left"] / rows}


def opened(files: GrowFiles, improve: ImproveRows, rows: int) -> ImproveRows:
    files.write_kept(0, importance=False)
    improve.set_rows(KeptRows(files.kept(0)), schedule_of(rows).row_order(0, rows))
    return improve


def by_length(completions, **_):
    return [float(len(text)) for text in completions]


def of_scoring(rows: int, folder: Path, tokens: int) -> dict:
    files, parts = sampled_grow(folder, rows, tokens)
    scorer, dataset = Scorer([checked_reward(by_length)], [1.0]), prompts(-(-rows // SAMPLES))

    def work() -> None:
        for part in range(parts):
            files.score(part, lambda table, part=part: with_scores(table, scorer, dataset, part))

    return measured(work)


def of_best(rows: int, folder: Path, tokens: int) -> dict:
    return of_selection(RAFTConfig, rows, folder)


def of_thresholds(rows: int, folder: Path, tokens: int) -> dict:
    return of_selection(ReSTConfig, rows, folder, thresholds=[0.5, 0.7, 0.9])


def of_selection(config: type[SelfTrainingConfig], rows: int, folder: Path, **options) -> dict:
    args = config(num_generations=SAMPLES, max_completion_length=16, **options, **on_cpu(folder, 0))
    files, parts = scored_grow(folder, rows)

    def work() -> object:
        samples = files.selection_columns(parts)
        return select(samples, args, bounds=score_bounds(samples.scores, (), args, stage=0), seed=0)

    return measured(work)


def schedule_of(rows: int) -> Schedule:
    return Schedule(rows, rows, 1, 1, steps_per_improve=1, rows_per_step=rows, seed=0)


PARTS = {
    "PPO": of_ppo,
    "RAFT": of_raft,
    "RAFT, chat": of_chat,
    "prompts asked": of_asking,
    "stream found": of_stream,
    "what it says": of_saying,
    "opened": of_opening,
    "scored": of_scoring,
    "best of K": of_best,
    "threshold": of_thresholds,
}


def in_its_own_process(name: str, rows: int, tokens: int) -> dict:
    """What a part of so many rows takes; `forkserver`: nothing of another part is in its memory, and all modules are."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PPOTrainer.__module__, RAFTTrainer.__module__])
    with context.Pool(1) as pool:
        return pool.apply(part, (name, rows, tokens))


def part(name: str, rows: int, tokens: int) -> dict:
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")  # nothing is known of the rows from before
        return PARTS[name](rows, Path(folder), tokens)


def cell(found: dict) -> str:
    again = f"; again {found['again']:.2f} s" if "again" in found else ""
    return f"{found['s']:.2f} s, {found['mib']:,.0f} MiB{again}"


def line(rows: int, found: dict[str, dict]) -> str:
    cells = [cell(found[name]) for name in PARTS]
    last = found["opened"]
    return f"| {rows:,} | {' | '.join(cells)} | {last['held']:.0f} | {last['us_per_row']:.0f} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--tokens", type=int, default=64, help="of a sample's prompt, and of its completion")
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        raise SystemExit("scale.rows: the peak of a part is read from /proc, which only Linux has.")
    os.environ.update(GIVEN_BACK)  # for the processes that begin from here
    print(f"| rows | {' | '.join(PARTS)} | held, bytes a row | read, µs a row |")
    print("|---" * (len(PARTS) + 3) + "|")
    for rows in options.rows:
        print(line(rows, {name: in_its_own_process(name, rows, options.tokens) for name in PARTS}), flush=True)


if __name__ == "__main__":
    main()
