"""What a reward gives to texts that are made to fool it, beside an honest answer. R rows, B baskets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from datasets import Dataset
from rich.table import Column, Table

from trl_ext.diagnostics.baskets import HONEST, UNENDED, gaming_texts
from trl_ext.diagnostics.text_signs import prompt_text
from trl_ext.rewards.checked_reward import reward_name
from trl_ext.rewards.reward_callables import Reward, reward_functions
from trl_ext.rewards.reward_columns import check_all_columns
from trl_ext.rewards.routed_product import watched_factors
from trl_ext.rewards.weighted_rewards import call_all
from trl_ext.sequences.prompt_rows import check_prompts, one_split
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import AT_LEAST_1, Rule
from trl_ext.trainer_kit.resampling import BEYOND_CHANCE
from trl_ext.trainer_kit.seeds import seeded

PENALTY = Rule(0.0, expected="what a text loses, a finite number of 0 or more")
WIDEST = len("punctuation")  # the longest word of a basket's name: names are wrapped, and never cut


@dataclass(frozen=True)
class Probe:
    """What one reward gave.

    Args:
        name: The reward's.
        scores: By basket, one per row; None where the reward does not apply.
        factors: By factor, then as the scores; of a product of factors, else empty.
    """

    name: str
    scores: dict[str, list[float | None]]
    factors: dict[str, dict[str, list[float | None]]]

    @property
    def rank(self) -> int:
        """Of the honest answer's mean among the baskets', from 1 on; the worst among equals."""
        means = {basket: mean_of(values) for basket, values in self.scores.items()}
        return sum(mean is not None and mean >= means[HONEST] for mean in means.values())

    @property
    def fooled_by(self) -> list[str]:
        """Baskets that earn more than the honest answer to the same rows, beyond chance: by two standard errors of the difference."""
        found = []
        for basket in self.scores:
            gaps = self.gaps(basket)
            error = stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
            if gaps and basket != HONEST and fmean(gaps) > BEYOND_CHANCE * error and fmean(gaps) > 0:
                found.append(basket)
        return found

    def gaps(self, basket: str) -> list[float]:
        """Its score less the honest answer's, row by row."""
        pairs = zip(self.scores[basket], self.scores[HONEST], strict=True)
        return [score - honest for score, honest in pairs if score is not None and honest is not None]

    def wins(self, basket: str) -> float | None:
        """Share of rows where it earns more than the honest answer."""
        gaps = self.gaps(basket)
        return fmean(gap > 0 for gap in gaps) if gaps else None

    def table(self) -> Table:
        """A line per basket, best paid first: score ± standard error, how often above the honest answer, each factor."""
        names = ("", self.name, "above honest", *self.factors)
        columns = (Column(name, overflow="fold", min_width=0 if name else WIDEST) for name in names)
        table = Table(*columns, title_justify="left", title=f"{self.name}: {self.said()}")
        for basket in sorted(self.scores, key=lambda basket: -(mean_of(self.scores[basket]) or 0.0)):
            wins = "" if basket == HONEST else f"{self.wins(basket):.0%}" if self.gaps(basket) else "·"
            factors = (_cell(values[basket]) for values in self.factors.values())
            table.add_row(basket, _cell(self.scores[basket], error=True), wins, *factors)
        return table

    def said(self) -> str:
        """Where the honest answer stands, and what is paid better."""
        fooled = ", ".join(self.fooled_by) or "none of these"
        return f"the honest answer is number {self.rank} of {len(self.scores)}; fooled by {fooled}"


def probe_reward(
    reward: Reward,
    rows: Dataset | Iterable[Mapping[str, Any]],
    *,
    honest: str = "reference",
    words: int = 150,
    missing_eos_penalty: float = 0.0,
    max_completion_length: int | None = None,
) -> Probe:
    """Score gaming texts beside an honest answer to each prompt.

    >>> from trl_ext import LengthIncentive
    >>> probe_reward(LengthIncentive(), [{"prompt": "Where is it?", "reference": "Here."}], words=40).rank  # of 10
    9

    Args:
        reward: A function in TRL's protocol, a reward model, its path.
        rows: With `prompt`, an honest answer, and what else the reward reads.
        honest: Column with the honest answer: text.
        words: Length of the long texts.
        missing_eos_penalty: PPO's: what a text loses that never ends and was cut, as the endless list and the repeated sentence.
        max_completion_length: The trainer's, which an `R3Reward` without one takes as its L.

    Raises:
        ValueError: For rows without prompts or honest answers, and what the reward refuses or never scores.
    """
    words = checked("probe_reward", "words", words, int, AT_LEAST_1)
    missing_eos_penalty = checked("probe_reward", "missing_eos_penalty", missing_eos_penalty, float, PENALTY)
    functions = reward_functions([reward], max_completion_length=max_completion_length, call="probe_reward")
    one_split(rows, call="probe_reward(rows=…)")
    rows = [dict(row) for row in rows]
    _check_rows(rows, honest)
    texts = [gaming_texts(row["prompt"], row[honest], words=words) for row in rows]
    scores, factors = {}, {}
    for basket in texts[0]:
        columns = _columns(rows, [of_row[basket] for of_row in texts], ended=basket not in UNENDED)
        others = {name: values for name, values in columns.items() if name not in ("prompts", "completions")}
        check_all_columns(functions, others, range(len(rows)), call="probe_reward(…)")
        with watched_factors() as seen, seeded(0):
            (found,) = call_all(functions, columns)
        charge = missing_eos_penalty if basket in UNENDED else 0.0
        scores[basket] = [None if score is None else score - charge for score in found]
        for name, values in (seen[0] if seen else {}).items():
            factors.setdefault(name, {})[basket] = values
    if mean_of(scores[HONEST]) is None:
        raise ValueError(
            f"probe_reward: {reward_name(functions[0])!r} gave None to every honest answer, so there is nothing to compare "
            "with. Give rows that it applies to."
        )
    return Probe(reward_name(functions[0]), scores, factors)


def _columns(rows: list[dict[str, Any]], texts: list[str], *, ended: bool) -> dict[str, Any]:
    """What the reward gets: the texts in the form of their prompts."""
    names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "completion"))
    columns = {name: [row.get(name) for row in rows] for name in names}
    completions = [
        text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
        for row, text in zip(rows, texts, strict=True)
    ]
    given = {
        "prompts": [row["prompt"] for row in rows],
        "completions": completions,
        "completion_ended": [ended] * len(rows),
    }
    unheard = {"trainer_state": None, "log_metric": lambda *_: None, "log_extra": lambda *_: None}
    return columns | given | unheard


def _check_rows(rows: list[dict[str, Any]], honest: str) -> None:
    if not rows:
        raise ValueError("probe_reward(rows=…): there are none. Give at least one, better fifty.")
    check_prompts([row.get("prompt") for row in rows], call="probe_reward(rows=…)")
    for number, row in enumerate(rows):
        if not isinstance(row.get(honest), str) or not row[honest].strip():
            raise ValueError(
                f"probe_reward(rows=…): expected an honest answer in the column {honest!r}, got {row.get(honest)!r} in row "
                f"{number} ({prompt_text(row['prompt'])[:60]!r}). Fill it in, or name another column by honest=."
            )


def mean_of(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def _cell(values: list[float | None], *, error: bool = False) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "·"
    return f"{fmean(there):.3g}" + (f" ± {stdev(there) / len(there) ** 0.5:.2g}" if error and len(there) > 1 else "")
