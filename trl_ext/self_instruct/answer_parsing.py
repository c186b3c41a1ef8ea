"""What the model answered, read as the paper's code reads it: a numbered list, yes or no, instances of either order."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from trl_ext.self_instruct.instruction_filter import has_word
from trl_ext.self_instruct.seed_tasks import Instance
from trl_ext.self_instruct.task_wording import TaskWording, one_line

NUMBER = re.compile(r"(?:^|\n)[ \t]*\d+[ \t]?\.[ \t]+")
CUT_OFF, UNREAD = "cut off", "not in the asked form"


class Answer(NamedTuple):
    """A text, and whether it came to its own end or to a word that ends it, rather than to the length limit."""

    text: str
    ended: bool


def until(answer: Answer, stops: Sequence[str]) -> Answer:
    """What stands before the first of the texts that end an answer.

    >>> until(Answer("No\\nTask: Sing.", False), ["Task", "\\n"])
    Answer(text='No', ended=True)
    """
    places = [answer.text.find(stop) for stop in stops if stop in answer.text]
    return Answer(answer.text[: min(places)], True) if places else answer


def listed(answer: Answer, *, chat: bool = False) -> tuple[list[str], int]:
    """The items of a list that goes on from its number, and how many were cut off: the last, of an answer that did not end.

    The first letter of each becomes a capital.

    >>> listed(Answer(" tell a joke.\\n10. Name a\\n bird.\\n11. Wri", ended=False))
    (['Tell a joke.', 'Name a bird.'], 1)

    Args:
        answer: Of the model.
        chat: Whether it may begin with the number itself, and with words before that, which are no item.
    """
    items = NUMBER.split(answer.text)
    if chat and len(items) > 1:
        items = items[1:]
    items = [item for item in map(one_line, items) if item]
    cut = int(bool(items) and not answer.ended)
    return [item[0].upper() + item[1:] for item in items[: len(items) - cut]], cut


def says(answer: Answer, wording: TaskWording) -> bool | None:
    """Yes is True, no is False, None neither.

    >>> says(Answer(" yes.", True), TaskWording()), says(Answer("Not sure", True), TaskWording())
    (True, None)
    """
    said = answer.text.strip()
    found = [
        kind for kind, word in ((True, wording.yes), (False, wording.no)) if has_word(said[: len(word) + 1], word)
    ]
    return found[0] if found else None


def inputs_first(answer: Answer, wording: TaskWording) -> tuple[list[Instance], list[str]]:
    """Instances of an answer in the form "Example 1, Input: …, Output: …", or of a lone output; and why others are none.

    >>> inputs_first(Answer("Example 1\\nInput: 2 + 2\\nOutput: 4\\nExample 2\\nInput: 3", False), TaskWording())
    ([Instance(input='2 + 2', output='4')], ['cut off'])
    """
    text = answer.text.strip()
    blocks = _blocks(text, wording)
    if blocks is None and not re.search(_mark(wording.output), text):
        return [], [UNREAD]
    return _whole([_parted(block, wording) for block in (blocks or [text])], answer)


def outputs_first(answer: Answer, wording: TaskWording) -> tuple[list[Instance], list[str]]:
    """Instances of an answer in the form "Class label: …", and then an input, if the task needs one.

    >>> outputs_first(Answer("Class label: good\\nInput: I like it.\\nClass label: bad\\nI do not.", True), TaskWording())
    ([Instance(input='I like it.', output='good'), Instance(input='I do not.', output='bad')], [])
    """
    _, *blocks = answer.text.split(f"{wording.label}:")
    if not blocks:
        return [], [UNREAD]
    fields = [block.strip().partition("\n") for block in blocks]
    start = re.compile(rf"^{_mark(wording.input)}")
    return _whole([Instance(start.sub("", rest.strip()).strip(), label.strip()) for label, _, rest in fields], answer)


def _whole(instances: list[Instance], answer: Answer) -> tuple[list[Instance], list[str]]:
    return (instances, []) if answer.ended else (instances[:-1], [CUT_OFF])


def _blocks(text: str, wording: TaskWording) -> list[str] | None:
    mark = rf"(?:^|\n)[ \t]*{re.escape(wording.example)}[ \t]?\d*[.:]?[ \t]*(?=\n|$|{_mark(wording.input)}|{_mark(wording.output)})"
    if not re.search(mark, text):
        return None
    return [block.strip() for block in re.split(mark, text) if block.strip()]


def _parted(block: str, wording: TaskWording) -> Instance:
    """What stands before the first "Output:" and behind it, up to the next input; without one, all is output."""
    before, mark, after = _partition(_mark(wording.output), block)
    given, output = (before, after) if mark else ("", block)
    output = _partition(_mark(wording.input), output)[0]
    output = _partition(_mark(wording.output), output)[0]
    return Instance(re.sub(rf"^{_mark(wording.input)}", "", given.strip()).strip(), output.strip())


def _partition(pattern: str, text: str) -> tuple[str, str, str]:
    found = re.search(pattern, text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _mark(word: str) -> str:
    return rf"{re.escape(word)}\s*\d*\s*:"
