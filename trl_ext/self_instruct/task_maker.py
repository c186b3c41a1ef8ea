"""The three steps of a run: instructions, their kinds, their instances. Each asks, reads, and counts what it leaves out."""

import random
import warnings
from collections import Counter
from collections.abc import Iterator

from tqdm.auto import tqdm

from trl_ext.self_instruct.answer_parsing import CUT_OFF, Answer, inputs_first, listed, outputs_first, says, until
from trl_ext.self_instruct.instruction_filter import SIMILAR, good_instances
from trl_ext.self_instruct.instruction_pool import InstructionPool
from trl_ext.self_instruct.kept_answers import Asker
from trl_ext.self_instruct.made_tasks import MadeTasks
from trl_ext.self_instruct.seed_tasks import Task
from trl_ext.self_instruct.self_instruct_config import SelfInstructConfig
from trl_ext.self_instruct.shown_seeds import ShownSeeds
from trl_ext.sequences.texts import Text
from trl_ext.trainer_kit.seeds import stable_seed

CALL = "SelfInstruct.run"


class TaskMaker:
    """One run: three steps, each of which asks, reads and counts.

    Args:
        config: Of the run.
        shown: The seeds.
        asker: Asks and keeps.
    """

    def __init__(self, config: SelfInstructConfig, shown: ShownSeeds, asker: Asker):
        self.config, self.shown, self.asker = config, shown, asker
        self.left_out: dict[str, Counter[str]] = {
            "instructions": Counter(),
            "kinds": Counter(),
            "instances": Counter(),
        }
        self.asked: Counter[str] = Counter()

    def make(self) -> MadeTasks:
        instructions = self.instructions()
        kinds = self.kinds(instructions)
        tasks = [task for task in self.tasks(instructions, kinds) if task.instances]
        made = MadeTasks(tuple(tasks), len(instructions), self.left_out, dict(self.asked))
        if not tasks:
            raise ValueError(f"{CALL}: of {len(instructions)} instructions, none got an instance. {made.counted()}")
        return made

    def instructions(self) -> list[str]:
        """New instructions, as many as were asked for, or fewer where many batches in a row bring none."""
        wanted, made, idle, batch = self.config.num_instructions, [], 0, 0
        pool = InstructionPool(self.shown.instructions, words=self.config.instruction_filter.words)
        with tqdm(total=wanted, desc="instructions", disable=None) as bar:
            while len(made) < wanted and idle < self.config.patience:
                new = self._taken(self._listed(batch, made), pool)[: wanted - len(made)]
                made, idle, batch = made + new, 0 if new else idle + 1, batch + 1
                bar.update(len(new))
        if len(made) < wanted:
            self._say_fewer(len(made))
        return made

    def kinds(self, instructions: list[str]) -> list[bool]:
        """Whether each is classification; what says neither yes nor no is taken as none."""
        if not self.shown.kinds:
            warnings.warn(
                f"{CALL}: without seeds of both kinds (`is_classification` true and false) nobody can be asked for it, and all "
                "tasks are taken as other than classification.",
                stacklevel=4,
            )
            return [False] * len(instructions)
        prompts = [self.config.wording.question_prompt(self.shown.kinds, each) for each in instructions]
        said = [says(answer, self.config.wording) for answer in self._answers("kinds", prompts)]
        self.left_out["kinds"]["neither yes nor no, taken as no"] += said.count(None)
        return [bool(each) for each in said]

    def tasks(self, instructions: list[str], kinds: list[bool]) -> Iterator[Task]:
        """Each instruction with what instances it got."""
        prompts = [self._instance_prompt(*each) for each in zip(instructions, kinds, strict=True)]
        answers = self._answers("instances", prompts)
        for instruction, kind, answer in zip(instructions, kinds, answers, strict=True):
            read = outputs_first if kind else inputs_first
            instances, unread = read(answer, self.config.wording)
            good, reasons = good_instances(instances)
            self.left_out["instances"].update(unread + reasons)
            yield Task(instruction, kind, tuple(good[: self.config.max_instances]))

    def _listed(self, batch: int, made: list[str]) -> list[str]:
        """All instructions of a batch of answers."""
        rng = random.Random(stable_seed(self.config.seed, "shown", batch))
        contexts = [self.shown.context(made, rng) for _ in range(self.config.batch_size)]
        prompts = [self.config.wording.series_prompt(each) for each in contexts]
        read = [listed(each, chat=self.config.chat) for each in self._answers("instructions", prompts, first=batch)]
        self.left_out["instructions"][CUT_OFF] += sum(cut for _, cut in read)
        return [instruction for found, _ in read for instruction in found]

    def _taken(self, instructions: list[str], pool: InstructionPool) -> list[str]:
        """Those that the filter lets through, which are then in the pool."""
        taken = []
        for instruction in instructions:
            reason = self.config.instruction_filter.reason(instruction)
            if reason is None and pool.nearest(instruction, above=self.config.instruction_filter.similarity):
                reason = SIMILAR
            if reason is None:
                pool.add(instruction)
                taken.append(instruction)
            else:
                self.left_out["instructions"][reason] += 1
        return taken

    def _instance_prompt(self, instruction: str, is_classification: bool) -> str:
        if is_classification:
            return self.config.wording.output_first_prompt(self.shown.classifications, instruction)
        return self.config.wording.input_first_prompt(self.shown.others, instruction)

    def _answers(self, step: str, prompts: list[str], *, first: int = 0) -> list[Answer]:
        self.asked[step] += len(prompts)
        asked: list[Text] = [[{"role": "user", "content": each}] if self.config.chat else each for each in prompts]
        batches = self.asker.ask(step, asked, self.config.sampling(step), first=first)
        return [until(answer, self.config.stops(step)) for batch in batches for answer in batch]

    def _say_fewer(self, made: int) -> None:
        counts = MadeTasks((), made, self.left_out, dict(self.asked)).counted()
        said = (
            f"{CALL}: {made} of {self.config.num_instructions} instructions, and then {self.config.patience} batches without "
            f"a new one. {counts}"
        )
        if not made:
            raise ValueError(said)
        warnings.warn(said, stacklevel=5)
