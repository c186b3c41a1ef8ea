"""Runs the Grow of each stage for a trainer: on all its processes, on disk, once."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset

from trl_ext.generation.protocol import Generator, Part, Policy
from trl_ext.generation.sample_files import make_parts, sample_missing, sample_schema
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grow_parts import DATASET, finish, selection_columns, with_scores
from trl_ext.self_training.grow_summary import score_bounds
from trl_ext.self_training.monitors import distinct
from trl_ext.self_training.schedule import Schedule
from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.self_training.stage_selection import select
from trl_ext.self_training.tokenising import tokenised
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.texts import text_of
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.processes import together
from trl_ext.trainer_kit.seeds import stable_seed

LogProbs = Callable[[list[Sample]], dict[str, list]]


@dataclass
class Grower:
    """What a Grow needs, apart from its number.

    Args:
        args, schedule: Of the run.
        dataset: Rows with `prompt`, with columns for the rewards, maybe with `completion`.
        policy: Who is sampled.
        generator: Who samples.
        scorer: Who scores.
        accelerator: The processes, each of which samples and scores its own parts.
        log_probs: From samples to columns of log-probabilities; None if nothing needs them.
        say: Told what is going on, for the progress bar.
        enter: Told which phase begins, generate or score, for the memory that each takes.
    """

    args: SelfTrainingConfig
    schedule: Schedule
    dataset: Dataset
    policy: Policy
    generator: Generator
    scorer: Scorer
    accelerator: Accelerator
    log_probs: LogProbs | None
    say: Callable[[str], None]
    enter: Callable[[str], None]

    def files(self, stage: int) -> GrowFiles:
        return GrowFiles(Path(self.args.output_dir), stage)

    def grow(self, stage: int) -> GrowFiles:
        """Do whatever of a stage's Grow is not on disk yet."""
        files = self.files(stage)
        if files.finished.exists():
            if self.accelerator.is_main_process:
                files.tidy()
            return files
        rows = self.schedule.stage_rows(stage)
        parts = make_parts(rows, self.dataset[rows]["prompt"], size=self.args.prompts_per_part)
        mine = parts[self.accelerator.process_index :: self.accelerator.num_processes]
        self.enter("generate")
        with together(self.accelerator):
            self._sample(files, mine, stage)
        self.enter("score")
        with together(self.accelerator):
            for part in mine:
                self.say(f"stage {stage + 1}/{self.args.num_stages}: scoring part {part.index + 1}/{len(parts)}")
                self._score(files, part, stage)
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                self._finish(files, len(parts), stage)
        return files

    def _sample(self, files: GrowFiles, parts: list[Part], stage: int) -> None:
        schema = sample_schema(list(self.dataset["prompt"]), tokenizer_fingerprint(self.policy.tokenizer))
        sampling = self.args.sampling(stage=stage)
        where = f"stage {stage + 1}/{self.args.num_stages}"
        self.say(f"{where}: sampling")
        done = sample_missing(
            files, parts, self.generator, sampling, self.policy, schema=schema, complete=self._completed
        )
        for count, _ in enumerate(done, start=1):
            self.say(f"{where}: sampled part {count}/{len(parts)}")

    def _completed(self, part: Part, samples: list[Sample]) -> list[Sample]:
        """Samples with the data set's own completions among them, and token ids for all."""
        if self.args.mix_dataset and "completion" in self.dataset.column_names:
            samples = samples + self._own_completions(part)
        return sorted(tokenised(samples, self.policy), key=lambda sample: (sample["row"], sample["sample"]))

    def _own_completions(self, part: Part) -> list[Sample]:
        completions = self.dataset[list(part.rows)]["completion"]
        return [
            Sample(
                row=row,
                sample=-1,
                prompt=prompt,
                completion=completion,
                prompt_ids=None,
                completion_ids=None,
                ended=True,
                generator=DATASET,
                seed=-1,
            )
            for row, prompt, completion in zip(part.rows, part.prompts, completions, strict=True)
            if completion is not None
        ]

    def _score(self, files: GrowFiles, part: Part, stage: int) -> None:
        scorer = replace(self.scorer, seed=stable_seed(self.args.seed, "score", stage))
        files.score(
            part.index,
            lambda table: with_scores(table, scorer, self._columns, part=part.index, log_probs=self.log_probs),
        )

    def _columns(self, rows: list[int]) -> dict[str, list]:
        names = [name for name in self.dataset.column_names if name not in ("prompt", "completion", "completion_ids")]
        table = self.dataset.select_columns(names)[rows] if names and rows else {}
        return {name: list(table[name]) for name in names} if table else {}

    def _finish(self, files: GrowFiles, parts: int, stage: int) -> None:
        samples = selection_columns(files, parts)
        if not len(samples.scores):
            raise ValueError(
                f"the generator {self.generator.name!r} gave no completion to any prompt of stage {stage + 1}. Check "
                "that its prompts are those of train_dataset."
            )
        seed = stable_seed(self.args.seed, "random", stage)
        finish(files, parts, select(samples, self.args, bounds=self._bounds(stage, samples.scores), seed=seed))

    def _bounds(self, stage: int, scores: np.ndarray) -> tuple[float, float] | None:
        """The scores that the map takes to 0 and to 1."""
        if self.args.score_map == "none":
            return None
        if self.args.score_map == "fixed":
            low, high = self.args.score_range
            outside = np.mean((scores < low) | (scores > high))  # NaN is in neither
            if outside:
                warnings.warn(
                    f"{outside:.0%} of the scores of stage {stage + 1} lie outside score_range=[{low:g}, {high:g}] (they go "
                    f"from {np.nanmin(scores):g} to {np.nanmax(scores):g}) and are taken for its ends. Give a wider "
                    "range, or score_map='running'.",
                    stacklevel=2,
                )
            return low, high
        earlier = range(stage) if self.args.score_map == "running" else range(0)
        bounds = [score_bounds([self.files(g)]) for g in earlier]
        own = scores[~np.isnan(scores)]
        bounds += [(own.min(), own.max())] if len(own) else []
        lows, highs = zip(*(pair for pair in bounds if pair is not None), strict=True)
        return float(min(lows)), float(max(highs))

    def held_out(self, dataset: Dataset, generator: Generator) -> dict[str, float]:
        """Scores of one completion per held-out prompt, sampled with the same seeds at every evaluation."""
        sampling = replace(
            self.args.sampling(stage=0), num_generations=1, seed=stable_seed(self.args.seed, "held-out")
        )
        parts = make_parts(list(range(len(dataset))), dataset["prompt"], size=self.args.prompts_per_part)
        mine = parts[self.accelerator.process_index :: self.accelerator.num_processes]
        scorer, rows = replace(self.scorer, metrics={}), []
        with together(self.accelerator):
            for part, samples in generator.generate(mine, sampling, self.policy):
                columns = replace(self, dataset=dataset)._columns([sample["row"] for sample in samples])
                scores = scorer.columns(samples, columns, part=part.index)["score"]
                texts = [text_of(sample["completion"]) for sample in samples]
                lengths = [len(sample["completion_ids"]) for sample in samples]
                ended = [float(sample["ended"]) for sample in samples]
                rows += zip(scores, texts, lengths, ended, strict=True)
        scores, texts, lengths, ended = zip(*gather_object(rows), strict=True)
        scored = [score for score in scores if score is not None]
        if not scored:
            raise ValueError("no reward function scored any completion of a held-out prompt (all returned None).")
        return {
            "score": mean(scored),
            "length": mean(lengths),
            "ended_share": mean(ended),
            "distinct_2": distinct(texts, n=2),
        }
