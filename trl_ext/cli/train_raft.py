"""`trl-ext raft`."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from trl_ext.cli.command_arguments import RewardArguments
from trl_ext.cli.roles import Roles
from trl_ext.cli.train_policy import PolicyCommand
from trl_ext.cli.training_command import Facts
from trl_ext.cli.training_command import main as run
from trl_ext.generation import FileGenerator, VLLMGenerator
from trl_ext.generation.protocol import Generator
from trl_ext.self_training import RAFTConfig, RAFTTrainer
from trl_ext.self_training.grow import needs_log_probs
from trl_ext.self_training.self_training_input import checked_args, read_eval_dataset
from trl_ext.self_training.self_training_trainer import SelfTrainingTrainer
from trl_ext.self_training.stage_prompts import stage_prompts
from trl_ext.trainer_kit.config_docs import option


@dataclass
class GeneratorArguments:
    """Who samples."""

    _argument_group_name = "who samples"

    generator: str = option("transformers", "transformers; vllm; or a .parquet or .jsonl file of samples.")

    def made(self) -> Generator | None:
        """The generator; None for the trainer's own."""
        if self.generator == "transformers":
            return None
        return VLLMGenerator() if self.generator == "vllm" else FileGenerator(self.generator)


class RAFTCommand(PolicyCommand):
    name = "raft"
    method = "raft"
    example = "--model_name_or_path MODEL --dataset_name prompts.jsonl --reward_funcs REWARD --output_dir OUT"
    description = (
        "RAFT: sample, keep the best, fine-tune on them, in stages whose samples, scores and choices are files. Rows need "
        "`prompt`; other columns reach the rewards. A stopped run goes on with the same command."
    )
    beside = (RewardArguments, GeneratorArguments)
    trainer_class = RAFTTrainer

    @classmethod
    def config(cls):
        return RAFTConfig

    @property
    def sampler(self) -> GeneratorArguments:
        return self.others[1]

    def trainer(self, roles: Roles, train: Dataset, evaluation: Dataset | None) -> SelfTrainingTrainer:
        return self.trainer_class(
            **roles.policy(),
            reward_funcs=roles.rewards(self.named_rewards),
            args=self.args,
            train_dataset=train,
            eval_dataset=evaluation,
            generator=self.sampler.made(),
        )

    def check_stream(self) -> None:
        """How many prompts a stage takes says it, which `check` asks for."""

    def check(self, facts: Facts) -> None:
        name = self.trainer_class.__name__
        self.sampler.made()
        checked_args(self.args, self.model.model_name_or_path, None, trainer=name, config=self.config())
        stage_prompts(facts.train, count=self.args.stage_batch_size, trainer=name, completions=self.args.mix_dataset)
        read_eval_dataset(facts.evaluation, self.args, trainer=name)
        super().check(facts)

    def planned(self) -> dict:
        batch = {"batch": self.args.generation_batch_size} if self.args.generation_batch_size else {}
        if self.sampler.generator in ("transformers", "vllm"):
            return batch | {"generator": self.sampler.generator}
        passed = needs_log_probs(self.args) or self.args.eval_strategy != "no"
        return batch | {"generator": "file", "policy_passes": passed}


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run(RAFTCommand, argv)
