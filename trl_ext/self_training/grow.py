"""One Grow: sample what is missing, score what is not scored, select, join. It may die anywhere and goes on from there."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_ext.rewards.texts import text_of
from trl_ext.self_training.generation import Generator, Part, Policy, Sample, Sampling, Text
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.monitors import distinct, msttr
from trl_ext.self_training.scoring import Scorer
from trl_ext.self_training.selection import first_of_each
from trl_ext.self_training.stage_selection import Scored, Selected

OWN_GENERATORS = ("transformers", "vllm")  # those that sample the policy, and so cost forward passes of it
DATASET = "dataset"  # who made the data set's own completions


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
    files.finish(parts, {"key": keys, "kept": pa.array(selected.kept, pa.int32())})


def kept_samples(files: GrowFiles, improve: int) -> list[Sample]:
    """The samples that a stage's Improve learns from, with their log-probabilities if there are any."""
    rows: list[Sample] = []
    for batch in pq.ParquetFile(files.finished).iter_batches():
        rows += batch.filter(pc.greater(batch["kept"], improve)).to_pylist()
    return rows


def kept_texts(files: GrowFiles) -> list[str]:
    """The completions that a stage's first Improve learns from."""
    return [text_of(sample["completion"]) for sample in kept_samples(files, 0)]


def score_bounds(files: Iterable[GrowFiles]) -> tuple[float, float] | None:
    """Least and highest score of some Grows; None without any score."""
    scores = [pq.read_table(file.finished, columns=["score"])["score"].drop_null() for file in files]
    scores = np.concatenate([score.to_numpy() for score in scores] or [np.array([])])
    return (float(scores.min()), float(scores.max())) if len(scores) else None


def grow_metrics(files: GrowFiles) -> dict[str, float]:
    """What a finished Grow looks like; the kept are those of the stage's first Improve."""
    table = pq.read_table(files.finished, columns=["score", "kept", "ended", "duplicate"])
    batches = pq.ParquetFile(files.finished).iter_batches(columns=["completion_ids"])
    lengths = pa.chunked_array([pc.list_value_length(batch["completion_ids"]) for batch in batches])
    kept = pc.greater(table["kept"], 0)
    texts = kept_texts(files)
    metrics = {
        "score": pc.mean(table["score"]).as_py(),
        "score_kept": pc.mean(pc.filter(table["score"], kept)).as_py(),
        "score_max": pc.max(table["score"]).as_py(),
        "kept": pc.sum(kept).as_py(),
        "kept_share": pc.mean(pc.cast(kept, pa.float64())).as_py(),
        "unscored": table["score"].null_count,
        "invalid": _invalid(files),
        "truncated": pc.sum(pc.invert(table["ended"])).as_py(),
        "duplicates": pc.sum(table["duplicate"]).as_py(),
        "length": pc.mean(lengths).as_py(),
        "length_kept": pc.mean(pc.filter(lengths, kept)).as_py(),
        "distinct_1": distinct(texts, n=1),
        "distinct_2": distinct(texts, n=2),
        "msttr": msttr(texts),
    }
    return {f"grow/{name}": value for name, value in metrics.items() if value is not None}


def _invalid(files: GrowFiles) -> int:
    """Samples with a reward that is no finite number."""
    names = [name for name in pq.ParquetFile(files.finished).schema_arrow.names if name.startswith("reward/")]
    rewards = pq.read_table(files.finished, columns=names)
    return int(np.any([pc.is_nan(rewards[name]).fill_null(False).to_numpy() for name in names], axis=0).sum())


def mean_score(files: GrowFiles) -> float:
    """Mean score of a finished Grow's samples."""
    return pc.mean(pq.read_table(files.finished, columns=["score"])["score"]).as_py()


def grow_cost(files: GrowFiles, generator: str, *, passes: int) -> int:
    """Tokens that a Grow passed forward: each prompt once, each sampled token, and the passes for log-probabilities.

    Args:
        files: A finished Grow.
        generator: Name of who sampled it: an endpoint or a file cost no passes of the policy.
        passes: Of prompt and completion, for log-probabilities.
    """
    cost = 0
    for batch in pq.ParquetFile(files.finished).iter_batches():
        prompts, completions = (
            pc.fill_null(pc.list_value_length(batch[name]), 0).to_numpy(zero_copy_only=False)
            for name in ("prompt_ids", "completion_ids")
        )
        sampled = np.isin(batch["generator"].to_pylist(), OWN_GENERATORS) & (generator in OWN_GENERATORS)
        _, first = np.unique(np.where(sampled, batch["row"].to_numpy(), -1), return_index=True)
        once = np.zeros_like(sampled)
        once[first] = True
        cost += prompts[once & sampled].sum() + completions[sampled].sum() + passes * (prompts + completions).sum()
    return int(cost)


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
