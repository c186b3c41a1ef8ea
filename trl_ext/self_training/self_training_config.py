"""Hyperparameters of sampling, selecting and fine-tuning on one's own samples."""

import warnings
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from trl import SFTConfig

from trl_ext.generation.protocol import UNSET, Sampling
from trl_ext.self_training.self_training_rules import BY_SHARE, MEANINGLESS, RULES
from trl_ext.trainer_kit.config_checks import check_config, defaults_of, refuse_meaningless, take_renamed
from trl_ext.trainer_kit.config_docs import documented, option
from trl_ext.trainer_kit.seeds import stable_seed

RENAMED = {"kl_coef": "beta"}
LEARNING_RATE, ADAPTER_RATE = 2e-5, 2e-4  # of all weights, and of an adapter


@documented
@dataclass
class SelfTrainingConfig(SFTConfig):
    """A run of stages: each samples completions (Grow), selects among them, and fine-tunes on those (Improve).

    All about the fine-tuning keeps its name and meaning in `SFTConfig`; options that mean nothing here are refused.
    `RAFTConfig` and `ReSTConfig` are this with the papers' values.

    Raises:
        ValueError: For a value out of its range, or an option of SFT that has no meaning here.
    """

    unset = MappingProxyType(UNSET)  # by the options' names, what None becomes, or what is as good

    learning_rate: float | None = option(
        None,
        "Peak learning rate of a stage's first Improve. None: 2e-4 with an adapter, 2e-5 in full.",
        group="the fine-tuning",
    )
    max_length: int | None = option(None, "Fixed: a sequence is as long as it was sampled.")
    completion_only_loss: bool | None = option(True, "Fixed: the loss runs over completions only.")
    num_train_epochs: float = option(3.0, "Not used: one epoch of the log is one Improve.")
    lr_scheduler_type: str = option("linear", "How the learning rate falls within each Improve.")

    num_stages: int = option(10, "Stages, i.e. Grow steps, at most.", group="the stages")
    stage_batch_size: int | None = option(
        None, "Prompts b per Grow. None: all prompts of the data set; of a stream it must be said."
    )
    improve_epochs: float = option(2.0, "Passes over b rows in an Improve; fewer kept rows are repeated.")
    improve_steps: int | None = option(None, "Optimizer steps of an Improve. None: those of `improve_epochs` passes.")
    improve_lr_factor: float = option(1.0, "Learning rate of an Improve as a multiple of the one before in its stage.")
    improve_patience: int = option(
        0, "End an Improve after so many evaluations without a better held-out score. 0: never."
    )
    keep_best: bool = option(
        False, "Go on from the weights with an Improve's best held-out score, not from its last ones."
    )
    fresh_optimizer: bool = option(True, "Begin each stage without the optimizer's moments of the stage before.")
    restart_from_base: bool = option(False, "Begin each stage's first Improve from the weights the run began with.")
    level_stages: int = option(0, "End the run when the mean score has not risen for so many stages. 0: never.")

    num_generations: int = option(8, "Completions K per prompt.", group="the sampling")
    max_completion_length: int | None = option(None, "Longest completion in tokens. None: 512, as in GRPO and PPO.")
    temperature: float = option(1.0, "Of sampling; 0 takes the likeliest token.")
    top_p: float = option(1.0, "Sample from the likeliest tokens of this joint share.")
    top_k: int = option(0, "Sample from so many of the likeliest tokens. 0: from all.")
    min_p: float | None = option(None, "Leave out tokens below this share of the likeliest one's probability.")
    repetition_penalty: float = option(1.0, "Divides the logits of tokens that are there already. 1: none.")
    generation_batch_size: int | None = option(
        None, "Completions sampled at once, which changes none of them. None: what memory allows."
    )
    prompts_per_part: int = option(64, "Prompts whose samples reach the disk together; a killed run loses one part.")
    chat_template_kwargs: dict[str, Any] | None = option(
        None, "Passed on to the chat template of conversational prompts."
    )

    reward_weights: list[float] | None = option(
        None, "One per reward function. None: 1 each. 0: watched, not counted.", group="the scores"
    )
    invalid_scores: str = option(
        "raise", "A reward that is NaN or infinite: 'raise' names the row, 'drop' drops and counts it."
    )
    beta: float = option(
        0.0, "Price of KL in the ranking key: score − β · (log π − log π at the run's beginning), per completion."
    )
    kl_coef: float | None = option(None, "Deprecated: the former name of `beta`.")
    score_map: str = option(
        "none", "Scores to [0, 1]: 'fixed' by score_range; by the least and most 'running' or in this 'grow'."
    )
    score_range: list[float] = option([0.0, 1.0], "The scores that the map 'fixed' takes to 0 and to 1.")

    selection: str = option(
        "local",
        "'local': best per prompt. 'global': best of the stage. 'threshold': above fixed values. 'percentile', "
        "'interpolation': of each prompt's scores.",
        group="the selection",
    )
    acceptance_ratio: float | None = option(
        None, "Share that 'local' and 'global' keep. None: 1/K, one completion per prompt."
    )
    thresholds: list[float] | None = option(
        None, "One per Improve of a stage, rising, in [0, 1]: τ, percentile / 100, or γ, by `selection`."
    )
    max_kept_per_prompt: int | None = option(
        None, "Most completions kept per prompt, the best first. None: all selected."
    )
    drop_truncated: bool = option(True, "Leave out completions that did not end.")
    drop_duplicates: bool = option(True, "Leave out completions that their prompt has already.")
    drop_alike: bool | None = option(
        None, "Leave out prompts whose samples all score alike. None: only with `importance_clip`."
    )
    random_selection: bool = option(False, "The control: keep as many of each prompt's samples, but random ones.")
    mix_dataset: bool = option(False, "Score and select the data set's own `completion` column too.")

    importance_clip: float | None = option(
        None,
        "RAFT++: ε of the clipped importance ratio to the policy that sampled. None: plain loss.",
        group="the loss",
    )

    accept_changes: list[str] | None = option(
        None, "What a resumed run may change: names of options, or e.g. 'reward_funcs'.", group="the run's folder"
    )

    def __post_init__(self):
        take_renamed(self, RENAMED)
        if self.max_completion_length is None:
            self._take_default_length()
        self._resolve()
        check_config(self, RULES, unset=self.unset)
        self.sampling(stage=0)
        self._check_selection()
        super().__post_init__()
        if self.num_train_epochs == self.improves:  # in a trainer's copy of its config
            self.num_train_epochs = defaults_of(self)["num_train_epochs"]
        refuse_meaningless(self, MEANINGLESS)

    def _take_default_length(self) -> None:
        self.max_completion_length = Sampling.max_completion_length
        warnings.warn(
            f"{type(self).__name__}(max_completion_length=None): it is now {self.max_completion_length}, as in GRPO and PPO, "
            "and was 128. Give it, to choose.",
            FutureWarning,
            stacklevel=4,
        )

    def _resolve(self) -> None:
        """Give values to what follows from other fields."""
        if self.drop_alike is None:
            self.drop_alike = self.importance_clip is not None

    @property
    def improves_per_stage(self) -> int:
        return len(self.thresholds) if self.thresholds else 1

    @property
    def improves(self) -> int:
        return self.num_stages * self.improves_per_stage

    def sampling(self, *, stage: int) -> Sampling:
        """How the Grow of a stage samples."""
        names = ("num_generations", "max_completion_length", "temperature", "repetition_penalty")
        names += ("top_p", "top_k", "min_p") if self.temperature else ()
        return Sampling(**{name: getattr(self, name) for name in names}, seed=stable_seed(self.seed, "grow", stage))

    def _check_selection(self) -> None:
        call = f"{type(self).__name__}(selection={self.selection!r}, thresholds={self.thresholds}): "
        if self.selection in BY_SHARE and self.thresholds is not None:
            raise ValueError(f"{call}this selection has none. Leave them out.")
        if self.selection not in BY_SHARE and not self.thresholds:
            raise ValueError(f"{call}expected a list with one value per Improve.")
        values = self.thresholds or []
        if any(not 0 <= value <= 1 for value in values) or sorted(set(values)) != values:
            raise ValueError(f"{call}expected rising values in [0, 1], one per Improve.")
