"""Direct RLAIF: a language model's grade of each completion as its reward."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trl_ext.ai_feedback.likert_judge import Judge, LikertJudge, given_judge
from trl_ext.ai_feedback.likert_prompts import Asked, asked_of, checked_template, filled, likert_template
from trl_ext.ai_feedback.likert_scale import mean_grades, scores_of, spread_within
from trl_ext.rewards.reward_columns import Columns, check_counts, checked_references
from trl_ext.sequences.prompt_rows import check_completions, check_prompts
from trl_ext.sequences.texts import Text
from trl_ext.trainer_kit.config_checks import check_config
from trl_ext.trainer_kit.device import checked_device
from trl_ext.trainer_kit.option_rules import AT_LEAST_1, Rule

LEAST_MASS = 0.5  # on the ten grades, below which the judge would rather say something else
LEAST_SPREAD = 0.01  # of s within prompts
SAID = Rule(fits=lambda text: bool(text.strip()), expected="a text that says something")
RULES = {"batch_size": AT_LEAST_1, "max_length": AT_LEAST_1, "rubric": SAID, "template": SAID, "name": SAID}


@dataclass(frozen=True)
class LikertReward:
    """A causal LM's grade of a completion, read off its log-probabilities: direct RLAIF (Lee et al., 2023, arXiv:2309.00267).

        s = Σ i · P(i) / Σ P(i)    over the grades i = 1, …, 10, with which the judge would begin its answer
        reward = (s − 5.5) / 4.5   in [−1, 1]

    No reward model is trained and nothing is sampled: one pass per completion. With a chat template the question is a user's
    turn, else it is text. Where "10" is two tokens, P(10) = P("1") · P("0" | "1"), and P(1) is what remains of P("1").

        LikertReward("my-judge")                                            # any causal LM, or an adapter of one
        LikertReward(base.policy(init_from="my-judge"))                     # a role of a SharedBase
        LikertReward(model, tokenizer=tokenizer, rubric="Is it polite?", name="polite")

    Logs `<name>/mass`, the mean of Σ P(i): where it is small, the judge would rather say something else, and s means little.
    And `<name>/spread`, the mean deviation of s among completions of one prompt: without it there is nothing to learn. Each is
    warned of once.

    Args:
        model: A causal LM, plain or with an adapter; or the path or hub id of either, loaded on first use, once per process.
        tokenizer: The judge's; None: the one beside it.
        rubric: What a good answer is, in any language.
        reference: Whether the column `reference` has a right answer, to compare with.
        template: A question of your own, with the placeholders {prompt}, {completion}, and {rubric} and {reference} where
            those are given; it ends where a number from 1 to 10 follows. None: one in English.
        name: What the reward is logged as.
        batch_size: Completions per pass.
        max_length: Longest question in tokens; the longest of its texts loses its end, or the prompt its beginning, which is
            warned of once. None: the judge's window.
        device: Of a judge given by path; None: this process's.
    """

    model: Judge | str | os.PathLike
    _: KW_ONLY
    tokenizer: PreTrainedTokenizerBase | None = None
    rubric: str | None = None
    reference: bool = False
    template: str | None = None
    name: str = "likert"
    batch_size: int = 8
    max_length: int | None = None
    device: str | torch.device | None = None

    def __post_init__(self):
        check_config(self, RULES)
        checked_template(self._template, rubric=self.rubric, reference=self.reference, call="LikertReward")
        if self.device is not None:
            checked_device(self.device, call=f"LikertReward(device={str(self.device)!r})")
        if not isinstance(self.model, str | os.PathLike):
            self._judge()  # so that what is none is refused at once
        object.__setattr__(self, "_warned", set())

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self,
        *,
        prompts: list[Text],
        completions: list[Text],
        reference: list[str] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float]:
        """One reward in [−1, 1] per completion; NaN where the judge's probabilities are."""
        read = {"reference": reference} if self.reference else {}
        check_counts({"prompts": prompts, "completions": completions} | read, call="LikertReward")
        check_prompts(prompts, call="LikertReward", column="prompts", may_be_empty=True)
        check_completions(prompts, completions, call="LikertReward", column="completions")
        references = self._references(reference, range(len(prompts)))
        asked = [asked_of(*texts) for texts in zip(prompts, completions, references, strict=True)]
        if not asked:
            return []
        log_probs, cut = self._judge().log_probs(asked)
        grades = mean_grades(log_probs)
        self._tell(asked, log_probs.logsumexp(1).exp(), grades, cut, log_metric)
        return scores_of(grades).tolist()

    def held_model(self) -> Judge:
        """The judge; one at a path is loaded."""
        return self._judge().model

    def check_columns(self, columns: Columns, rows: Sequence[int]) -> None:
        """Raise a ValueError where a reference is missing, or the judge, or it has no grades."""
        given = columns.get("reference")
        self._references(given and [given[i] for i in rows], rows)
        if rows:
            self._judge().log_probs([Asked("Why?", "So.", "So.")])

    @property
    def _template(self) -> str:
        own = self.template or likert_template(rubric=self.rubric is not None, reference=self.reference)
        return own.rstrip()

    def _judge(self) -> LikertJudge:
        return LikertJudge(
            *given_judge(self.model, self.tokenizer, self.device), self._question, self.max_length, self.batch_size
        )

    def _question(self, asked: Asked) -> str:
        return filled(self._template, asked, self.rubric)

    def _references(self, reference: Sequence | None, rows: Sequence[int]) -> Sequence[str | None]:
        """What stands in the column in some rows; None for each where it is not read."""
        if not self.reference:
            return [None] * len(rows)
        missing = "right answers, and there is none. Add it, or leave reference=True out."
        places = (f"in row {row}" for row in rows)
        call = "LikertReward(reference=True)"
        return checked_references(reference, places, call=call, missing=missing, instead="drop such rows")

    def _tell(self, asked: list[Asked], masses: Tensor, grades: Tensor, cut: int, log_metric: Callable | None) -> None:
        """Log the mass on the grades and the spread of s within prompts, and warn once of what is wrong."""
        mass = masses.nanmean().item()
        spread = spread_within(grades.tolist(), [each.prompt for each in asked], [each.completion for each in asked])
        if log_metric is not None:
            log_metric(f"{self.name}/mass", mass)
            if spread is not None:
                log_metric(f"{self.name}/spread", spread)
        if mass < LEAST_MASS:
            self._warn_once(
                "mass",
                f"the judge puts {mass:.1%} on the ten grades and would rather say something else, so that they mean little. "
                "Give a template that ends where a number follows, or a judge that does as it is asked",
            )
        if spread is not None and spread < LEAST_SPREAD:
            self._warn_once(
                "spread",
                f"s deviates by {spread:.2g} among completions of one prompt, and without a spread there is nothing to learn. "
                "Give a rubric that tells them apart, or another judge",
            )
        if cut:
            self._warn_once(
                "length",
                f"{cut} of {len(asked)} questions are too long for the judge or max_length={self.max_length}, and lose the "
                "beginning of the prompt, or the end of completion or reference, whichever is longest. Shorten them",
            )

    def _warn_once(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"LikertReward {self.name!r}: {text}; said once.", stacklevel=4)
