"""`trl-ext rest`."""

from collections.abc import Sequence

from trl_ext.cli.train_raft import RAFTCommand
from trl_ext.cli.training_command import main as run
from trl_ext.self_training import ReSTConfig, ReSTTrainer


class ReSTCommand(RAFTCommand):
    name = "rest"
    method = "rest"
    description = RAFTCommand.description.replace(
        "RAFT: sample, keep the best", "ReST: sample, keep what passes a threshold"
    )
    trainer_class = ReSTTrainer

    @classmethod
    def config(cls):
        return ReSTConfig


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run(ReSTCommand, argv)
