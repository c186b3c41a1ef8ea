"""What a judge is asked about a completion, and how it is made to fit the judge's window."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from trl_ext.ai_feedback.preambles import NAMED
from trl_ext.ai_feedback.preference_questions import conversation_text
from trl_ext.sequences.texts import Text, text_of

BEGINNING = (
    "You rate answers. Below are a request and an answer to it. Give the answer a score from 1 to 10: 1 is awful, 10 is "
    "perfect."
)
PROMPT, ANSWER = "\n\nRequest:\n{prompt}", "\n\nAnswer:\n{completion}"
REFERENCE = "\n\nA right answer, to compare with:\n{reference}"
ENDING = "\n\nScore of the answer, from 1 to 10:"
NEEDED = ("prompt", "completion")


@dataclass(frozen=True)
class Asked:
    """The texts that a template is filled with.

    Args:
        prompt: The question, of several turns the whole conversation.
        completion: The answer.
        reference: A right one; None: there is none.
    """

    prompt: str
    completion: str
    reference: str | None = None


def likert_template(*, rubric: bool, reference: bool) -> str:
    """The question to a judge that has no template of its own.

    >>> likert_template(rubric=False, reference=False).endswith("Answer:\\n{completion}\\n\\nScore of the answer, from 1 to 10:")
    True
    """
    parts = [BEGINNING, "\n\n{rubric}" * rubric, PROMPT, REFERENCE * reference, ANSWER, ENDING]
    return "".join(parts)


def checked_template(template: str, *, rubric: str | None, reference: bool, call: str) -> str:
    """The template, or a ValueError for one that lacks a placeholder, or has one that nothing fills."""
    wanted = {*NEEDED, *(["rubric"] if rubric is not None else []), *(["reference"] if reference else [])}
    found = {*NAMED.findall(template)}
    if wanted - found:
        raise ValueError(
            f"{call}(template={template[:40]!r}…): expected the placeholders {_shown(wanted)}, and it lacks "
            f"{_shown(wanted - found)}. Write them where those texts belong."
        )
    if found - wanted:
        raise ValueError(
            f"{call}(template={template[:40]!r}…): its placeholder {_shown(found - wanted)} is filled by nothing; expected "
            f"{_shown(wanted)}. Give rubric=… or reference=True for those two, or leave it out."
        )
    return template


def filled(template: str, asked: Asked, rubric: str | None) -> str:
    """The question; braces in texts, and others in the template, stay what they are."""
    texts = {**vars(asked), "rubric": rubric}
    return NAMED.sub(lambda found: texts[found[1]], template)


def asked_of(prompt: Text, completion: Text, reference: str | None) -> Asked:
    return Asked(conversation_text(prompt), text_of(completion), reference)


def fitted(asked: Asked, *, fits: Callable[[Asked], bool]) -> Asked:
    """The texts, those above some length cut to it: the greatest, in letters, with which they fit.

    A completion and a reference lose their end, a prompt, which may be a conversation, its beginning. Where not even empty
    texts fit, they are empty.
    """
    longest = max(len(text or "") for text in vars(asked).values())
    return _cut(asked, bisect_left(range(1, longest + 1), True, key=lambda length: not fits(_cut(asked, length))))


def _cut(asked: Asked, length: int) -> Asked:
    prompt, reference = asked.prompt, asked.reference
    return Asked(prompt[max(len(prompt) - length, 0) :], asked.completion[:length], reference and reference[:length])


def _shown(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))
