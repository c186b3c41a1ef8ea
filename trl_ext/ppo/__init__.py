"""PPO with a critic, on top of TRL's GRPO: token rewards, advantages, the value function, and what is logged of them."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.ppo.ppo_config import PPOConfig as PPOConfig
    from trl_ext.ppo.ppo_trainer import PPOTrainer as PPOTrainer

lazy_exports(__name__)
