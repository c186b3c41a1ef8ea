"""`trl-ext ppo`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from datasets import Dataset

from trl_ext.cli.command_arguments import DataArguments, RewardArguments
from trl_ext.cli.data_rows import named_rows
from trl_ext.cli.role_checks import check_scorer
from trl_ext.cli.roles import Roles
from trl_ext.cli.train_policy import PolicyCommand
from trl_ext.cli.training_command import Facts
from trl_ext.cli.training_command import main as run
from trl_ext.generation import TransformersGenerator, VLLMGenerator
from trl_ext.generation.protocol import Generator
from trl_ext.ppo import PPOConfig, PPOTrainer
from trl_ext.ppo.ppo_input import check_text, read_data
from trl_ext.ppo.samplers import checked_sampler
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


GENERATORS = {"trl": None, "transformers": TransformersGenerator, "vllm": VLLMGenerator}


@dataclass
class SamplerArguments:
    """Who samples."""

    _argument_group_name = "who samples"

    generator: str = option(
        "trl", "trl, as TRL's options say; transformers, where ended rows leave their batch; or vllm."
    )

    def made(self) -> Generator | None:
        """The generator; None for TRL."""
        if self.generator not in GENERATORS:
            raise ValueError(f"--generator {self.generator}: expected one of {', '.join(GENERATORS)}.")
        make = GENERATORS[self.generator]
        return make and make()


class PPOCommand(PolicyCommand):
    name = "ppo"
    method = "ppo"
    example = "--model_name_or_path MODEL --dataset_name prompts.jsonl --reward_funcs REWARD --output_dir OUT"
    description = (
        "PPO with a critic. Rows need `prompt`, text or messages; other columns reach the rewards. A stopped run goes on "
        "with the same command."
    )
    beside = (RewardArguments, CriticArguments, SamplerArguments)
    trainer_class = PPOTrainer

    @classmethod
    def config(cls):
        return PPOConfig

    @property
    def critic(self) -> CriticArguments:
        return self.others[1]

    @property
    def sampler(self) -> SamplerArguments:
        return self.others[2]

    def trainer(self, roles: Roles, train: Dataset, evaluation: Dataset | None) -> PPOTrainer:
        return self.trainer_class(
            **roles.policy(),
            reward_funcs=roles.rewards(self.named_rewards),
            args=self.args,
            train_dataset=train,
            eval_dataset=evaluation,
            value_model=roles.value_model(self.critic.value_model),
            ptx_dataset=self.text,
            generator=self.sampler.made(),
        )

    @cached_property
    def text(self) -> Dataset | None:
        """What is learned beside."""
        name = self.critic.ptx_dataset_name
        return name and named_rows(name, "train", DataArguments(), flag="--ptx_dataset_name")

    def check(self, facts: Facts) -> None:
        read_data(facts.train, facts.evaluation, self.args)
        check_text(self.text, self.args)
        checked_sampler(self.sampler.made(), None, self.args)
        if self.critic.value_model is not None:
            check_scorer(self.critic.value_model, flag="--value_model", new_head=True, may_come=self.run.dry_run)
        super().check(facts)

    def planned(self) -> dict:
        return {
            "value_model": self.critic.value_model is not None,
            "reference": self.args.beta != 0,
            "generator": "vllm" if self.sampler.generator == "vllm" else "transformers",
            "batch": self.args.generation_batch_size // self.args.world_size,
        }


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run(PPOCommand, argv)
