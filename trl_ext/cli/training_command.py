"""What the commands that train have in common: they read, show what they would do, or do it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset, IterableDataset
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase, Trainer

from trl_ext.cli.command_arguments import ModelArguments, RunArguments, TrainingDataArguments
from trl_ext.cli.command_parser import CommandParser
from trl_ext.cli.data_rows import eval_rows, train_rows
from trl_ext.cli.dry_run import Line, show
from trl_ext.cli.logged_lines import say_what_matters
from trl_ext.cli.plan import the_card
from trl_ext.cli.role_checks import check_lora_targets, check_output_dir
from trl_ext.cli.roles import Roles, base_and_adapter, lora_of
from trl_ext.cli.tracker_check import check_trackers
from trl_ext.memory_planning.plan_report import print_plan
from trl_ext.memory_planning.planning import MemoryPlan
from trl_ext.sequences.prompt_rows import as_dataset
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.trainer_kit.checkpoint_files import checkpoint_folders
from trl_ext.trainer_kit.loading import loading
from trl_ext.trainer_kit.seeds import check_seed
from trl_ext.trainer_kit.stopping import signals_held

SAVED = ("config.json", "adapter_config.json")  # of a model, or of an adapter
AHEAD = 32  # rows of a stream that are looked at before the run
FROM_THE_BEGINNING = ("false", "no", "0")  # what resume_from_checkpoint may say instead of a folder


@dataclass
class TrainingCommand:
    """One command: its dataclasses read from flags and YAML, and what is made of them.

    Args:
        args: The trainer's config.
        data, model, run: What is read, loaded, and done.
        others: What only this command is told, in the order of `beside`.
    """

    args: Any
    data: TrainingDataArguments
    model: ModelArguments
    run: RunArguments
    others: list[Any]

    name: ClassVar[str]
    example: ClassVar[str]
    description: ClassVar[str]
    beside: ClassVar[tuple[type, ...]] = ()
    trainer_class: ClassVar[type[Trainer]]

    @classmethod
    def config(cls) -> type:
        """The trainer's."""
        raise NotImplementedError

    def trainer(self, roles: Roles, train: Dataset | IterableDataset, evaluation: Dataset | None) -> Trainer:
        raise NotImplementedError

    def check_stream(self) -> None:
        """Raise a ValueError where it is not said how much of a stream is read."""
        if self.args.max_steps <= 0:
            raise ValueError(
                f"--dataset_streaming, --max_steps {self.args.max_steps}: where a stream ends is not known. Say how many steps "
                "are made of it."
            )

    def check(self, facts: "Facts") -> None:
        """Raise a ValueError for what the trainer would refuse of config and rows, without a model."""
        raise NotImplementedError

    def first_row(self, facts: "Facts") -> list[Line]:
        """As the trainer will read it."""
        raise NotImplementedError

    def plan(self, facts: "Facts") -> MemoryPlan:
        raise NotImplementedError


@dataclass(frozen=True)
class Facts:
    """What is known of a run before a weight is loaded.

    Args:
        train: What is learned from.
        known: Its rows; of a stream, the first ones.
        evaluation: What is held out.
        tokenizer, config: The model's.
    """

    train: Dataset | IterableDataset
    known: Dataset
    evaluation: Dataset | None
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig


def main(command: type[TrainingCommand], argv: Sequence[str]) -> None:
    """Read the flags and the YAML of a command, and do what they ask for."""
    kinds = (command.config(), *command.beside, TrainingDataArguments, ModelArguments, RunArguments)
    call = f"trl-ext {command.name}"
    parser = CommandParser(kinds, prog=call, example=f"{call} {command.example}", description=command.description)
    args, *others, data, model, run = parser.read(argv)
    check_seed(args.seed, call=f"--seed {args.seed}")
    check_trackers(args.report_to)
    asked = command(args, data, model, run, others)
    check_output_dir(Path(args.output_dir).expanduser(), command.trainer_class.__name__)
    if data.dataset_streaming:
        asked.check_stream()
    train = train_rows(data, streamed=data.dataset_streaming)
    facts = gathered(asked, train, eval_rows(data, asked=args.eval_strategy != "no"))
    asked.check(facts)
    (dry_run if run.dry_run else learn)(asked, facts)


def gathered(command: TrainingCommand, train: Dataset | IterableDataset, evaluation: Dataset | None) -> Facts:
    """What is known before a weight is loaded, or a ValueError for a model that is not there."""
    if command.run.card is not None and not command.run.dry_run:
        raise ValueError(
            f"--card {command.run.card}: it is planned for with --dry_run alone. Add that, or leave it out."
        )
    base, adapter = base_and_adapter(command.model)
    call = f"--model_name_or_path {command.model.model_name_or_path}"
    with loading(call):
        config = AutoConfig.from_pretrained(base, revision=command.model.model_revision)
    if adapter is None and lora_of(command.model) is not None:
        check_lora_targets(command.model.lora_target_modules, config)
    known = train
    if isinstance(train, IterableDataset):
        known = as_dataset(list(islice(train, AHEAD)), call=f"--dataset_name {command.data.dataset_name}")
    return Facts(train, known, evaluation, tokenizer_beside(adapter, base, call=call), config)


def learn(command: TrainingCommand, facts: Facts) -> None:
    """Train; what a stopped run has left is gone on with."""
    args = command.args
    given = args.resume_from_checkpoint
    trainer = command.trainer(Roles(command.model, args), facts.train, facts.evaluation)
    say_what_matters(trainer, trainer._shown)
    trainer.train(resume_from_checkpoint=given not in FROM_THE_BEGINNING and (given or True))
    _save(trainer, Path(args.output_dir))
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=command.data.dataset_name)


def _save(trainer: Trainer, folder: Path) -> None:
    """Write what was learned; of a run that was finished before, only if a stop had kept it from doing so."""
    if trainer.was_finished and any((folder / name).is_file() for name in SAVED):
        said = f"It stays as it is in {folder}, beside {', '.join(path.name for path in checkpoint_folders(folder))}."
    else:
        with signals_held():
            trainer.save_model()
        said = f"Saved in {folder}."
    if trainer.accelerator.is_main_process:
        print(said)


def dry_run(command: TrainingCommand, facts: Facts) -> None:
    """Show what a run would begin with. Ends with code 1 where it would not fit the card."""
    plan, (card, card_name) = command.plan(facts), the_card(command.run.card, flag="--card")
    print_plan(plan, card, card_name=card_name, flag="--card")
    held_out = "" if facts.evaluation is None else f", {len(facts.evaluation)} held out"
    rows = "a stream of rows" if isinstance(facts.train, IterableDataset) else f"{len(facts.train)} rows"
    show(f"{rows}{held_out}; the first one, as it will be read", command.first_row(facts))
    if card is not None and plan.verdict(card) == "does not fit":
        raise SystemExit(1)
