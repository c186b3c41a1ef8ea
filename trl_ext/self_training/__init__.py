"""RAFT and ReST: one loop of Grow (sample, score), selection and Improve (TRL's SFT), its stages and what it keeps on
disk."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.self_training.monitors import distinct as distinct
    from trl_ext.self_training.raft_config import RAFTConfig as RAFTConfig
    from trl_ext.self_training.raft_trainer import RAFTTrainer as RAFTTrainer
    from trl_ext.self_training.rest_config import ReSTConfig as ReSTConfig
    from trl_ext.self_training.rest_trainer import ReSTTrainer as ReSTTrainer
    from trl_ext.self_training.run_folder import forget_run as forget_run
    from trl_ext.self_training.selection import at_most_per_prompt as at_most_per_prompt
    from trl_ext.self_training.selection import best_overall as best_overall
    from trl_ext.self_training.selection import best_per_prompt as best_per_prompt
    from trl_ext.self_training.selection import random_of_same_size as random_of_same_size
    from trl_ext.self_training.self_training_config import SelfTrainingConfig as SelfTrainingConfig
    from trl_ext.self_training.self_training_trainer import SelfTrainingTrainer as SelfTrainingTrainer

lazy_exports(__name__)
