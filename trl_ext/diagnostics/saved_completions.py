"""Looks at completions that lie in files, data frames and data sets."""

from collections.abc import Mapping, Sequence, Sized
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from trl_ext.diagnostics.diagnosis import Diagnosis
from trl_ext.diagnostics.gold_curve import PREFIX
from trl_ext.diagnostics.gold_reward import GoldReward, products
from trl_ext.diagnostics.look import Look, key_of
from trl_ext.rewards.reward_callables import Reward, reward_functions
from trl_ext.rewards.reward_columns import check_all_columns
from trl_ext.rewards.routed_product import RoutedProduct, watched_factors
from trl_ext.rewards.weighted_rewards import call_all
from trl_ext.sequences.prompt_rows import check_completions, check_prompts, one_split
from trl_ext.sequences.text_shapes import with_text
from trl_ext.trainer_kit.row_files import READERS, UNREADABLE, read_rows
from trl_ext.trainer_kit.run_log import LOG, lines

REWARD = "reward/"  # names of rewards' columns in a Grow begin so
GIVEN = ("prompt", "completion", "completion_ids", "ended", "score", "step")
READ = {  # what else is read of a row, where it is there
    "completion_ids": (lambda value: isinstance(value, Sized) and not isinstance(value, str), "lists of token ids"),
    "ended": (lambda value: not isinstance(value, str | Sized) and value in (0, 1), "True or False"),
}
Completions = str | PathLike | Dataset | pd.DataFrame | Sequence[Mapping[str, Any]]


def diagnose(
    completions: Completions | list[str | PathLike],
    *,
    reward: Reward | None = None,
    gold: Reward | None = None,
    dataset: Dataset | None = None,
    score: str = "score",
    max_completion_length: int | None = None,
) -> Diagnosis:
    """What a reward pays for in completions that one has already.

        diagnose("run/grow-003.parquet").print()
        diagnose(sorted(Path("run").glob("grow-*.parquet")), gold=judge).save_png("gold.png")

    Args:
        completions: A run's folder, whose Grows, or else samples of its log, are the looks; a Grow's parquet, what `trl-ext generate` or `score` wrote (.parquet, .jsonl, .json, .csv), a data frame,
            a Dataset or rows, with `prompt` and `completion`; or a list of files, each a look, in their order. A column `step`
            divides one into looks. Columns `reward/…` are taken for factors, `ended` and `completion_ids` are read.
        reward: Scores them where they have no scores; of an `R3Reward` or another product also shows each factor.
        gold: A reward that training did not see.
        dataset: The prompts' rows, whose columns the rewards read: a Grow, or a file of `trl-ext generate`, has their numbers
            in `row` alone.
        score: Column with the score; others are seen as `score` is in a Grow.
        max_completion_length: The trainer's, which an `R3Reward` without one takes as its L.

    Raises:
        ValueError: For what is no completions or has no scores, and for a gold reward that gives none.
    """
    call = "diagnose(…)"
    judge = gold and GoldReward(gold, call="diagnose(gold=…)", max_completion_length=max_completion_length)
    rewards = [] if reward is None else reward_functions(
        [reward], max_completion_length=max_completion_length, call="diagnose(reward=…)"
    )  # fmt: skip
    diagnosis, scored = Diagnosis([]), False
    for number, rows in enumerate(_parts(completions)):
        check_rows(rows, call=call)
        columns = columns_of(rows) | ({} if dataset is None else of_dataset(dataset, rows))
        if dataset is not None:
            _check_same_prompts(dataset, rows)
        others = {name: values for name, values in columns.items() if name not in ("prompts", "completions")}
        check_all_columns([*rewards, *([judge.function] if judge else [])], others, range(len(rows)), call=call)
        look = _scored(rows, number, rewards, columns, score)
        if judge:
            found = judge.scores(columns)
            look.gold = found if judge.check(found, look.scores) else None
        take(diagnosis, look)
        scored = scored or any(value is not None for value in look.scores)
    if not scored:
        raise ValueError(
            f"{call}: none of the completions has a score, so there is nothing to see. Give some that have."
        )
    return diagnosis


def take(diagnosis: Diagnosis, look: Look) -> dict[str, float]:
    """Add a look to a diagnosis; its measures, by the names of the log."""
    measures = {PREFIX + name: value for name, value in look.measures().items()}
    diagnosis.history.append({"step": look.step} | measures)
    diagnosis.first, diagnosis.last = diagnosis.first or look, look
    diagnosis.changes.take(look)
    return measures


def look_of(rows: list[dict[str, Any]], step: int, *, score: str = "score") -> Look:
    """A look at rows that have their scores."""
    ids, ended = [row.get("completion_ids") for row in rows], [row.get("ended") for row in rows]
    names = [name for name in rows[0] if name.startswith(REWARD)]
    factors = {name.removeprefix(REWARD): [row.get(name) for row in rows] for name in names if len(names) > 1}
    return Look(
        step,
        [row["prompt"] for row in rows],
        [row["completion"] for row in rows],
        [row.get(score) for row in rows],
        lengths=None if any(x is None for x in ids) else [len(x) for x in ids],
        ended=None if any(x is None for x in ended) else ended,
        factors=factors,
    )


def with_factors(look: Look, rewards: list[RoutedProduct], columns: dict[str, Any]) -> Look:
    """The look with what the factors of products give."""
    for reward in rewards:
        with watched_factors() as seen:
            reward(**columns)
        look.factors = dict(look.factors) | seen[0]
    return look


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list]:
    """What rewards get of some rows."""
    own = (name for name in rows[0] if name not in GIVEN and not name.startswith(REWARD))
    columns = {name: [row.get(name) for row in rows] for name in own}
    columns |= {"prompts": [row["prompt"] for row in rows], "completions": [row["completion"] for row in rows]}
    if rows[0].get("completion_ids") is not None:
        columns["completion_ids"] = [row["completion_ids"] for row in rows]
    if isinstance(rows[0].get("ended"), bool):
        columns["completion_ended"] = [row["ended"] for row in rows]
    return columns


def of_dataset(dataset: Dataset, rows: list[dict[str, Any]]) -> dict[str, list]:
    """The columns of the prompts' data set that rewards read, row for row."""
    one_split(dataset, call="diagnose(dataset=…)")
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"diagnose(dataset=…): expected a Dataset, got {type(dataset).__name__}. Make one: Dataset.from_list(rows)."
        )
    names = [name for name in dataset.column_names if name not in GIVEN]
    numbers = [row.get("row") for row in rows]
    if not all(isinstance(number, int) and 0 <= number < len(dataset) for number in numbers):
        raise ValueError(
            f"diagnose(dataset=…): expected completions with a column `row`, numbers of its {len(dataset)} rows, as a Grow has. "
            "Give the data set that they were sampled for, or leave it out."
        )
    return {name: list(values) for name, values in dataset.select_columns(names)[numbers].items()} if names else {}


def _check_same_prompts(dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    """A data set in another order would lend its references to other prompts' completions."""
    if "prompt" not in dataset.column_names:
        return
    theirs = dataset.with_format(None)["prompt"][[row["row"] for row in rows]]
    for i, (row, prompt) in enumerate(zip(rows, theirs, strict=True)):
        if key_of(row["prompt"]) != key_of(with_text(prompt)):
            raise ValueError(
                f"diagnose(dataset=…): completion {i} is of the prompt {row['prompt']!r:.80}, and row {row['row']} of the data set "
                f"asks {prompt!r:.80}. Give the data set that they were sampled for, in that order, or leave it out."
            )


def check_rows(rows: list[dict[str, Any]], *, call: str) -> None:
    """Raise a ValueError unless they are prompts with completions."""
    if not rows:
        raise ValueError(f"{call}: it has no rows. Give at least one.")
    for name in ("prompt", "completion"):
        if name not in rows[0]:
            raise ValueError(f"{call}: expected columns `prompt` and `completion`, got {list(rows[0])}. Rename yours.")
    prompts = [row.get("prompt") for row in rows]
    check_prompts(prompts, call=call, may_be_empty=True)
    check_completions(prompts, [row.get("completion") for row in rows], call=call)
    for name, (is_one, expected) in READ.items():
        for number, row in enumerate(rows):
            if row.get(name) is not None and not is_one(row[name]):
                raise ValueError(
                    f"{call}: expected {expected} in the column `{name}`, got {row[name]!r:.60} in row {number}. Mend the column, "
                    "or leave it out."
                )


def _scored(rows: list, number: int, rewards: list, columns: dict[str, Any], score: str) -> Look:
    step = number if rows[0].get("step") is None else rows[0]["step"]
    alone = [name for name in rows[0] if name.startswith(REWARD)]
    if score not in rows[0] and len(alone) == 1:
        score = alone[0]
    if score in rows[0]:
        return with_factors(look_of(rows, step, score=score), products(rewards), columns)
    if not rewards:
        raise ValueError(
            f"diagnose(…): expected a column {score!r} with the scores, got {list(rows[0])}. Name yours by score=, or give "
            "reward=."
        )
    unheard = {"trainer_state": None, "log_metric": lambda *_: None, "log_extra": lambda *_: None}
    with watched_factors() as seen:
        scores = call_all(rewards, columns | unheard)[0]
    look = look_of([row | {score: value} for row, value in zip(rows, scores, strict=True)], step, score=score)
    look.factors = dict(look.factors) | (seen[0] if seen else {})
    return look


def _parts(completions: Any) -> list[list[dict[str, Any]]]:
    """The rows of each look."""
    if isinstance(completions, str | PathLike) and Path(completions).is_dir():
        completions = sorted(Path(completions).glob("grow-*.parquet")) or Path(completions) / LOG
    if isinstance(completions, list | tuple) and completions and isinstance(completions[0], str | PathLike):
        return [part for path in completions for part in _parts(path)]
    rows = _rows(completions)
    if all(row.get("step") is None for row in rows):
        return [rows]
    _check_steps([row.get("step") for row in rows])
    steps = sorted({row["step"] for row in rows})
    return [[row | {"step": int(step)} for row in rows if row["step"] == step] for step in steps]


def _check_steps(steps: list) -> None:
    for row, step in enumerate(steps):
        if isinstance(step, bool) or not isinstance(step, int | float) or step % 1 != 0:
            raise ValueError(
                f"diagnose(…): expected whole numbers in the column `step`, got {step!r} in row {row}. Mend it, or leave the "
                "column out."
            )


def _rows(completions: Any) -> list[dict[str, Any]]:
    if isinstance(completions, str | PathLike):
        path = Path(completions)
        completions = logged_samples(path) if path.name == LOG else _read(path)
    elif isinstance(completions, Sequence):
        if not all(isinstance(row, Mapping) for row in completions):
            kinds = sorted({type(row).__name__ for row in completions})
            raise ValueError(f"diagnose({kinds}): expected rows, or a list of files. Give all of one kind.")
        return [dict(row) for row in completions]
    elif isinstance(completions, pd.DataFrame):
        completions = Dataset.from_pandas(completions, preserve_index=False)
    elif not isinstance(completions, Dataset):
        kind = type(completions).__name__
        raise ValueError(f"diagnose({kind}): expected a file, a data frame, a Dataset or a list of rows. Give one.")
    rows = completions.with_format(None).to_list()
    return [row | {name: with_text(row[name]) for name in ("prompt", "completion") if name in row} for row in rows]


def logged_samples(path: Path) -> Dataset:
    """The samples in a run's log, each with the weighted sum of its rewards."""
    found = list(lines(path))
    config = next((line.get("config", {}) for line in found if line["kind"] == "begin"), {})
    rows = []
    for line in (line for line in found if line["kind"] == "sample"):
        rewards = line["rewards"]
        weights = config.get("reward_weights") or [1.0] * len(rewards)
        counted = [
            w * _number(r) for w, r in zip(weights, rewards.values(), strict=True) if w and _number(r) is not None
        ]
        own = {name: line[name] for name in ("step", "prompt", "completion")}
        rows.append(
            own | {"score": sum(counted) if counted else None} | {REWARD + name: r for name, r in rewards.items()}
        )
    if not rows:
        raise ValueError(
            f"diagnose({str(path)!r}): expected a run's log with samples, and it has none. Give a file of them."
        )
    return Dataset.from_list(rows)


def _read(path: Path) -> Dataset:
    call = f"diagnose({str(path)!r})"
    if path.suffix not in READERS or not path.is_file():
        raise ValueError(f"{call}: expected a file that ends in {', '.join(READERS)}, and there is none. Give one.")
    try:
        return read_rows(path, ["prompt", "completion"])
    except UNREADABLE as error:
        raise ValueError(f"{call}: it cannot be read ({str(error).splitlines()[0]}). Mend or replace it.") from error


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
