"""What decides a run of RAFT or ReST besides its config, and what of it all cannot change on the way."""

from typing import Any

from trl_ext.generation.given_generator import generator_record
from trl_ext.rewards.reward_fingerprints import reward_settings
from trl_ext.self_training.grow import Grower
from trl_ext.sequences.tokenizers import tokenizer_fingerprint

HARMLESS = frozenset(
    {
        "generation_batch_size",
        "num_train_epochs",  # follows from stages and Improves
        "kl_coef",  # the former name of `beta`
    }
)
STEPS = ("rows_per_step", "steps_per_improve", "improves_per_stage", "improve_steps", "improve_epochs")
STEPS += ("stage_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
FIXED = dict.fromkeys(STEPS, "steps are counted by Improves of one length")
FIXED |= dict.fromkeys(("train_dataset", "prompts_per_part"), "Grows name their prompts by number")


def grow_record(grower: Grower) -> dict[str, Any]:
    """Data, tokenizer, rewards, who samples, and how steps are counted."""
    schedule = grower.schedule
    return {
        "train_dataset": grower.prompts.fingerprint(),
        "tokenizer": tokenizer_fingerprint(grower.policy.tokenizer),
        "reward_funcs": grower.scorer.names,
        "reward_settings": reward_settings(grower.scorer.rewards),
        "generator": generator_record(grower.generator),
        "rows_per_step": schedule.rows_per_step,  # also changes with the number of processes
        "steps_per_improve": schedule.steps_per_improve,
        "improves_per_stage": schedule.improves_per_stage,
    }
