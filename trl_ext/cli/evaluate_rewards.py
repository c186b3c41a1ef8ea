"""`trl-ext evaluate --pairs`: rewards on pairs whose better completion is known, side by side."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from trl_ext.cli.command_arguments import DataArguments, RewardArguments
from trl_ext.cli.data_rows import named_rows
from trl_ext.cli.evaluated_files import (
    COMMAND,
    add_to_parquet,
    add_to_png,
    already_complete,
    output_file,
    record_of,
    yet_to_write,
)
from trl_ext.cli.named_rewards import check_rewards, named
from trl_ext.reward_evaluation import RewardEvaluation, evaluate_reward
from trl_ext.trainer_kit.config_checks import defaults_of
from trl_ext.trainer_kit.config_docs import option
from trl_ext.trainer_kit.whole_files import written_whole
from trl_ext.trainer_kit.whole_text import short_name

SHARED = ("max_completion_length", "seed", "output")  # options of policies' that rewards have, too


@dataclass
class PairArguments:
    """Rewards on pairs, in place of policies."""

    _argument_group_name = "rewards on pairs, without a policy"

    pairs: str | None = option(
        None,
        "Rows with `prompt`, `chosen`, `rejected` (of RewardBench, RM-Bench or one's own), as a file or a hub id: how often "
        "do --reward_funcs prefer the better one? Each is compared with the first.",
    )
    by: list[str] | None = option(
        None, "Columns by whose values accuracy is shown. None: of source, subset and domain those that are there."
    )
    subsets: list[str] | None = option(None, "Values of these columns whose rows are read. None: all.")
    as_messages: bool = option(False, "Read text as messages, through the reward model's chat template.")
    worst: int = option(3, "How many of the pairs that a reward gets most wrong are shown; 0: none.")
    png: str | None = option(None, "A .png file for reliability, score against length, and accuracy by group.")
    json: str | None = option(None, "A .json file for all numbers.")


def check_belongs(pairs: PairArguments, policies: object, data: DataArguments) -> None:
    """Raise a ValueError for the first option that would do nothing: of policies beside --pairs, of pairs without."""
    asked = pairs.pairs is not None
    beside = "beside --pairs: rewards on pairs need no policy" if asked else "without --pairs"
    others = ["dataset_name", "eval_dataset_name"]
    idle = (
        [*_given(policies, SHARED), *(name for name in others if getattr(data, name))] if asked else [*_given(pairs)]
    )
    if idle:
        raise ValueError(f"--{idle[0]}: it does nothing {beside}. Leave it out.")


def evaluate_rewards(
    pairs: PairArguments,
    rewards: RewardArguments,
    data: DataArguments,
    *,
    max_completion_length: int,
    seed: int,
    output: str | None,
) -> None:
    """Print what is found of each reward, and write what is asked for."""
    check_rewards(rewards)
    if len({*rewards.reward_funcs}) < len(rewards.reward_funcs):
        raise ValueError(f"--reward_funcs {' '.join(rewards.reward_funcs)}: one is named twice. Give each once.")
    if pairs.worst < 0:
        raise ValueError(f"--worst {pairs.worst}: expected at least 0.")
    files = {flag: output_file(flag, getattr(pairs, flag, output)) for flag in ("png", "json", "output")}
    asked = argparse.Namespace(max_completion_length=max_completion_length, seed=seed)
    record = record_of(pairs, rewards, data, asked, rows=pairs.pairs)
    if already_complete(files, missing := yet_to_write(files, record)):
        return
    rows = named_rows(pairs.pairs, data.dataset_train_split, data, flag="--pairs")
    found = [
        evaluate_reward(
            named(name, rewards),
            rows,
            by=pairs.by,
            subsets=pairs.subsets,
            as_messages=pairs.as_messages,
            name=short_name(name),
            worst=max(pairs.worst, 1),
            max_completion_length=max_completion_length,
            seed=seed,
        )
        for name in rewards.reward_funcs
    ]
    found[0].print(*found[1:], worst=pairs.worst)
    write = {"png": _png, "json": _json, "output": _parquet}
    for flag, path in missing.items():
        with written_whole(path) as partial:
            write[flag](Path(partial), found, record)
        print(path)


def _given(options: object, passed: Iterable[str] = ()) -> Iterable[str]:
    """Names of the options that are not at their defaults."""
    return (
        name for name, value in defaults_of(options).items() if getattr(options, name) != value and name not in passed
    )


def _png(path: Path, found: list[RewardEvaluation], record: dict[str, Any]) -> None:
    found[0].save_png(path, *found[1:])
    add_to_png(path, record)


def _json(path: Path, found: list[RewardEvaluation], record: dict[str, Any]) -> None:
    first = found[0]
    said = [
        each.to_dict() | {"compared_with_first": None if each is first else _compared(each, first)} for each in found
    ]
    path.write_text(
        json.dumps([each | {COMMAND: record} for each in said], indent=1, ensure_ascii=False, allow_nan=False),
        encoding="utf-8",
    )


def _compared(one: RewardEvaluation, first: RewardEvaluation) -> dict[str, dict[str, float | None]]:
    """Errors of a single row are unknown, and JSON has no NaN."""
    return {
        measure: {name: value if isfinite(value) else None for name, value in found.items()}
        for measure, found in one.compare(first).items()
    }


def _parquet(path: Path, found: list[RewardEvaluation], record: dict[str, Any]) -> None:
    parts: list[Dataset] = [each.pairs.add_column("reward", [each.name] * len(each.pairs)) for each in found]
    concatenate_datasets(parts).to_parquet(path)
    add_to_parquet(path, record)
