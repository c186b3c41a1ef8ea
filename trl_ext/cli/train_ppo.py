"""`trl-ext ppo`."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from trl_ext.cli.command_arguments import DataArguments, RewardArguments
from trl_ext.cli.data_rows import named_rows
from trl_ext.cli.roles import Roles
from trl_ext.cli.train_policy import PolicyCommand
from trl_ext.cli.training_command import Facts
from trl_ext.cli.training_command import main as run
from trl_ext.ppo import PPOConfig, PPOTrainer
from trl_ext.ppo.ppo_input import check_text, read_data
from trl_ext.trainer_kit.config_docs import option


@dataclass
class CriticArguments:
    """What is learned beside the policy."""

    _argument_group_name = "beside the policy"

    value_model: str | None = option(
        None, "A reward model, or an adapter of one, that the critic begins as. None: a head on the policy."
    )
    ptx_dataset_name: str | None = option(
        None,
        "Text that is learned beside, with ptx_coef: a file or a hub id, with text, prompt and completion, or messages.",
    )


class PPOCommand(PolicyCommand):
    name = "ppo"
    method = "ppo"
    example = "--model_name_or_path MODEL --dataset_name prompts.jsonl --reward_funcs REWARD --output_dir OUT"
    description = (
        "PPO with a critic. Rows need `prompt`, text or messages; other columns reach the rewards. A stopped run goes on "
        "with the same command."
    )
    beside = (RewardArguments, CriticArguments)

    @classmethod
    def config(cls):
        return PPOConfig

    @property
    def critic(self) -> CriticArguments:
        return self.others[1]

    def trainer(self, roles: Roles, train: Dataset, evaluation: Dataset | None) -> PPOTrainer:
        return PPOTrainer(
            **roles.policy(),
            reward_funcs=roles.rewards(self.rewards),
            args=self.args,
            train_dataset=train,
            eval_dataset=evaluation,
            value_model=roles.value_model(self.critic.value_model),
            ptx_dataset=self._text(),
        )

    def _text(self) -> Dataset | None:
        name = self.critic.ptx_dataset_name
        return name and named_rows(name, "train", DataArguments(), flag="--ptx_dataset_name")

    def check(self, facts: Facts) -> None:
        read_data(facts.train, facts.evaluation, self.args)
        check_text(self._text(), self.args)
        super().check(facts)

    def planned(self) -> dict:
        return {
            "value_model": self.critic.value_model is not None,
            "reference": self.args.beta != 0,
            "batch": self.args.generation_batch_size // self.args.world_size,
        }


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run(PPOCommand, argv)
