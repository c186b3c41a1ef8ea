"""RAFT's values."""

from dataclasses import dataclass

from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.trainer_kit.config_docs import documented, option


@documented
@dataclass
class RAFTConfig(SelfTrainingConfig):
    """RAFT (arXiv:2304.06767): per stage, K samples of each of b prompts, the best kept, the policy fine-tuned on them.

        RAFTConfig(stage_batch_size=2048, num_generations=8)    # the final paper: best of K per prompt
        RAFTConfig(selection="global", acceptance_ratio=1 / 8)  # the first version: top 1/K of the stage
        RAFTConfig(beta=0.01)                                   # λ: the ranking key charges for leaving the start
        RAFTConfig(importance_clip=0.2)                         # RAFT++ (arXiv:2504.11343)

    The optimizer is fresh in each stage and the learning rate falls linearly within it, as in the paper. All
    other options are `SelfTrainingConfig`'s.
    """

    stage_batch_size: int | None = option(
        2048, "Prompts b per stage. None: all prompts of the data set.", group="the stages"
    )
    level_stages: int = option(3, "End the run when the mean score has not risen for so many stages. 0: never.")
