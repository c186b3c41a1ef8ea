"""What a labeler is asked about a pair: the same twice, each completion once in the first place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

from trl_ext.ai_feedback.preambles import Preamble
from trl_ext.sequences.text_shapes import content_text
from trl_ext.sequences.texts import Text
from trl_ext.trainer_kit.config_checks import checked_list

ORDERS = (0, 1)  # which of a question's completions comes first


class Question(NamedTuple):
    """A prompt and its two completions, as text."""

    prompt: str
    completions: tuple[str, str]


class Example(NamedTuple):
    """A pair that is shown with its answer.

    Args:
        prompt: As text.
        completion_1, completion_2: Its completions.
        better: 1 or 2.
        rationale: Why, shown where the labeler is to give its own.
    """

    prompt: str
    completion_1: str
    completion_2: str
    better: int
    rationale: str = ""


@dataclass(frozen=True)
class Wording:
    """How pairs are asked for.

    Args:
        preamble: The words.
        examples: Pairs that are shown with their answers.
        rationale: Whether the labeler gives reasons first.
    """

    preamble: Preamble
    examples: tuple[Example, ...]
    rationale: bool

    @property
    def key(self) -> str:
        """Tells wordings apart."""
        return f"{crc32(repr(self).encode('utf-8', 'surrogatepass')):08x}"

    def options(self, chat: bool) -> tuple[str, str]:
        """The answers, as they follow a context."""
        blank = "" if chat else " "
        return tuple(blank + answer for answer in self.preamble.answers)

    def context(self, question: Question, order: int, chat: bool) -> Text:
        """What comes before the answer, or before the rationale."""
        first, second = question.completions[order], question.completions[1 - order]
        shown = self.preamble.shown(question.prompt, first, second)
        asked = f"{shown}\n\n{self.preamble.rationale if self.rationale else self.preamble.ending}"
        return self._chat(asked) if chat else self._text(asked)

    def behind(self, context: Text, rationale: str) -> Text:
        """What comes before the answer, where reasons were given."""
        if isinstance(context, str):
            return f"{context} {rationale.strip()}\n\n{self.preamble.ending}"
        said = {"role": "assistant", "content": rationale.strip()}
        return [*context, said, {"role": "user", "content": self.preamble.ending}]

    def _text(self, asked: str) -> str:
        parts = [self.preamble.instruction] if self.preamble.instruction else []
        for example in self.examples:
            shown = self._example(example)
            parts.append(
                f"{self.behind(shown, example.rationale) if self.rationale else shown} {self._answer(example)}"
            )
        return "\n\n".join([*parts, asked])

    def _chat(self, asked: str) -> list[dict]:
        turns: list[dict] = []
        for example in self.examples:
            turns.append({"role": "user", "content": self._example(example)})
            if self.rationale:
                turns = self.behind(turns, example.rationale)
            turns.append({"role": "assistant", "content": self._answer(example)})
        turns.append({"role": "user", "content": asked})
        if self.preamble.instruction:
            turns[0] = {"role": "user", "content": f"{self.preamble.instruction}\n\n{turns[0]['content']}"}
        return turns

    def _example(self, example: Example) -> str:
        shown = self.preamble.shown(example.prompt, example.completion_1, example.completion_2)
        return f"{shown}\n\n{self.preamble.rationale if self.rationale else self.preamble.ending}"

    def _answer(self, example: Example) -> str:
        return self.preamble.answers[example.better - 1]


def checked_examples(examples: Sequence[Any], *, rationale: bool, call: str) -> tuple[Example, ...]:
    """Each as an Example, also of a tuple, or a ValueError for the first that is none."""
    found = []
    for given in checked_list(examples, call=f"{call}(examples=…)"):
        example = given if isinstance(given, Example) else Example(*given) if _fits(given) else None
        if example is None or not _is_whole(example):
            raise ValueError(
                f"{call}(examples=[{given!r}, …]): expected (prompt, completion_1, completion_2, better), all text, and better "
                "1 or 2; a rationale is text too. Mend that one."
            )
        if rationale and not example.rationale.strip():
            raise ValueError(
                f"{call}(rationale=True, examples=[{given!r}, …]): an example that gives no reasons would teach to give none. "
                "Add its rationale as the fifth."
            )
        found.append(example._replace(better=int(example.better)))
    return tuple(found)


def conversation_text(prompt: Text) -> str:
    r"""A prompt as it is shown: text and a lone user's turn as they are, of more messages who says what.

    >>> conversation_text([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}])
    'user: Hi.\nassistant: Hello.'
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return content_text(prompt[0].get("content"))
    return "\n".join(f"{message['role']}: {content_text(message.get('content'))}" for message in prompt)


def context_number(context: Text) -> int:
    """By which a rationale is drawn: the same for the same context, whatever else is asked."""
    return crc32(repr(context).encode("utf-8", "surrogatepass"))


def _is_whole(example: Example) -> bool:
    is_text = all(isinstance(each, str) for each in (*example[:3], example.rationale))
    return is_text and not isinstance(example.better, bool) and example.better in (1, 2)


def _fits(given: Any) -> bool:
    return isinstance(given, list | tuple) and 4 <= len(given) <= 5
