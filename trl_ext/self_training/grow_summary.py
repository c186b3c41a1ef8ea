"""Reading a finished Grow: what is learned from it, what it looks like, what it has cost."""

import json
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trl_ext.generation.protocol import OWN_GENERATORS
from trl_ext.generation.sample_files import SampleFiles
from trl_ext.self_training.grow_parts import DROPPED
from trl_ext.self_training.monitors import distinct, msttr
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.texts import text_of


def batches(files: SampleFiles, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a finished file, piece by piece.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        yield from pq.ParquetFile(files.finished).iter_batches(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{files.finished} cannot be read ({str(error).splitlines()[0]}): it was changed or taken away after it was "
            "written. Restore it; or begin anew in another output_dir, where FileGenerator takes the Grows that are whole."
        ) from error


def table_of(files: SampleFiles, columns: list[str]) -> pa.Table:
    return pa.Table.from_batches(batches(files, columns))


def kept_samples(files: SampleFiles, improve: int) -> list[Sample]:
    """The samples that a stage's Improve learns from, with their log-probabilities if there are any."""
    return [row for batch in batches(files) for row in batch.filter(pc.greater(batch["kept"], improve)).to_pylist()]


def kept_texts(files: SampleFiles) -> list[str]:
    """The completions that a stage's first Improve learns from."""
    table = table_of(files, ["completion", "kept"])
    return [text_of(completion) for completion in table.filter(pc.greater(table["kept"], 0))["completion"].to_pylist()]


def sampled_scores(files: SampleFiles) -> np.ndarray:
    """The scores of what was sampled, without the data set's own completions and what has none."""
    table = table_of(files, ["sample", "score"])
    return table.filter(pc.greater_equal(table["sample"], 0))["score"].drop_null().to_numpy()


def mean_score(files: SampleFiles) -> float:
    """Mean score of what was sampled."""
    return float(sampled_scores(files).mean())


def score_bounds(files: Iterable[SampleFiles]) -> tuple[float, float] | None:
    """Least and highest score of some Grows, the data set's completions among them; None without any score."""
    scores = [table_of(file, ["score"])["score"].drop_null().to_numpy() for file in files]
    scores = np.concatenate([*scores, np.array([])])
    return (float(scores.min()), float(scores.max())) if len(scores) else None


def grow_metrics(files: SampleFiles) -> dict[str, float]:
    """What a finished Grow looks like: of what was sampled, and of what the stage's first Improve keeps."""
    table = table_of(files, ["row", "sample", "score", "kept", "ended", "duplicate", "completion_ids"])
    table = table.set_column(6, "length", pc.list_value_length(table["completion_ids"]))
    kept = table.filter(pc.greater(table["kept"], 0))
    sampled = table.filter(pc.greater_equal(table["sample"], 0))
    texts = kept_texts(files)
    metrics = {
        "prompts": pc.count_distinct(sampled["row"]).as_py(),
        "score": pc.mean(sampled["score"]).as_py(),
        "score_kept": pc.mean(kept["score"]).as_py(),
        "score_max": pc.max(sampled["score"]).as_py(),
        "kept": len(kept),
        "kept_share": len(kept) / len(table),
        "unscored": sampled["score"].null_count,
        "invalid": _invalid(files),
        "truncated": pc.sum(pc.invert(sampled["ended"])).as_py(),
        "duplicates": pc.sum(sampled["duplicate"]).as_py(),
        "alike": dropped(files).get("alike", 0),
        "length": pc.mean(sampled["length"]).as_py(),
        "length_kept": pc.mean(kept["length"]).as_py(),
        "distinct_1": distinct(texts, n=1),
        "distinct_2": distinct(texts, n=2),
        "msttr": msttr(texts),
    }
    return {f"grow/{name}": value for name, value in metrics.items() if value is not None}


def dropped(files: SampleFiles) -> dict[str, int]:
    """How many samples were left out before ranking, each by the first reason that it met."""
    metadata = pq.read_schema(files.finished).metadata or {}
    return json.loads(metadata.get(DROPPED, b"{}"))


def _invalid(files: SampleFiles) -> int:
    """Samples with a reward that is no finite number."""
    names = [name for name in pq.read_schema(files.finished).names if name.startswith("reward/")]
    rewards = table_of(files, names)
    return int(np.any([pc.is_nan(rewards[name]).fill_null(False).to_numpy() for name in names], axis=0).sum())


def grow_cost(files: SampleFiles, generator: str, *, passes: int) -> int:
    """Tokens that a Grow passed forward: each prompt once, each sampled token, and the passes for log-probabilities.

    Args:
        files: A finished Grow.
        generator: Name of who sampled it: an endpoint or a file cost no passes of the policy.
        passes: Of prompt and completion, for log-probabilities.
    """
    cost = 0
    for batch in batches(files, ["row", "prompt_ids", "completion_ids", "generator"]):
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
