"""Self-Instruct (Wang et al. 2022, arXiv:2212.10560): the run, from seeds to tasks.

seeds ─► instructions, filtered ─► classification? ─┬ no:  input, then output ─┬► instances, filtered ─► tasks
                 ▲          │ pool                  └ yes: label, then input ──┘
                 └──────────┘
"""

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.generation.given_generator import check_policy, checked_generator, generator_record
from trl_ext.generation.protocol import Generator, Policy
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.self_instruct.kept_answers import Asker, KeptAnswers
from trl_ext.self_instruct.made_tasks import COUNTS, TASKS, MadeTasks, write_counts
from trl_ext.self_instruct.seed_tasks import Task, read_seeds, write_tasks
from trl_ext.self_instruct.self_instruct_config import SelfInstructConfig
from trl_ext.self_instruct.shown_seeds import ShownSeeds
from trl_ext.self_instruct.task_maker import TaskMaker
from trl_ext.sequences.causal_lms import causal_lm, model_key
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.trainer_kit.own_folders import claim_folder
from trl_ext.trainer_kit.run_record import as_json
from trl_ext.trainer_kit.seeds import stable_seed

CALL = "SelfInstruct"
MARK, ANSWERS = "self_instruct.json", "answers.jsonl"
OWN = re.compile("|".join(map(re.escape, (ANSWERS, TASKS, COUNTS))))


class SelfInstruct:
    """Makes new tasks from a few: instructions, and instances of each, by a model that is shown some at a time.

    `config` has the paper's values. What it left out is counted by reason.

    Args:
        model: A causal LM, its path or hub id; None where a generator asks another, e.g. an endpoint.
        tokenizer: None: the one beside the model.
        generator: Who samples; None: transformers. Answers are cut at the paper's stop texts when they have come.
        config: None: the defaults.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | PathLike | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        generator: Generator | None = None,
        config: SelfInstructConfig | None = None,
    ):
        if model is None and generator is None:
            raise ValueError(f"{CALL}(model=None, generator=None): nobody is there to ask. Give one of the two.")
        if not isinstance(config, SelfInstructConfig | None):
            raise ValueError(f"{CALL}(config={config!r}): expected SelfInstructConfig(…), or None. Give one.")
        self.config = config or SelfInstructConfig()
        self.generator = TransformersGenerator() if generator is None else checked_generator(generator, call=CALL)
        if model is not None:
            model, place = causal_lm(model, call=CALL)
            tokenizer = tokenizer or tokenizer_beside(place, call=CALL)
        self.policy = Policy(model, tokenizer)

    def run(self, seeds: str | PathLike | Iterable[dict], output_dir: str | PathLike) -> MadeTasks:
        """Make tasks from seeds. Answers are written into the folder as they come: after a kill or an error, the same call
        asks for the missing ones alone, and makes the same tasks.

        Args:
            seeds: A .jsonl or .json file, or rows, with `instruction`, and `instances` or `input` and `output`, and
                `is_classification`.
            output_dir: Gets answers.jsonl, tasks.jsonl (seeds of a further run) and counts.json.

        Raises:
            ValueError: For fewer seeds than a request shows, or where not one task could be made; it says the counts.
        """
        tasks, folder = read_seeds(seeds, call=f"{CALL}.run"), Path(output_dir).expanduser()
        shown = ShownSeeds(tasks, self.config)
        check_policy(self.generator, self.policy, self.config.sampling("instructions"))
        claim_folder(folder, MARK, self._record(tasks), names=OWN, call=f"{CALL}.run(output_dir={str(output_dir)!r})")
        asker = Asker(self.generator, self.policy, KeptAnswers(folder / ANSWERS), self.config.batch_size)
        made = TaskMaker(self.config, shown, asker).make()
        write_tasks(folder / TASKS, made.tasks)
        write_counts(folder / COUNTS, made)
        return made

    def _record(self, tasks: list[Task]) -> dict[str, Any]:
        """All that the tasks follow from."""
        model, tokenizer = self.policy.model, self.policy.tokenizer
        return as_json(
            {
                "seeds": stable_seed(*map(repr, tasks)),
                "config": self.config.record(),
                "generator": generator_record(self.generator),
                "model": None if model is None else model_key(model, tokenizer),
            }
        )
