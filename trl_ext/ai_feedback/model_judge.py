"""A labeler in the process: a causal LM, whose log-probabilities are read without sampling."""

from collections.abc import Iterator
from math import isnan
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from trl_ext.ai_feedback.judging import Answer, UnfitQuestion
from trl_ext.ai_feedback.preference_questions import ORDERS, Question, Wording, context_number
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.sequences.causal_lms import Model, model_key
from trl_ext.sequences.grouped_choices import read_grouped
from trl_ext.sequences.option_log_probs import Choice, option_ids
from trl_ext.sequences.texts import Text, text_of
from trl_ext.sequences.token_ids import prompt_ids
from trl_ext.sequences.windows import model_window

BATCHES = (
    8  # of a part, of which what all begin with is read once; of reasons one, as all are written before an answer
)
SPARE = 8  # tokens that a chat template may write between a rationale and the ending


class _Fitted(NamedTuple):
    """A question whose prompt fits the window, and the tokens that it lost."""

    question: Question
    cut: int


class ModelJudge:
    """Reads both orders of a few pairs at a time, those of like length together.

    Args:
        model, tokenizer: A causal LM, also with an adapter or in 8 bits, and its tokenizer.
        batch_size: Sequences of a pass, of which a pair has two.
    """

    needs_file = False

    def __init__(self, model: Model, tokenizer: PreTrainedTokenizerBase, *, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.chat = tokenizer.chat_template is not None

    @property
    def name(self) -> str:
        return f"language model {model_key(self.model, self.tokenizer):08x}"

    def answers(
        self, questions: list[Question], wording: Wording, reasons: Sampling | None
    ) -> Iterator[tuple[int, Answer]]:
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt) + sum(map(len, questions[i][1])))
        if questions:  # what cannot be cut is told before anything is read
            self._fitted(max(questions, key=lambda question: sum(map(len, question.completions))), wording, reasons)
        size = max(self.batch_size * (BATCHES if reasons is None else 1) // 2, 1)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for place, answer in self._part([questions[row] for row in rows], wording, reasons):
                yield rows[place], answer

    def _part(
        self, questions: list[Question], wording: Wording, reasons: Sampling | None
    ) -> Iterator[tuple[int, Answer]]:
        """Each pair as soon as both its orders are read."""
        fitted = [self._fitted(question, wording, reasons) for question in questions]
        contexts = [wording.context(each.question, order, self.chat) for each in fitted for order in ORDERS]
        written = 0
        if reasons is not None:
            contexts, written = self._with_reasons(contexts, wording, reasons)
        choices = [option_ids(context, wording.options(self.chat), self.tokenizer) for context in contexts]
        pairs_of = [str(i // 2) for i in range(len(choices))]  # both orders of a long pair are read together
        found: dict[int, list[float]] = {}
        for number, log_probs in read_grouped(self.model, choices, pairs_of, batch_size=self.batch_size):
            found[number] = log_probs.tolist()
            pair = number - number % 2, number - number % 2 + 1
            if all(each in found and not any(map(isnan, found[each])) for each in pair):
                tokens, written = sum(_read(choices[each]) for each in pair) + written, 0
                yield pair[0] // 2, Answer([found[each] for each in pair], tokens, fitted[pair[0] // 2].cut)
        self._check_numbers(fitted, [any(map(isnan, found[number])) for number in range(len(choices))])

    def _with_reasons(self, contexts: list[Text], wording: Wording, reasons: Sampling) -> tuple[list[Text], int]:
        """The contexts behind rationales, and the tokens of these."""
        part = Part(0, tuple(map(context_number, contexts)), tuple(contexts))
        generator = TransformersGenerator(batch_size=self.batch_size)
        [(_, samples)] = generator.generate([part], reasons, Policy(self.model, self.tokenizer))
        found = [
            wording.behind(context, text_of(sample["completion"]))
            for context, sample in zip(contexts, samples, strict=True)
        ]
        return found, sum(len(sample["completion_ids"]) for sample in samples)

    def _fitted(self, question: Question, wording: Wording, reasons: Sampling | None) -> _Fitted:
        """Its prompt without as much of its beginning as does not fit the window; whole characters, mostly whole words."""
        window = model_window(self.model.config)
        if window is None:
            return _Fitted(question, 0)
        whole = question
        longest = before = self._longest(question, wording, reasons)
        while longest > window:
            count = len(self.tokenizer(question.prompt, add_special_tokens=False, verbose=False)["input_ids"])
            keep = int(len(question.prompt) * (1 - (longest - window) / max(count, 1))) - 1
            if keep <= 0:
                raise _too_long(whole, before, window)
            question = question._replace(prompt=question.prompt[-keep:])
            longest = self._longest(question, wording, reasons)
        return _Fitted(question, before - longest)

    def _longest(self, question: Question, wording: Wording, reasons: Sampling | None) -> int:
        """Tokens of the longer order, with its answer, and the most that its rationale may have."""
        contexts = [wording.context(question, order, self.chat) for order in ORDERS]
        if reasons is None:
            return max(
                len(choice.context) + max(map(len, choice.options))
                for choice in (option_ids(context, wording.options(self.chat), self.tokenizer) for context in contexts)
            )
        room = reasons.max_completion_length + SPARE
        return room + max(len(prompt_ids(wording.behind(context, ""), self.tokenizer)) for context in contexts)

    def _check_numbers(self, fitted: list[_Fitted], bad: list[bool]) -> None:
        if any(bad):
            first = fitted[bad.index(True) // 2].question.prompt[:60]
            raise ValueError(
                f"PreferenceLabeler: the model gives NaN for {sum(bad)} of {len(bad)} contexts, the first is of {first!r}. Load "
                "it in fp32 or bf16, or take another."
            )


def _read(choice: Choice) -> int:
    return len(choice.context) + max(map(len, choice.options)) - 1


def _too_long(question: Question, tokens: int, window: int) -> UnfitQuestion:
    return UnfitQuestion(
        question,
        f"the pair has {tokens} tokens, with preamble and examples, of which the model's window takes {window}, "
        f"and too few of them are its prompt's to be cut; its completions begin with {question.completions[0][:40]!r} and "
        f"{question.completions[1][:40]!r}. Drop such pairs, give fewer examples, or take another labeler.",
    )
