"""Held-out prompts: what SFTTrainer evaluates of them, and the scores of their samples."""

from dataclasses import replace
from statistics import mean

from accelerate.utils import gather_object
from datasets import Dataset

from trl_ext.generation.protocol import Generator
from trl_ext.generation.sample_files import Parts
from trl_ext.rewards.reward_columns import reward_columns
from trl_ext.self_training.grow import Grower
from trl_ext.self_training.monitors import distinct
from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.texts import text_of
from trl_ext.sequences.training_rows import IGNORED, TrainingRow
from trl_ext.trainer_kit.processes import together
from trl_ext.trainer_kit.seeds import stable_seed

PLACEHOLDER: TrainingRow = {"input_ids": [0, 0], "labels": [IGNORED, 0]}


def references(dataset: Dataset | None, args: SelfTrainingConfig) -> Dataset | None:
    """What SFTTrainer evaluates: reference answers where there are any, else a row that stands for them."""
    if dataset is None:
        return None
    if "completion" not in dataset.column_names:
        return Dataset.from_list([PLACEHOLDER])
    chosen = dataset.select_columns(["prompt", "completion"])
    if args.chat_template_kwargs:
        chosen = chosen.add_column("chat_template_kwargs", [args.chat_template_kwargs] * len(chosen))
    return chosen


def held_out_scores(dataset: Dataset, grower: Grower, generator: Generator) -> dict[str, float]:
    """Mean score and the like of one completion per held-out prompt, sampled with the same seeds at every evaluation.

    The run's `grower` has the policy, who scores, and the processes, each of which takes its own parts.
    """
    with grower.precision(), grower.whole_policy(), together(grower.accelerator):
        own = _scored(dataset, grower, generator)
    scores, samples = zip(*gather_object(own), strict=True)
    scored = [score for score in scores if score is not None]
    if not scored:
        raise ValueError("no reward function scored any completion of a held-out prompt (all returned None).")
    return {
        "score": mean(scored),
        "length": mean(len(sample["completion_ids"]) for sample in samples),
        "ended_share": mean(float(sample["ended"]) for sample in samples),
        "distinct_2": distinct((text_of(sample["completion"]) for sample in samples), n=2),
    }


def _scored(dataset: Dataset, grower: Grower, generator: Generator) -> list[tuple[float | None, Sample]]:
    """This process's samples, each with its score."""
    seed = stable_seed(grower.args.seed, "held-out")
    sampling = replace(grower.args.sampling(stage=0), num_generations=1, seed=seed)
    parts = Parts(dataset, size=grower.args.prompts_per_part)
    mine = parts[grower.accelerator.process_index :: grower.accelerator.num_processes]
    scorer, scored = replace(grower.scorer, metrics={}), []
    for part, samples in generator.generate(mine, sampling, grower.policy):
        columns = reward_columns(dataset, [sample["row"] for sample in samples])
        scored += zip(scorer.columns(samples, columns, part=part.index)["score"], samples, strict=True)
    return scored
