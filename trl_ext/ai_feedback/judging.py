"""What a labeler makes of a pair, as formulas, and who may be one."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from trl_ext.ai_feedback.preference_questions import Question, Wording
from trl_ext.generation.protocol import Sampling

EXACT = 2.0**52  # of its parts, p and 1 − p are both numbers that a computer has


class Judgement(NamedTuple):
    """What a labeler makes of a pair, seen in both orders.

    Args:
        probability: P(the first is better), mean over both orders; 1 − it for the pair turned around, exactly.
        places: P(the one in the first place is better), as given and turned around; of a labeler without a liking for a
            place they sum to 1.
        mass: Of both answers, mean over both orders; of an endpoint at most that.
        cut: Tokens that the prompt lost, to fit the window.
    """

    probability: float
    places: tuple[float, float]
    mass: float
    cut: int = 0

    def turned(self) -> "Judgement":
        """Of the same pair, the other one first."""
        return self._replace(probability=1 - self.probability, places=self.places[::-1])


class Answer(NamedTuple):
    """Of one question.

    Args:
        log_probs: log p of both answers, in each order.
        tokens: How many were read and written; of an endpoint those of all that was asked since the answer before.
        cut: Tokens that the prompt lost.
    """

    log_probs: Sequence[Sequence[float]]
    tokens: int
    cut: int = 0


class UnfitQuestion(ValueError):
    """A question that a labeler in the process cannot be asked; `question`: which."""

    def __init__(self, question: Question, said: str):
        super().__init__(said)
        self.question = question


class Judge(Protocol):
    """Who is asked; `chat`: as a chat, or for text to go on from."""

    chat: bool

    @property
    def name(self) -> str:
        """With all that its answers depend on."""
        ...

    @property
    def needs_file(self) -> bool:
        """Whether its answers are too dear to be lost with an error."""
        ...

    def answers(
        self, questions: list[Question], wording: Wording, reasons: Sampling | None
    ) -> Iterator[tuple[int, Answer]]:
        """Of each question its number and its answer, as they come, in any order; `reasons`: how rationales are drawn."""
        ...


def judgement_of(answer: Answer) -> Judgement:
    """Softmax over both answers in each order, and the mean over both orders.

        P(first better) = ½ (σ(l₁ − l₂) + 1 − σ(l₁' − l₂'))

    >>> judgement_of(Answer([[math.log(0.6), math.log(0.2)], [math.log(0.5), math.log(0.5)]], 10)).probability
    0.625
    """
    one, other = (_sigmoid(first - second) for first, second in answer.log_probs)
    mass = sum(math.exp(value) for pair in answer.log_probs for value in pair) / 2
    probability = round((one + 1 - other) / 2 * EXACT) / EXACT
    return Judgement(probability, (one, other), min(mass, 1.0), answer.cut)


def is_judgement(row: Any) -> bool:
    """Whether what is kept on a line makes one."""
    values = [row["probability"], *row["places"], row["mass"]]
    is_whole = len(row["places"]) == 2 and isinstance(row["cut"], int)
    return is_whole and all(isinstance(value, int | float) and 0 <= value <= 1 for value in values)


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
