"""The options of `ImitationRewardTrainer`."""

from dataclasses import dataclass

from trl import RewardConfig

from trl_ext.trainer_kit.config_checks import check_config, refuse_meaningless
from trl_ext.trainer_kit.config_docs import documented, option
from trl_ext.trainer_kit.option_rules import Rule, nonzero
from trl_ext.trainer_kit.training_rules import TRAINING_RULES

# Fields of RewardConfig that its loss gives no meaning, and why. Their defaults are accepted, anything else is refused.
MEANINGLESS = {
    "label_smoothing_factor": "there are no labels to smooth; each row says which completion is better",
}
RULES = TRAINING_RULES | {
    "center_rewards_coefficient": Rule(0.0),
    "max_length": Rule(1),
    "train_sampling_strategy": Rule(
        words=("random", "sequential"),
        expected="'random' or 'sequential', since a row is a pair and has no one length",
    ),
    "imitation_coef": Rule(0, expected="a finite weight of at least 0; 0 switches imitation off"),
    "imitation_head": Rule(needs=nonzero("imitation_coef")),
}


@documented
@dataclass
class ImitationRewardConfig(RewardConfig):
    """What imitation adds to TRL's `RewardConfig`, whose options keep their names, meaning and defaults.

    So does `learning_rate`, which is TRL's 1e-4 whatever is trained: with `imitation_coef=0` the run is TRL's bit for bit.

    >>> ImitationRewardConfig("rm", imitation_coef=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: ImitationRewardConfig(imitation_coef=-1.0): expected a finite weight of at least 0; 0 switches imitation off.
    """

    imitation_coef: float = option(
        0.1,
        "Weight of the imitation term, at least 0: larger keeps the trunk closer to predicting the chosen "
        "completions; 0 is TRL's RewardTrainer exactly.",
        group="the imitation",
    )
    imitation_head: str | None = option(
        None,
        "Checkpoint whose vocabulary head reads the trunk. Default: the one the model was loaded from, or the "
        "embedding where the two are tied. Needed for an untied reward model, which is saved without a head.",
    )

    accept_changes: list[str] | None = option(
        None, "What a resumed run may change: names of options, or e.g. 'train_dataset'.", group="the run's folder"
    )

    def __post_init__(self):
        check_config(self, RULES)
        refuse_meaningless(self, MEANINGLESS)
        super().__post_init__()
