"""One Grow: sample what is missing, score what is not scored, select, join. It may die anywhere and goes on from there."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_ext.rewards.texts import text_of
from trl_ext.self_training.generation import Generator, Part, Policy, Sample, Sampling, Text
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.scoring import Scorer
from trl_ext.self_training.selection import first_of_each
from trl_ext.self_training.stage_selection import Scored, Selected

OWN_GENERATORS = ("transformers", "vllm")  # those that sample the policy, and so cost forward passes of it
DATASET = "dataset"  # who made the data set's own completions
DROPPED = b"dropped"  # of a finished file's metadata: how many samples were left out before ranking, by reason


def make_parts(rows: list[int], prompts: list[Text], *, size: int) -> list[Part]:
    """Cut the prompts of a Grow into parts.

    >>> [part.rows for part in make_parts([3, 5, 9], ["a", "b", "c"], size=2)]
    [(3, 5), (9,)]
    """
    cuts = range(0, len(rows), size)
    return [Part(i, tuple(rows[at : at + size]), tuple(prompts[at : at + size])) for i, at in enumerate(cuts)]


def sample_missing(
    files: GrowFiles,
    parts: Iterable[Part],
    generator: Generator,
    sampling: Sampling,
    policy: Policy,
    *,
    schema: pa.Schema,
    complete: Callable[[Part, list[Sample]], list[Sample]] = lambda part, samples: samples,
) -> Iterator[Part]:
    """Sample the parts that are not on disk, and write each as it comes; yields them.

    Args:
        complete: What is done to a part's samples before they are written.
    """
    missing = [part for part in parts if not files.is_sampled(part.index)]
    if missing:
        for part, samples in generator.generate(missing, sampling, policy):
            files.write_sampled(part.index, complete(part, samples), schema)
            yield part


def with_scores(
    table: pa.Table,
    scorer: Scorer,
    columns_of: Callable[[list[int]], dict[str, list]],
    *,
    part: int,
    log_probs: Callable[[list[Sample]], dict[str, list]] | None = None,
) -> pa.Table:
    """A part's samples with `duplicate`, each reward, `score`, and log-probabilities if they are needed.

    Args:
        table: The part's samples, all of a prompt together.
        scorer: Of the run.
        columns_of: From numbers of prompts to the data set's other columns.
        part: Its number.
        log_probs: From samples to further columns; None: none are needed.
    """
    samples = table.to_pylist()
    new = ~first_of_each([(sample["row"], text_of(sample["completion"])) for sample in samples])
    table = table.append_column("duplicate", pa.array(new, pa.bool_()))
    scores = scorer.columns(samples, columns_of([sample["row"] for sample in samples]), part=part) if samples else {}
    for name in [*(f"reward/{name}" for name in scorer.names), "score"]:
        table = table.append_column(name, pa.array(scores.get(name, []), pa.float64()))
    if log_probs is not None:
        for name, values in log_probs(samples).items():
            kind = pa.float64() if name == "kl" else pa.list_(pa.float32())
            table = table.append_column(name, pa.array(values, kind))
    return table


def selection_columns(files: GrowFiles, parts: int) -> Scored:
    """What selection reads, of all scored parts; a few bytes per sample."""
    names = ["row", "score", "ended", "duplicate"]
    has_kl = "kl" in pq.ParquetFile(files.scored(0)).schema_arrow.names
    table = files.column(parts, [*names, "kl"] if has_kl else names)
    return Scored(
        prompts=table["row"].to_numpy(),
        scores=table["score"].to_numpy(zero_copy_only=False).astype(float),
        ended=table["ended"].to_numpy(zero_copy_only=False),
        duplicate=table["duplicate"].to_numpy(zero_copy_only=False),
        kl=table["kl"].to_numpy() if has_kl else None,
    )


def finish(files: GrowFiles, parts: int, selected: Selected) -> None:
    """Join the parts, with the ranking key and in how many Improves a sample is kept."""
    keys = pa.array(selected.keys, pa.float64(), mask=np.isnan(selected.keys))
    columns = {"key": keys, "kept": pa.array(selected.kept, pa.int32())}
    files.finish(parts, columns, metadata={DROPPED: json.dumps(selected.dropped).encode()})


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """A step that all processes take together: one's error is raised in all, instead of letting them wait for ever."""
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    messages = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
    if error is not None:
        raise error
    failed = [(process, message) for process, message in enumerate(messages) if message is not None]
    if failed:
        process, message = failed[0]
        raise RuntimeError(f"process {process} of {accelerator.num_processes} failed: {message}")
