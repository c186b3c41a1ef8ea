"""One look at a reward: pairs whose better completion is known, what it gives to both, and how often that is right."""

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import numpy as np
from datasets import Dataset

from trl_ext.reward_evaluation.pair_measures import (
    beyond_length,
    calibration,
    group_table,
    length_measures,
    measured_sums,
    notes_on,
)
from trl_ext.reward_evaluation.pair_rows import Compared, Pairs, chosen_groups, in_styles, read_pairs
from trl_ext.reward_evaluation.pair_statistics import log_losses, reliability
from trl_ext.reward_evaluation.scored_pairs import ScoredPairs
from trl_ext.reward_evaluation.shown_findings import RewardEvaluation
from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.rewards.reward_callables import Reward, reward_functions
from trl_ext.rewards.reward_columns import GIVEN, SAMPLED, check_all_columns, holders_in
from trl_ext.rewards.weighted_rewards import call_all
from trl_ext.sequences.texts import text_of
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.fingerprints import rows_fingerprint
from trl_ext.trainer_kit.option_rules import AT_LEAST_1
from trl_ext.trainer_kit.seeds import check_seed, seeded

CALL = "evaluate_reward(pairs=…)"


def evaluate_reward(
    reward: Reward,
    pairs: Pairs,
    *,
    by: str | Sequence[str] | None = None,
    subsets: Sequence[str] | None = None,
    as_messages: bool = False,
    name: str | None = None,
    worst: int = 10,
    max_completion_length: int | None = None,
    seed: int = 0,
) -> RewardEvaluation:
    """How often a reward prefers the better completion, how sure that is, and how much of it is length.

        one, other = (evaluate_reward(path, "pairs.jsonl") for path in ("rm", "rm-imitation"))
        one.print(other)  # both, their difference ± and what so many pairs could have shown
        one.save_png("rewards.png", other)

    >>> from trl_ext import LengthIncentive
    >>> pairs = [{"prompt": "Where?", "chosen": " In Seoul.", "rejected": " No."}]
    >>> evaluate_reward(LengthIncentive(), pairs).summary["accuracy"]
    1.0

    Args:
        reward: A function in TRL's protocol, a reward model, an adapter of one, the path or hub id of either, a
            `LearnedReward`, or a role of a SharedBase.
        pairs: A .jsonl, .json, .csv or .parquet file, a Dataset, a data frame or rows: `prompt`, `chosen`, `rejected`, text or
            messages. Several completions in `rejected` (RewardBench): right if the chosen one is above all; in both
            columns: if all chosen ones are. Three of both in each row (RM-Bench): its easy, normal and hard accuracies.
            Other columns reach the reward.
        by: Columns by whose values accuracy is shown; None: of `source`, `subset` and `domain` those that are there.
        subsets: Values of these columns whose rows are read; None: all rows.
        as_messages: Read text as what a user asks and an assistant answers, through the reward model's chat template, as
            RewardBench does.
        name: What the reward is called in tables; None: its own name.
        worst: How many of the pairs that it gets most wrong are kept.
        max_completion_length: The trainer's, which an `R3Reward` without one takes as its L.
        seed: Of rewards that draw random numbers.

    Raises:
        ValueError: For rows that do not say which completion is the better, a subset that there is not, columns that the
            reward lacks, and a reward that gives no finite numbers, or None to all.
    """
    worst = checked("evaluate_reward", "worst", worst, int, AT_LEAST_1)
    as_messages = checked("evaluate_reward", "as_messages", as_messages, bool)
    max_completion_length = checked(
        "evaluate_reward", "max_completion_length", max_completion_length, int | None, AT_LEAST_1
    )
    check_seed(seed, call=f"evaluate_reward(seed={seed!r})")
    by, subsets = ([each] if isinstance(each, str) else each for each in (by, subsets))
    compared, alike = read_pairs(pairs, as_messages=as_messages, call=CALL)
    by, compared = chosen_groups(compared, by, subsets, call="evaluate_reward")
    (function,) = reward_functions(
        [_one(reward)], max_completion_length=max_completion_length, call="evaluate_reward", keep_invalid=True
    )
    with seeded(seed):
        scores = _scores(function, compared)
    scored = ScoredPairs(compared, scores, in_styles(compared))
    notes = notes_on(scored, len(alike)) + _template_note(function, compared)
    return _evaluation(name or function.__name__, scored, by, worst, notes)


def _one(reward: Any) -> Any:
    if isinstance(reward, list | tuple) or reward is None:
        raise ValueError(
            f"evaluate_reward(reward={type(reward).__name__}): expected one reward. Evaluate each, and compare what comes."
        )
    return reward


def _scores(function, compared: list[Compared]) -> list[list[float | None]]:
    """Of each row's completions; all are asked for at once, those of one prompt next to each other."""
    texts = [(each, text) for each in compared for text in each.completions]
    names = dict.fromkeys(name for each in compared for name in each.others if name not in {*GIVEN, *SAMPLED})
    columns = {name: [each.others.get(name) for each, _ in texts] for name in names}
    check_all_columns([function], columns, range(len(texts)), call=CALL)
    given = {"prompts": [each.prompt for each, _ in texts], "completions": [text for _, text in texts]}
    unheard = {"trainer_state": None, "log_metric": lambda *_: None, "log_extra": lambda *_: None}
    (flat,) = call_all([function], columns | given | unheard)
    for (each, text), score in zip(texts, flat, strict=True):
        if score is not None and isnan(score):
            raise ValueError(
                f"{CALL}: {function.__name__!r} gave no finite number to a completion of row {each.row} ({text_of(text)[:60]!r}). "
                "Mend it, or return None where it does not apply."
            )
    if all(score is None for score in flat):
        raise ValueError(
            f"{CALL}: {function.__name__!r} gave None to every completion, so there is nothing to compare. Give pairs that it "
            "applies to."
        )
    parts = iter(flat)
    found = [[next(parts) for _ in each.completions] for each in compared]
    if all(None in row for row in found):
        raise ValueError(
            f"{CALL}: {function.__name__!r} scores no row's completions all. Give pairs that it applies to."
        )
    return found


def _template_note(function: Callable, compared: list[Compared]) -> list[str]:
    learned = [holder for holder in holders_in(function) if isinstance(holder, LearnedReward)]
    templates = [each.tokenizer.chat_template for each in learned]
    if not any(templates) or not isinstance(compared[0].prompt, str):
        return []
    return [
        "the pairs are text, and the model has a chat template, which they do not pass: if it learned from messages, say as_messages"
    ]


def _evaluation(name: str, scored: ScoredPairs, by: list[str], worst: int, notes: list[str]) -> RewardEvaluation:
    groups, (calibrated, bins) = group_table(scored, by), calibration(scored)
    summary = dict(groups["all"]) | {"ties": int((scored.right == 0.5).sum()), "pairs": len(scored.gaps)}
    summary |= {f"accuracy_{level}": groups[level]["accuracy"] for level in scored.right_by_level}
    shorter = scored.longer_by < 0
    sums = measured_sums(scored, by)
    totals = {key: each.sum(0) for key, each in sums.items()}
    summary["accuracy_chosen_shorter"] = _ratio(totals["accuracy, chosen is shorter"])
    summary["rows_chosen_shorter"] = len(np.unique(scored.rows[shorter]))
    summary |= {"log_loss": _ratio(totals["log_loss"])} | calibrated | length_measures(scored)
    pairs = [_pair(scored, place) for place in range(len(scored.places))]
    order = sorted(range(len(pairs)), key=lambda place: pairs[place]["gap"])
    found = [pairs[place] for place in order[:worst] if pairs[place]["gap"] < 0]
    settings = {"pairs": _fingerprint(scored), "columns by which accuracy is shown": by}
    rows = Dataset.from_list(pairs)
    model = beyond_length(scored)
    return RewardEvaluation(name, summary, groups, reliability(bins), model, found, rows, notes, settings, sums)


def _pair(scored: ScoredPairs, place: int) -> dict[str, Any]:
    row, one, other = scored.places[place]
    each, scores, lengths = scored.compared[row], scored.scores[row], scored.lengths[row]
    texts = {"prompt": each.prompt, "chosen": each.completions[one], "rejected": each.completions[other]}
    numbers = {"gap": float(scored.gaps[place]), "log_loss": float(log_losses(scored.gaps[place : place + 1])[0])}
    numbers |= {"chosen_score": scores[one], "rejected_score": scores[other]}
    return {"row": each.row, **numbers, "chosen_length": lengths[one], "rejected_length": lengths[other], **texts}


def _fingerprint(scored: ScoredPairs) -> str:
    rows = ({"row": x.row, "prompt": x.prompt, "chosen": x.chosen, "rejected": x.rejected} for x in scored.compared)
    return rows_fingerprint(["pairs"], rows)


def _ratio(totals: np.ndarray) -> float | None:
    return float(totals[0] / totals[1]) if totals[1] > 0 else None
