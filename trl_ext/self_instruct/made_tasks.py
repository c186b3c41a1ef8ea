"""What a run of Self-Instruct has made: data to learn from, prompts with their types, and the counts."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.table import Table

from trl_ext.query_types import Labeler, label_query_types
from trl_ext.self_instruct.seed_tasks import Instance, Task
from trl_ext.trainer_kit.whole_files import written_whole

TASKS, COUNTS = "tasks.jsonl", "counts.json"
TEMPLATE, WITH_INPUT, COMPLETION = "{instruction}", "{instruction}\n\n{input}", "\n\n{output}"


@dataclass(frozen=True)
class MadeTasks:
    """Tasks, and what was left out on the way to them.

    Args:
        tasks: With at least one instance each.
        instructions: How many passed the filter; the tasks are those of them that got an instance.
        left_out: By step, how often each reason was met.
        asked: By step, how many requests were made, those that were answered before a kill among them.
    """

    tasks: tuple[Task, ...]
    instructions: int
    left_out: Mapping[str, Counter[str]]
    asked: Mapping[str, int]

    def sft(
        self,
        *,
        messages: bool = False,
        prompt: str = TEMPLATE,
        prompt_with_input: str = WITH_INPUT,
        completion: str | None = None,
    ) -> Dataset:
        """Each instance as `prompt` and `completion`, as SFTTrainer, RAFT and ReST take them.

        Args:
            messages: Whether both are messages, which a chat template makes text of; else they are text.
            prompt, prompt_with_input: Of an instance without and with an input; {instruction} and {input} stand for them.
            completion: The same, with {output}; None: it begins with an empty line, of messages with itself.
        """
        template = completion or ("{output}" if messages else COMPLETION)
        pairs = [
            (self._prompt(task, each, prompt, prompt_with_input), filled(template, output=each.output))
            for task, each in self._instances()
        ]
        if not messages:
            return Dataset.from_dict({"prompt": [x for x, _ in pairs], "completion": [y for _, y in pairs]})
        return Dataset.from_list([{"prompt": _said("user", x), "completion": _said("assistant", y)} for x, y in pairs])

    def prompts(
        self,
        labeler: Labeler | str | PathLike | None = None,
        *,
        keep: str | PathLike | None = None,
        messages: bool = False,
        prompt: str = TEMPLATE,
        prompt_with_input: str = WITH_INPUT,
    ) -> Dataset:
        """Each prompt once with `query_type`, `query_type_confidence` and the made output as `reference`, for R³.

        A classification is closed; of the rest, `label_query_types` asks the labeler, which also takes `keep`. The reference is
        as right as the model that made it.
        """
        rows: dict[str, dict[str, Any]] = {}
        for task, each in self._instances():
            text = self._prompt(task, each, prompt, prompt_with_input)
            kind = "closed" if task.is_classification else None
            rows.setdefault(text, {"prompt": text, "reference": each.output, "query_type": kind})
        made = [row | ({"prompt": _said("user", row["prompt"])} if messages else {}) for row in rows.values()]
        names = ("prompt", "reference", "query_type")
        return label_query_types(
            Dataset.from_dict({name: [row[name] for row in made] for name in names}), labeler, keep=keep
        )

    def to_dict(self) -> dict[str, Any]:
        """The counts, as JSON takes them."""
        return {
            "tasks": len(self.tasks),
            "instances": sum(len(task.instances) for task in self.tasks),
            "instructions": self.instructions,
            "classifications": sum(bool(task.is_classification) for task in self.tasks),
            "without_instance": self.instructions - len(self.tasks),
            "asked": dict(self.asked),
            "left_out": {step: dict(+counts) for step, counts in self.left_out.items()},
        }

    def counted(self) -> str:
        """What was left out, and why, in one line."""
        said = [
            f"{step}: {', '.join(f'{number} {reason}' for reason, number in (+counts).most_common())}"
            for step, counts in self.left_out.items()
            if +counts
        ]
        asked = ", ".join(f"{number} for {step}" for step, number in self.asked.items())
        return f"Requests: {asked}. Left out: {'; '.join(said) or 'nothing'}."

    def print(self, console: Console | None = None) -> None:
        """The counts as a table."""
        counts = self.to_dict()
        table = Table("Self-Instruct", "")
        for name in ("instructions", "tasks", "classifications", "instances"):
            table.add_row(name, str(counts[name]))
        for step, reasons in counts["left_out"].items():
            for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
                table.add_row(f"{step} left out: {reason}", str(number))
        (console or Console(highlight=False)).print(table)

    def _instances(self) -> list[tuple[Task, Instance]]:
        return [(task, each) for task in self.tasks for each in task.instances]

    def _prompt(self, task: Task, instance: Instance, prompt: str, prompt_with_input: str) -> str:
        template = prompt_with_input if instance.input else prompt
        return filled(template, instruction=task.instruction, input=instance.input)


def filled(template: str, **words: str) -> str:
    """A template with its words put in; a ValueError names what it asks for and there is not."""
    if not isinstance(template, str):
        raise ValueError(f"MadeTasks: the template {template!r} is no text. Give one, such as {TEMPLATE!r}.")
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"MadeTasks: the template {template!r} asks for {error}; there are {', '.join(f'{{{name}}}' for name in words)}. Mend "
            "it; a brace that stands for itself is doubled."
        ) from error


def write_counts(path: Path, made: MadeTasks) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(made.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]
