"""`trl-ext reward`."""

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.cli.dry_run import Line, read_as
from trl_ext.cli.roles import Roles, planned_model
from trl_ext.cli.training_command import Facts, TrainingCommand
from trl_ext.cli.training_command import main as run
from trl_ext.memory_planning.planning import MemoryPlan, memory_plan
from trl_ext.memory_planning.trainer_plan import UNKNOWN_LENGTH, args_settings
from trl_ext.reward_modeling import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.reward_modeling.preference_data import check_max_length, check_pairs, columns_of
from trl_ext.sequences.preference_rows import SIDES
from trl_ext.sequences.token_ids import prompt_and_completion_ids, row_template_kwargs, whole_ids
from trl_ext.sequences.windows import model_window


class RewardCommand(TrainingCommand):
    name = "reward"
    example = "--model_name_or_path MODEL --dataset_name pairs.jsonl --output_dir OUT"
    description = (
        "A reward model from pairs, with the imitation regulariser. Rows need `chosen` and `rejected`, with `prompt` or with "
        "the whole conversation in both. A stopped run goes on with the same command."
    )
    trainer_class = ImitationRewardTrainer

    @classmethod
    def config(cls):
        return ImitationRewardConfig

    def trainer(self, roles: Roles, train: Dataset, evaluation: Dataset | None) -> ImitationRewardTrainer:
        return self.trainer_class(**roles.scorer(), args=self.args, train_dataset=train, eval_dataset=evaluation)

    def check(self, facts: Facts) -> None:
        if self.args.imitation_coef:
            check_max_length(self.args, facts.config)
        for name, rows in (("train", facts.train), ("eval", facts.evaluation)):
            if rows is not None:
                pairs = check_pairs(rows, columns_of(rows, name), name, complete=self.args.imitation_coef > 0)
                self._check_some_fit(pairs, name, facts.tokenizer)

    def _check_some_fit(self, pairs: Dataset, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise a ValueError where all pairs would be dropped; of most data the first one tells."""
        longest = self.args.max_length
        if longest is None or SIDES[0] not in pairs.column_names:
            return
        lengths = []
        for row in pairs:
            lengths.append(max(len(self._ids(row, side, tokenizer)) for side in SIDES))
            if lengths[-1] <= longest:
                return
        flag = "--dataset_name" if name == "train" else "--eval_dataset_name"
        raise ValueError(
            f"--max_length {longest}: the shortest pair of {flag} has {min(lengths)} tokens, so none would be left. Raise it, "
            "or shorten the pairs."
        )

    def first_row(self, facts: Facts) -> list[Line]:
        rows = check_pairs(facts.train.select([0]), columns_of(facts.train, "train"), "train")
        return [line for side in SIDES for line in self._side(rows[0], side, facts.tokenizer)]

    def _side(self, row: dict, side: str, tokenizer: PreTrainedTokenizerBase) -> list[Line]:
        """One completion, behind its prompt where that is known."""
        if side not in row:
            return [Line(side, "given as tokens")]
        if not row.get("prompt"):
            return [read_as(side, self._ids(row, side, tokenizer), tokenizer)]
        parts = prompt_and_completion_ids(row["prompt"], row[side], tokenizer, row_template_kwargs(row))
        names = (f"prompt of {side}", f"{side}, with its end")
        return [read_as(name, ids, tokenizer) for name, ids in zip(names, parts, strict=True)]

    def _ids(self, row: dict, side: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Prompt and completion."""
        nothing = "" if isinstance(row[side], str) else []
        return whole_ids(row.get("prompt") or nothing, row[side], tokenizer, row_template_kwargs(row))

    def plan(self, facts: Facts) -> MemoryPlan:
        length = self.args.max_length or model_window(facts.config) or 2 * UNKNOWN_LENGTH
        return memory_plan(
            facts.config,
            "reward",
            **args_settings(self.args) | planned_model(self.model, self.args, card=self.run.card is not None),
            prompt_length=length - length // 2,
            completion_length=length // 2,
            imitation=self.args.imitation_coef > 0,
        )


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run(RewardCommand, argv)
