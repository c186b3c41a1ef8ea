"""What a finished Grow says: how its samples score, what is logged of it, what it has cost."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trl_ext.generation.protocol import OWN_GENERATORS
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.text_variety import AT_ONCE, TextVariety
from trl_ext.sequences.texts import text_of
from trl_ext.sequences.turn_end import TEACH_THE_END

MEASURED = ["row", "sample", "score", "kept", "ended", "duplicate", "completion_ids"]
CURES = {
    "unscored": "A sample is unscored where each reward returns None, or one what is no finite number: correct them, or give "
    "a reward that applies to these prompts.",
    "truncated": "Truncated is what max_completion_length cut before it ended: give drop_truncated=False to learn from it all "
    f"the same, sample anew with a larger max_completion_length, or {TEACH_THE_END}.",
    "duplicate": "A duplicate repeats a completion of its prompt: give drop_duplicates=False, or sample with more variety.",
    "alike": "A prompt's samples are alike where they have one score: give drop_alike=False, or a reward that tells them apart.",
}


@dataclass(frozen=True)
class KeptTexts(Collection[str]):
    """The completions that a stage's first Improve learns from, read anew each time they are gone through."""

    files: GrowFiles

    def __len__(self) -> int:
        return pc.sum(pc.greater(self.files.table(["kept"])["kept"], 0)).as_py() or 0

    def __iter__(self) -> Iterator[str]:
        for batch in self.files.batches(["completion", "kept"], size=AT_ONCE):
            kept = batch.filter(pc.greater(batch["kept"], 0))["completion"]
            yield from map(text_of, kept.to_pylist())

    def __contains__(self, text: object) -> bool:
        return any(text == one for one in self)


def mean_score(files: GrowFiles) -> float:
    """Mean score of what was sampled, without the data set's own completions and what has none."""
    table = files.table(["sample", "score"])
    return float(table.filter(pc.greater_equal(table["sample"], 0))["score"].drop_null().to_numpy().mean())


def grow_metrics(files: GrowFiles) -> dict[str, float]:
    """What a finished Grow looks like: of what was sampled, and of what the stage's first Improve keeps."""
    table = pa.Table.from_batches(map(_with_length, files.batches(MEASURED)))
    kept = table.filter(pc.greater(table["kept"], 0))
    sampled = table.filter(pc.greater_equal(table["sample"], 0))
    variety = TextVariety(KeptTexts(files))
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
        "alike": files.dropped().get("alike", 0),
        "length": pc.mean(sampled["length"]).as_py(),
        "length_kept": pc.mean(kept["length"]).as_py(),
        "distinct_1": variety.distinct(1),
        "distinct_2": variety.distinct(2),
        "msttr": variety.msttr,
    }
    return {f"grow/{name}": value for name, value in metrics.items() if value is not None}


def _with_length(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The length of a completion in place of its tokens."""
    length = pc.list_value_length(batch["completion_ids"])
    return batch.select(MEASURED[:-1]).append_column("length", length)


def _invalid(files: GrowFiles) -> int:
    """Samples with a reward that is no finite number."""
    names = [name for name in pq.read_schema(files.finished).names if name.startswith("reward/")]
    rewards = files.table(names)
    return int(np.any([pc.is_nan(rewards[name]).fill_null(False).to_numpy() for name in names], axis=0).sum())


def nothing_kept(files: GrowFiles) -> str:
    """For an error: what a Grow of which nothing is kept has seen, and what to do about it."""
    scores = files.table(["score"])["score"]
    highest, dropped = pc.max(scores).as_py(), {name: count for name, count in files.dropped().items() if count}
    seen = "No sample has a score" if highest is None else f"The highest score seen is {highest:g}"
    return (
        f"nothing of {files.finished.name} is kept. {seen}; left out beforehand: {dropped or 'nothing'}. "
        f"{_cure(dropped, len(scores))} The Grow stays: start in another output_dir with "
        f"generator=FileGenerator({str(files.finished)!r})."
    )


def _cure(dropped: dict[str, int], total: int) -> str:
    """What would keep something: of what left out the most, be it the thresholds, which are met by what is left."""
    below = total - sum(dropped.values())
    reason = max(dropped, key=dropped.get, default=None)
    if reason is None or below > dropped[reason]:
        return "Lower the thresholds, or change score_map."
    return CURES[reason]


def grow_cost(files: GrowFiles, generator: str, *, passes: int) -> int:
    """Tokens that a Grow passed forward: each prompt once, each sampled token, and `passes` of both for log-probabilities.

    What an endpoint or a file gave has cost no passes of the policy.
    """
    cost = 0
    for batch in files.batches(["row", "prompt_ids", "completion_ids", "generator"]):
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
