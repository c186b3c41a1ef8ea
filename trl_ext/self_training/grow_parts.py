"""One Grow: sample what is missing, score what is not scored, select, join. It may die anywhere and goes on from there."""

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.selection import first_of_each
from trl_ext.self_training.stage_selection import Scored, Selected
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.texts import text_of

DATASET = "dataset"  # who made the data set's own completions
DROPPED = b"dropped"  # of a finished file's metadata: how many samples were left out before ranking, by reason


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
