"""What self-training asks of its options: those of `SFTConfig` that mean nothing, and where each other does something."""

import math
from dataclasses import replace
from typing import Any

from trl_ext.trainer_kit.option_rules import Need, Rule, having, nonzero, without
from trl_ext.trainer_kit.training_rules import TRAINING_RULES

SELECTIONS = ("local", "global", "threshold", "percentile", "interpolation")
SCORE_MAPS = ("none", "fixed", "running", "grow")

LENGTH = "the run's length is num_stages × Improves per stage (one, of ReST one for each of `thresholds`)"
EPOCHS = f"{LENGTH}, so set num_stages; passes within an Improve are `improve_epochs`"

# Fields of SFTConfig that mean nothing here, and why. Their defaults are accepted, anything else is refused.
MEANINGLESS = {
    "max_length": "a sequence is as long as it was sampled; `max_completion_length` bounds completions",
    "packing": "an Improve has a fixed number of rows, which packing would join",
    "padding_free": "batches are padded",
    "packing_strategy": "an Improve has a fixed number of rows, which packing would join",
    "truncation_mode": "a sequence is as long as it was sampled; `max_completion_length` bounds completions",
    "dataset_text_field": "rows are prepared from the samples",
    "eval_packing": "an evaluation's rows are its reference answers",
    "completion_only_loss": "the loss runs over completions only",
    "assistant_only_loss": "the loss runs over completions only",
    "dataset_kwargs": "rows are prepared from the samples",
    "shuffle_dataset": "prompts are shuffled by stage, and rows by Improve",
    "train_sampling_strategy": "rows are shuffled anew in each pass of an Improve",
    "auto_find_batch_size": "steps per Improve are fixed before the run",
    "ignore_data_skip": "a resumed run would read other rows than the one that was stopped",
    "dataloader_persistent_workers": "workers would go on with the rows of the first Improve",
    "save_only_model": "a resumed run would begin at its first step",
    "num_train_epochs": EPOCHS,
    "max_steps": f"{LENGTH} × steps of an Improve (`improve_steps`); set these",
}

BY_SHARE = ("local", "global")  # selections by `acceptance_ratio`; the others are by `thresholds`


def best_of(num_generations: int, *, acceptance_ratio: float | None) -> int:
    """How many of each prompt's completions `selection="local"` keeps, the best first.

    >>> best_of(8, acceptance_ratio=0.25), best_of(8, acceptance_ratio=None)
    (2, 1)
    """
    return max(1, round((acceptance_ratio or 1 / num_generations) * num_generations))


def most_kept(args: Any) -> int:
    """How many of a prompt's completions a `SelfTrainingConfig` may keep at all."""
    if args.selection == "local" and args.importance_clip is None:
        return best_of(args.num_generations, acceptance_ratio=args.acceptance_ratio)
    return args.num_generations + bool(args.mix_dataset)


def keeps_all(args: Any) -> bool:
    """Whether a `SelfTrainingConfig` keeps each sample that may be kept, whatever it ranks.

    >>> from types import SimpleNamespace
    >>> one = {"importance_clip": None, "max_kept_per_prompt": None, "num_generations": 8, "mix_dataset": False}
    >>> [keeps_all(SimpleNamespace(**one, selection="local", acceptance_ratio=ratio)) for ratio in (0.9, 0.95, 1.0, None)]
    [False, True, True, False]
    """
    if args.max_kept_per_prompt is not None:
        return False
    if args.selection == "percentile":
        return args.thresholds == [0]  # at or above each prompt's least score
    if args.selection not in BY_SHARE:
        return False
    if args.selection == "global":
        return args.acceptance_ratio == 1
    return args.importance_clip is None and most_kept(args) == args.num_generations + bool(args.mix_dataset)


SEVERAL_SAMPLES = Need(
    lambda args: args.num_generations + bool(args.mix_dataset) > 1,
    "it does nothing with one sample per prompt. Sample more, or leave it out.",
    ("num_generations",),
)
HELD_OUT = Need(
    lambda args: args.eval_strategy == "steps",
    "it needs held-out scores within an Improve. Set eval_strategy='steps' with eval_steps, and give the trainer an "
    "eval_dataset.",
    ("eval_strategy",),
)
SEVERAL_STAGES = Need(
    lambda args: args.num_stages > 1, "it does nothing in a run of one stage. Leave it out.", ("num_stages",)
)

# What self-training asks of its options. The annotations say their types; `Sampling` checks those of sampling.
RULES = TRAINING_RULES | {
    "num_stages": Rule(1),
    "stage_batch_size": Rule(1),
    "improve_epochs": Rule(above=0.0, needs=without("improve_steps", "it says the length of an Improve already")),
    "improve_steps": Rule(1),
    "improve_lr_factor": Rule(
        above=0.0,
        high=1.0,
        needs=Need(
            lambda args: args.improves_per_stage > 1,
            "it does nothing with one Improve per stage. Give more `thresholds`, or leave it out.",
            ("thresholds",),
        ),
    ),
    "improve_patience": Rule(0, needs=HELD_OUT),
    "keep_best": Rule(needs=HELD_OUT),
    "fresh_optimizer": Rule(
        needs=(without("restart_from_base", "the optimizer begins anew with the weights"), SEVERAL_STAGES)
    ),
    "restart_from_base": Rule(
        needs=Need(
            lambda args: args.num_stages > 1 or "num_generations" in args.unset,  # of ReST's defaults it chooses too
            *(SEVERAL_STAGES.said, SEVERAL_STAGES.shown),
        )
    ),
    "level_stages": Rule(
        0,
        needs=Need(
            lambda args: args.level_stages == 0 or args.level_stages + 1 < args.num_stages,
            "the run would be over before it could end it. Lower it below num_stages − 1, or leave it out.",
            ("num_stages",),
        ),
    ),
    "num_generations": Rule(1),
    "max_completion_length": Rule(1),
    "temperature": Rule(0.0),
    "top_p": Rule(needs=nonzero("temperature")),
    "top_k": Rule(needs=nonzero("temperature")),
    "min_p": Rule(needs=nonzero("temperature")),
    "generation_batch_size": Rule(1),
    "prompts_per_part": Rule(1),
    "invalid_scores": Rule(words=("raise", "drop")),
    "beta": Rule(
        0.0,
        needs=Need(
            lambda args: not args.random_selection or args.selection != "local" or args.importance_clip is not None,
            "it does nothing, since so many of each prompt's samples are drawn whatever they rank. Leave one of the two out.",
            ("random_selection", "selection"),
        ),
    ),
    "score_map": Rule(
        words=SCORE_MAPS,
        needs=Need(
            lambda args: args.score_map in ("none", "fixed") or args.selection == "threshold" or args.beta != 0,
            "it does nothing, since the samples keep their order and distances, and this selection asks for no more. "
            "Leave it out.",
            ("selection", "beta"),
        ),
    ),
    "score_range": Rule(
        fits=lambda ends: len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf,
        expected="[lowest, highest], two finite numbers",
        needs=having("score_map", "fixed"),
    ),
    "selection": Rule(words=SELECTIONS),
    "acceptance_ratio": Rule(
        above=0.0,
        high=1.0,
        needs=(
            Need(
                lambda args: args.selection in BY_SHARE,
                "only 'local' and 'global' keep a share; give `thresholds`.",
                ("selection",),
            ),
            Need(
                lambda args: args.importance_clip is None or args.selection != "local",
                "it does nothing, since RAFT++ keeps all that share their prompt's best score. Leave one of the two out.",
                ("importance_clip", "selection"),
            ),
        ),
    ),
    "max_kept_per_prompt": Rule(
        1,
        needs=Need(
            lambda args: args.max_kept_per_prompt < most_kept(args),
            "it does nothing, since no more are kept of a prompt anyway. Lower it, or leave it out.",
            ("num_generations", "selection", "acceptance_ratio"),
        ),
    ),
    "drop_duplicates": Rule(needs=SEVERAL_SAMPLES),
    "drop_alike": Rule(
        needs=Need(
            lambda args: not args.drop_alike or args.num_generations + bool(args.mix_dataset) > 1,
            "one sample per prompt scores like itself, so all would be left out. Sample more, or set drop_alike=False.",
            ("num_generations",),
        )
    ),
    "random_selection": Rule(
        needs=(
            SEVERAL_SAMPLES,
            Need(
                lambda args: not keeps_all(args),
                "it does nothing, since all samples are kept. Lower acceptance_ratio, raise the thresholds, or leave it out.",
                ("selection", "acceptance_ratio", "thresholds"),
            ),
        )
    ),
    "importance_clip": Rule(above=0.0),
    "mix_dataset": Rule(
        needs=Need(
            lambda args: args.importance_clip is None or not args.mix_dataset,
            "the data set's completions were not sampled from the policy, so they have no importance ratio. Choose one.",
            ("importance_clip",),
        )
    ),
    "loss_type": Rule(needs=without("importance_clip", "RAFT++'s loss takes neither another loss nor smoothing")),
    "label_smoothing_factor": replace(
        TRAINING_RULES["label_smoothing_factor"],
        needs=without("importance_clip", "RAFT++'s loss takes neither another loss nor smoothing"),
    ),
    "pad_to_multiple_of": replace(
        TRAINING_RULES["pad_to_multiple_of"],
        needs=Need(
            lambda args: args.importance_clip is None or args.pad_to_multiple_of in (None, "auto"),
            "RAFT++'s batches are padded to their longest row. Leave it out.",
            ("importance_clip",),
        ),
    ),
}
