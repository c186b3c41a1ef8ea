"""Preference labels from a model: which of two completions is the better, and how sure that is."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.ai_feedback.endpoint_judge import EndpointJudge
from trl_ext.ai_feedback.judging import Judge, Judgement, UnfitQuestion, is_judgement, judgement_of
from trl_ext.ai_feedback.model_judge import ModelJudge
from trl_ext.ai_feedback.preambles import Preamble, preamble_of
from trl_ext.ai_feedback.preference_pairs import Pair, preference_pairs
from trl_ext.ai_feedback.preference_questions import Example, Question, Wording, checked_examples
from trl_ext.ai_feedback.preference_report import PreferenceReport, report_of, warn_of
from trl_ext.generation.endpoint_errors import RefusedRequest
from trl_ext.generation.endpoint_log_probs import EndpointLogProbs
from trl_ext.generation.protocol import Sampling
from trl_ext.sequences.causal_lms import Model, causal_lm
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.sequences.vocabulary import check_vocabulary
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.kept_lines import KeptLines, kept_file
from trl_ext.trainer_kit.option_rules import AT_LEAST_1

CALL = "PreferenceLabeler"


class Progress(Protocol):
    """Who is told how far a labelling is."""

    def begin(self, total: int, done: int) -> None:
        """So many questions, of which some are kept from before."""
        ...

    def advance(self, tokens: int) -> None:
        """One more is answered, and what that cost."""
        ...


class PreferenceLabeler:
    """Which of two completions is the better, by a model's log-probabilities of two answers (RLAIF, arXiv:2309.00267).

        P(first better) = ½ (σ(l₁ − l₂) + 1 − σ(l₁' − l₂'))        l: log p of "1" and "2"; ': with the two exchanged

    Both orders are asked, and their probabilities averaged: a liking for a place cancels, and the pair turned around gets
    1 − P exactly. Rows become `prompt`, `chosen`, `rejected` and `chosen_probability`, for `ImitationRewardTrainer`, which
    learns from soft labels, or TRL's `DPOTrainer`.

    Args:
        model: A causal LM, also a role of a `SharedBase`; its path or hub id; or `EndpointLogProbs(name, base_url)`.
        tokenizer: Of a model; None: the one beside it. With a chat template the question is a user's turn, else text.
        preamble: "summarisation", "helpfulness", "harmlessness", "helpfulness_korean"; a `Preamble`; or text in which
            {prompt}, {completion_1} and {completion_2} are replaced.
        examples: Pairs that are shown with their answers: (prompt, completion_1, completion_2, 1 or 2[, rationale]).
        rationale: Whether it gives its reasons first, and then the answer: slower, and better of large labelers only.
        max_rationale_length: Of the reasons, in tokens.
        temperature: Of the reasons; 0 takes the likeliest token.
        seed: Of the reasons.
        batch_size: Of a model: sequences of a pass, of which a pair has two; what all begin with is read once.

    Attributes:
        report: Of the last call: position bias, agreement with given labels, cost.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike | EndpointLogProbs,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        preamble: str | Preamble = "helpfulness",
        examples: Sequence[Example | tuple] = (),
        rationale: bool = False,
        max_rationale_length: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 16,
    ):
        rationale = checked(CALL, "rationale", rationale, bool)
        words = preamble_of(preamble, call=CALL)
        self.wording = Wording(words, checked_examples(examples, rationale=rationale, call=CALL), rationale)
        length = checked(CALL, "max_rationale_length", max_rationale_length, int, AT_LEAST_1)
        sampling = Sampling(num_generations=1, max_completion_length=length, temperature=temperature, seed=seed)
        self._reasons = sampling if rationale else None
        self._judge = _judge(model, tokenizer, checked(CALL, "batch_size", batch_size, int, AT_LEAST_1))
        self.report: PreferenceReport | None = None

    @property
    def name(self) -> str:
        """With all that labels depend on: the model's weights as they are now, the words, how reasons are drawn."""
        reasons = "" if self._reasons is None else f" {json.dumps(self._reasons.settings())}"
        return f"{self._judge.name} {self.wording.key}{reasons}"

    def label(
        self, dataset: Dataset | list[dict], *, keep: str | os.PathLike | None = None, progress: Progress | None = None
    ) -> Dataset:
        """The pairs with the likelier completion as `chosen`; equal completions are left out, with a warning.

        Args:
            dataset: Or a list of rows, with `prompt` and two completions, text or messages, as `completion_1` and `completion_2`, or as
                `chosen` and `rejected`, with which labels are then compared.
            keep: A .jsonl file to which answers are written as they come: the same call goes on after a kill or an error,
                and asks for the missing ones alone. An endpoint needs it.
            progress: Told of each answer.
        """
        pairs, judgements = self._judged(dataset, keep, progress)
        return Dataset.from_list(
            [pair.labelled(each.probability) for pair, each in zip(pairs, judgements, strict=True) if each is not None]
        )

    def judge(
        self, dataset: Dataset | list[dict], *, keep: str | os.PathLike | None = None, progress: Progress | None = None
    ) -> list[Judgement | None]:
        """Of each row what `label` makes its label of, both orders apart; None for equal completions."""
        return self._judged(dataset, keep, progress)[1]

    def _judged(
        self, dataset: Dataset | list[dict], keep: str | os.PathLike | None, progress: Progress | None
    ) -> tuple[list[Pair], list[Judgement | None]]:
        call, began = f"{CALL}.label", time.perf_counter()
        pairs = preference_pairs(dataset, call=call)
        differ = [pair for pair in pairs if not pair.is_equal]
        if not differ:
            raise ValueError(f"{call}: the completions of all {len(pairs)} pairs are equal. Give pairs that differ.")
        kept = self._kept(keep, call)
        try:
            found, asked, tokens = self._answered({_one_way(pair.question) for pair in differ}, kept, progress)
        except RefusedRequest as error:
            raise _of_row(error, differ, call) from None
        except UnfitQuestion as error:
            raise ValueError(f"{call}: row {_row(error.question, differ)}: {error}") from None
        judgements = [None if pair.is_equal else _of(pair.question, found) for pair in pairs]
        told = [each for each in judgements if each is not None]
        self.report = report_of(
            told,
            [pair.given for pair in differ],
            equal=len(pairs) - len(differ),
            asked=asked,
            tokens=tokens,
            seconds=time.perf_counter() - began,
        )
        warn_of(self.report, pairs, judgements, self.wording.preamble.answers, call=call)
        return pairs, judgements

    def _kept(self, keep: str | os.PathLike | None, call: str) -> KeptLines:
        name = self.name
        path = kept_file(keep, labeler=name, needed=self._judge.needs_file, call=call)
        return KeptLines(path, name, key="pair", is_whole=is_judgement, writer=f"{call}(keep={{}})")

    def _answered(
        self, questions: set[Question], kept: KeptLines, progress: Progress | None
    ) -> tuple[dict[Question, Judgement], int, int]:
        """Of each question once: what was kept, and the rest as it comes; how many were asked, and their tokens."""
        rows = {question: kept.of(_written(question)) for question in sorted(questions)}
        found = {question: _read(row) for question, row in rows.items() if row is not None}
        missing = [question for question, row in rows.items() if row is None]
        if progress is not None:
            progress.begin(len(rows), len(found))
        tokens = 0
        for question, judgement, cost in self._asked(missing):
            kept.add(_written(question), judgement._asdict())
            found[question] = judgement
            tokens += cost
            if progress is not None:
                progress.advance(cost)
        return found, len(missing), tokens

    def _asked(self, questions: list[Question]) -> Iterator[tuple[Question, Judgement, int]]:
        for i, answer in self._judge.answers(questions, self.wording, self._reasons):
            yield questions[i], judgement_of(answer), answer.tokens


def _judge(
    model: Model | str | os.PathLike | EndpointLogProbs, tokenizer: PreTrainedTokenizerBase | None, batch_size: int
) -> Judge:
    if isinstance(model, EndpointLogProbs):
        if tokenizer is not None:
            raise ValueError(f"{CALL}(EndpointLogProbs(…), tokenizer): the server has its own. Leave it out.")
        return EndpointJudge(model)
    module, place = causal_lm(model, call=CALL)
    tokenizer = tokenizer or tokenizer_beside(place, call=CALL)
    check_vocabulary(tokenizer, module.config, call=CALL)
    return ModelJudge(module, tokenizer, batch_size=batch_size)


def _of_row(error: RefusedRequest, pairs: list[Pair], call: str) -> RefusedRequest:
    """The server's refusal, with the row that it is of and what to do."""
    row, (prompt, completions) = _row(error.item, pairs), error.item
    return error.of(
        f"{call}: row {row}, of {len(prompt):,} characters of prompt and {sum(map(len, completions)):,} of completions,",
        "Where it is too long for the server's model, shorten or drop that row, give fewer examples, or serve the model with a "
        "larger window; a prompt is cut of a model in the process alone.",
    )


def _row(question: Question, pairs: list[Pair]) -> int:
    """The first that asks it, in whichever order."""
    return next(pair.row for pair in pairs if _one_way(pair.question) == question)


def _one_way(question: Question) -> Question:
    """The same for a pair and the pair turned around, which is asked once."""
    return question._replace(completions=tuple(sorted(question.completions)))


def _of(question: Question, found: dict[Question, Judgement]) -> Judgement:
    one_way = _one_way(question)
    return found[one_way] if one_way == question else found[one_way].turned()


def _written(question: Question) -> str:
    return json.dumps(question)


def _read(row: dict[str, Any]) -> Judgement:
    return Judgement(row["probability"], tuple(row["places"]), row["mass"], row["cut"])
