"""`trl-ext reward`."""

from datasets import Dataset

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.cli.dry_run import Line, read_as
from trl_ext.cli.roles import Roles, planned_model
from trl_ext.cli.training_command import Facts, TrainingCommand
from trl_ext.memory_planning.planning import MemoryPlan, memory_plan
from trl_ext.memory_planning.trainer_plan import UNKNOWN_LENGTH, args_settings
from trl_ext.reward_modeling.preference_data import check_pairs, columns_of
from trl_ext.reward_modeling.preference_rows import SIDES
from trl_ext.sequences.token_ids import message_ids, prompt_and_completion_ids, row_template_kwargs
from trl_ext.sequences.windows import model_window


class RewardCommand(TrainingCommand):
    name = "reward"
    example = "--model_name_or_path MODEL --dataset_name pairs.jsonl --output_dir OUT"
    description = (
        "A reward model from pairs, with the imitation regulariser. Rows need `chosen` and `rejected`, with `prompt` or with "
        "the whole conversation in both. A stopped run goes on with the same command."
    )

    @classmethod
    def config(cls):
        return ImitationRewardConfig

    def trainer(self, roles: Roles, train: Dataset, evaluation: Dataset | None) -> ImitationRewardTrainer:
        return ImitationRewardTrainer(**roles.scorer(), args=self.args, train_dataset=train, eval_dataset=evaluation)

    def check(self, facts: Facts) -> None:
        for name, rows in (("train", facts.train), ("eval", facts.evaluation)):
            if rows is not None:
                check_pairs(rows, columns_of(rows, name), name, complete=self.args.imitation_coef > 0)

    def first_row(self, facts: Facts) -> list[Line]:
        rows = check_pairs(facts.train.select([0]), columns_of(facts.train, "train"), "train")
        row, lines = rows[0], []
        for side in SIDES:
            lines += self._side(row, side, facts)
        return lines

    def _side(self, row: dict, side: str, facts: Facts) -> list[Line]:
        """One completion with its prompt, where it is known where that ends."""
        if side not in row:
            return [Line(side, "is given as tokens")]
        template_kwargs = row_template_kwargs(row)
        if not row.get("prompt"):
            whole = row[side]
            ids = (
                facts.tokenizer(whole + (facts.tokenizer.eos_token or ""))["input_ids"]
                if isinstance(whole, str)
                else message_ids(whole, facts.tokenizer, template_kwargs)
            )
            return [read_as(side, ids, facts.tokenizer)]
        parts = prompt_and_completion_ids(row["prompt"], row[side], facts.tokenizer, template_kwargs)
        names = (f"prompt of {side}", f"{side}, its end included")
        return [read_as(name, ids, facts.tokenizer) for name, ids in zip(names, parts, strict=True)]

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
