"""What an ensemble can be made of."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from trl_ext.rewards.ensemble_standard import COMBINES, VARIANCE, VARIANCE_WEIGHT, Combine
from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import Rule


def check_same_ends(
    members: Sequence, completion_ids: Sequence[Sequence[int]] | None, completion_ended: Sequence[bool] | None
) -> None:
    """Raise a ValueError where members would take one completion for ended and for cut: they would read other texts.

    Each reads the text by its own tokenizer, so that those may differ; the ids are the policy's, and where nothing else tells,
    a member looks there for its own end tokens.
    """
    learned = [member for member in members if isinstance(member, LearnedReward)]
    if completion_ids is None or completion_ended is not None or len({member.eos_token_ids for member in learned}) < 2:
        return
    for row, ids in enumerate(completion_ids):
        ends = [len(ids) > 0 and int(ids[-1]) in member.eos_token_ids for member in learned]
        if len(set(ends)) > 1:
            one, other = learned[ends.index(True)], learned[ends.index(False)]
            raise ValueError(
                f"EnsembleReward: completion {row} ends with the token {int(ids[-1])}, which {one.__name__!r} takes for its end "
                f"and {other.__name__!r} does not: they have different tokenizers, and the ids are the policy's. Give both as "
                "LearnedReward(…, eos_token_ids=…) with the policy's end tokens."
            )


def checked_members(members: object) -> tuple[Callable, ...]:
    """The members, models as `LearnedReward`s; a ValueError for fewer than two, and for what is none."""
    if not isinstance(members, list | tuple) or len(members) < 2:
        given = f"{len(members)}" if isinstance(members, list | tuple) else f"{members!r:.60}"
        raise ValueError(
            f"EnsembleReward(members=…): expected a list of at least 2 reward models or functions, got {given}. Give more, or "
            "the one itself as reward."
        )
    found = tuple(LearnedReward(one) if isinstance(one, str | os.PathLike | nn.Module) else one for one in members)
    bad = [one for one in found if not callable(one) or isinstance(one, type)]
    if bad:
        raise ValueError(
            f"EnsembleReward(members=…): {bad[0]!r:.60} is neither a function nor a reward model nor the path of one. Give one."
        )
    return found


def checked_weight(combine: Combine, weight: float | None) -> float | None:
    """λ, or a ValueError for one that is none, or that nothing would read."""
    checked("EnsembleReward", "combine", combine, str, Rule(words=COMBINES))
    weight = checked("EnsembleReward", "variance_weight", weight, float | None, Rule(0.0))
    if combine == VARIANCE:
        return VARIANCE_WEIGHT if weight is None else weight
    if weight is not None:
        raise ValueError(
            f"EnsembleReward(combine={combine!r}, variance_weight={weight}): only combine={VARIANCE!r} charges for variance. "
            "Leave the weight out, or take that."
        )
    return None


def read_ensemble(path: str | os.PathLike) -> dict:
    """What `EnsembleReward.save` wrote; a ValueError for anything else."""
    try:
        kept = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"EnsembleReward.load({os.fspath(path)!r}): cannot be read ({error}). Give what `save` wrote."
        ) from error
    if not _is_an_ensembles(kept):
        raise ValueError(
            f"EnsembleReward.load({os.fspath(path)!r}): it is no ensemble's file. Give what `save` wrote."
        )
    return kept


def _is_an_ensembles(kept: object) -> bool:
    """Whether it has what `save` writes; its values are judged where they are taken."""
    needed = {"combine", "variance_weight", "members", "made_of", "standard"}
    if not isinstance(kept, dict) or not needed <= kept.keys():
        return False
    standard, lists = kept["standard"], [kept["members"], kept["made_of"]]
    if standard is not None:
        names = ("means", "deviations", "correlations", "count")
        if not isinstance(standard, dict) or not standard.keys() >= {*names}:
            return False
        rows = standard["correlations"]
        lists += [standard["means"], standard["deviations"], rows, *(rows if isinstance(rows, list) else [])]
    return all(isinstance(each, list) for each in lists)
