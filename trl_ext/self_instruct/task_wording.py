"""What the model is asked, in the paper's words or one's own: four texts, made of seeds and of one instruction.

The examples before each question are seeds, so that a Korean seed file with Korean words here asks in Korean.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from trl_ext.self_instruct.seed_tasks import Instance, Task

SHOWN_INSTANCES = 2  # of each task that is shown


@dataclass(frozen=True)
class TaskWording:
    """The words of the four requests; the paper's are the defaults.

    Args:
        series: Before the numbered list of instructions, which the model goes on with.
        question, is_classification, yes, no: Before the tasks that are shown with their kind; behind each; the answers.
        input_first, output_first: Before the tasks that are shown with their instances.
        task, example, input, output, label: What stands before a colon, or a number, in these.
    """

    series: str = "Come up with a series of tasks:"
    question: str = "Can the following task be regarded as a classification task with finite output labels?"
    is_classification: str = "Is it classification?"
    yes: str = "Yes"
    no: str = "No"
    input_first: str = (
        "Come up with examples for the following tasks. Try to generate multiple examples when possible. If the task doesn't "
        "require additional input, you can generate the output directly."
    )
    output_first: str = (
        "Given the classification task definition and the class labels, generate an input that corresponds to each of the "
        "class labels. If the task doesn't require input, just generate the correct class label."
    )
    task: str = "Task"
    example: str = "Example"
    input: str = "Input"
    output: str = "Output"
    label: str = "Class label"

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"TaskWording({field.name}={value!r}): expected words. Give some.")

    def series_prompt(self, instructions: Sequence[str]) -> str:
        """A numbered list that lacks its next item.

        >>> print(TaskWording().series_prompt(["Tell a joke.", "Name a bird:"]))
        Come up with a series of tasks:
        1. Tell a joke.
        2. Name a bird
        3.
        """
        lines = [f"{number}. {one_line(each).rstrip(':')}" for number, each in enumerate(instructions, start=1)]
        return "\n".join([self.series, *lines, f"{len(lines) + 1}."])

    def question_prompt(self, shown: Sequence[Task], instruction: str) -> str:
        """Is it classification? After tasks for which that is known."""
        said = [self._asked(each.instruction) + f" {self._word(each)}" for each in shown]
        return "\n\n".join([self.question, *said, self._asked(instruction)])

    def input_first_prompt(self, shown: Sequence[Task], instruction: str) -> str:
        """Examples of a task, each an input and then its output."""
        tasks = [self._head(each.instruction) + self._inputs_first(each.instances) for each in shown]
        return "\n\n".join([self.input_first, *tasks, self._head(instruction)])

    def output_first_prompt(self, shown: Sequence[Task], instruction: str) -> str:
        """Examples of a classification, each a label and then an input for it: else most labels would be the same one."""
        tasks = [self._head(each.instruction) + self._labels_first(each.instances) for each in shown]
        return "\n\n".join([self.output_first, *tasks, self._head(instruction)])

    def _asked(self, instruction: str) -> str:
        return f"{self._head(instruction)}{self.is_classification}"

    def _word(self, task: Task) -> str:
        return self.yes if task.is_classification else self.no

    def _head(self, instruction: str) -> str:
        return f"{self.task}: {instruction}\n"

    def _inputs_first(self, instances: Sequence[Instance]) -> str:
        if not instances[0].input:
            return f"{self.output}: {instances[0].output}"
        texts = [f"{self.input}: {each.input}\n{self.output}: {each.output}" for each in instances[:SHOWN_INSTANCES]]
        return "\n".join(f"{self.example} {number}\n{text}" for number, text in enumerate(texts, start=1))

    def _labels_first(self, instances: Sequence[Instance]) -> str:
        said = [(f"{self.label}: {each.output}", each.input) for each in instances[:SHOWN_INSTANCES]]
        return "\n".join(f"{label}\n{self.input}: {text}" if text else label for label, text in said)


def one_line(text: str) -> str:
    """With one blank where there was white space.

    >>> one_line(" Sort\\n these. ")
    'Sort these.'
    """
    return re.sub(r"\s+", " ", text).strip()
