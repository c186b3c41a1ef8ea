"""Learn a reward from preference pairs, with the imitation regulariser of Secrets of RLHF, Part I."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.reward_modeling.adaptive_margins import add_margins as add_margins
    from trl_ext.reward_modeling.imitation_reward_config import ImitationRewardConfig as ImitationRewardConfig
    from trl_ext.reward_modeling.imitation_reward_trainer import ImitationRewardTrainer as ImitationRewardTrainer

lazy_exports(__name__)
