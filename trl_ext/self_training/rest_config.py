"""ReST's values, and ReST^EM's."""

from dataclasses import dataclass
from types import MappingProxyType

from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.trainer_kit.config_docs import documented, option

# What is None in ReSTConfig becomes: in ReST (arXiv:2308.08998), in ReST^EM (arXiv:2312.06585).
DEFAULTS = {
    "thresholds": ([0.0, 0.7, 0.8, 0.9, 0.95, 0.99], [0.0]),
    "temperature": (0.8, 0.7),
    "top_k": (0, 40),
    "num_generations": (8, 32),
    "max_kept_per_prompt": (None, 10),
    "mix_dataset": (True, False),
}


@documented
@dataclass
class ReSTConfig(SelfTrainingConfig):
    """ReST (arXiv:2308.08998): one Grow, then Improves on what scores above rising thresholds, then the next Grow.

        ReSTConfig(num_stages=2, thresholds=[0.7, 0.8, 0.9], score_map="running")
        ReSTConfig(restart_from_base=True)   # ReST^EM: scores 0 or 1, every Improve from the base, no human data

    The learning rate falls by `improve_lr_factor` from one Improve of a stage to the next: the paper says "lower" and
    gives no value, so one half is our choice. All other options are `SelfTrainingConfig`'s.
    """

    unset = MappingProxyType(
        SelfTrainingConfig.unset | {name: values for name, values in DEFAULTS.items() if name != "mix_dataset"}
    )

    num_stages: int = option(2, "Grow steps G.", group="the stages")
    improve_lr_factor: float = option(0.5, "Learning rate of an Improve as a multiple of the one before in its stage.")
    selection: str = option(
        "threshold", "'threshold', or 'percentile' or 'interpolation' of a prompt's scores.", group="the selection"
    )
    score_map: str | None = option(
        None,
        "Scores to [0, 1]: 'fixed' by score_range; by the least and most 'running' or in this 'grow'. None: "
        "'fixed' for thresholds, 'none' for a prompt's own percentiles and interpolations.",
    )
    thresholds: list[float] | None = option(None, "τ of each Improve. None: 0, .7, .8, .9, .95, .99; ReST^EM: 0.")
    max_kept_per_prompt: int | None = option(None, "Most completions kept per prompt. None: all; ReST^EM: 10.")
    mix_dataset: bool | None = option(None, "Mix in the data set's completions. None: if it has any; ReST^EM: no.")
    temperature: float | None = option(None, "Of sampling. None: 0.8; ReST^EM: 0.7.", group="the sampling")
    top_k: int | None = option(None, "None: all tokens; ReST^EM: 40.")
    num_generations: int | None = option(None, "Completions per prompt. None: 8; ReST^EM: 32.")

    def _resolve(self) -> None:
        if self.mix_dataset is None and self.importance_clip is not None:
            self.mix_dataset = False  # what is in the data set has no importance ratio
        if self.score_map is None:
            self.score_map = "fixed" if self.selection == "threshold" else "none"
        for name, (rest, em) in DEFAULTS.items():
            if getattr(self, name) is None:
                value = em if self.restart_from_base else rest
                setattr(self, name, list(value) if isinstance(value, list) else value)
        super()._resolve()
