"""Margins of an ensemble: how sure several rewards are of each pair, as Secrets of RLHF, Part II has it."""

from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from torch import Tensor

from trl_ext.reward_modeling.pair_labels import MARGIN
from trl_ext.reward_modeling.preference_data import check_pairs
from trl_ext.rewards.reward_callables import Reward, reward_functions
from trl_ext.rewards.reward_columns import check_all_columns
from trl_ext.rewards.reward_fingerprints import check_distinct
from trl_ext.rewards.weighted_rewards import call_all
from trl_ext.sequences.preference_rows import SIDES, pair_prompt

UNHEARD = {"trainer_state": None, "log_metric": lambda *_: None, "log_extra": lambda *_: None}


def add_margins(
    dataset: Dataset, rewards: Sequence[Reward], *, standardize: bool = False, show: bool = True
) -> Dataset:
    """The pairs with TRL's column `margin`, û = the mean over an ensemble of r(chosen) − r(rejected).

        L = −log σ(Δ − û)        (arXiv:2401.06080)

    A pair of which the ensemble is sure must be told further apart; û < 0 says that it takes the label for wrong. Where
    members are reward models, train them apart from each other (head seed, order and draw of the data) and, best, on other
    pairs than these.

    >>> pairs = Dataset.from_dict({"prompt": ["2 + 2?"], "chosen": ["Four, of course"], "rejected": ["5"]})
    >>> def letters(completions, **_): return [float(len(text)) for text in completions]
    >>> def words(completions, **_): return [float(len(text.split())) for text in completions]
    >>> add_margins(pairs, [letters, words], show=False)["margin"][:]  # (14 + 2) / 2
    [8.0]

    Args:
        dataset: Pairs as `ImitationRewardTrainer` reads them, text or messages, without `margin`.
        rewards: Two or more members: functions in TRL's protocol, reward models, paths.
        standardize: Divide each member's differences by their deviation over the data set first, so that û is in deviations:
            for members in units of their own. Otherwise û is in the members' units, which must be those of the model that
            learns from it: log-odds, as Bradley–Terry reward models have them.
        show: Whether to print their mean, and the share of negative ones.

    Raises:
        ValueError: For fewer than two members, one that is there twice, and one that gives a completion no score.
    """
    call = "add_margins"
    _check_members(rewards, call)
    columns = dataset.column_names if isinstance(dataset, Dataset) else []
    if MARGIN in columns or not set(SIDES) <= set(columns) or not len(dataset):
        raise ValueError(
            f"{call}: expected a datasets.Dataset of at least one row with the columns 'chosen' and 'rejected', and without "
            f"'{MARGIN}', got {type(dataset).__name__} with {columns}. Rename, drop one with `remove_columns`, or make one of "
            "a list with Dataset.from_list(rows), of a file with load_dataset."
        )
    functions = reward_functions(list(rewards), max_completion_length=None, call=call)
    check_distinct(functions, call=f"{call}(rewards=…)")
    differences = _differences(functions, check_pairs(dataset, columns, "given", call=call), call)
    if standardize:
        differences = differences / _deviations(differences, functions, call)
    margins = differences.mean(0)
    if show:
        share = (margins < 0).float().mean().item()
        print(
            f"{call}: {len(margins)} margins of {len(functions)} rewards, mean {margins.mean():.3g}, {share:.0%} negative"
        )
    return dataset.add_column(MARGIN, margins.tolist())


def _check_members(rewards: object, call: str) -> None:
    members = list(rewards) if isinstance(rewards, list | tuple) else [rewards]
    if len(members) < 2:
        raise ValueError(f"{call}(rewards=…): expected 2 members or more, got {len(members)}. Train another.")


def _differences(functions: list[Callable], pairs: Dataset, call: str) -> Tensor:
    """r(chosen) − r(rejected) of each member and pair, `(M, N)`; the two completions are next to each other."""
    prompts, completions = [], []
    for row in pairs.select_columns([name for name in ("prompt", *SIDES) if name in pairs.column_names]):
        prompt, chosen, rejected = pair_prompt(row)
        prompts += [prompt] * 2
        completions += [chosen, rejected]
    others = [name for name in pairs.column_names if name not in ("prompt", *SIDES)]
    columns = {name: [value for value in pairs[name][:] for _ in SIDES] for name in others}
    given = {"prompts": prompts, "completions": completions, **columns}
    check_all_columns(functions, given, range(len(prompts)), call=call)
    scores = call_all(functions, given | UNHEARD)
    for function, own in zip(functions, scores, strict=True):
        if None in own:
            place = own.index(None)
            raise ValueError(
                f"{call}: {function.__name__!r} gives the {SIDES[place % 2]} completion of row {place // 2} no score, so there "
                "is no margin. Drop such rows with `dataset.filter`, or leave the member out."
            )
    chosen, rejected = torch.tensor(scores, dtype=torch.float64).view(len(functions), -1, 2).unbind(-1)
    return chosen - rejected


def _deviations(differences: Tensor, functions: list[Callable], call: str) -> Tensor:
    deviations = differences.std(1, correction=0, keepdim=True)
    for function, deviation in zip(functions, deviations.flatten().tolist(), strict=True):
        if not deviation:
            raise ValueError(
                f"{call}(standardize=True): the differences of {function.__name__!r} are all alike, so they have no deviation. "
                "Leave the member out, or leave standardize at False."
            )
    return deviations
