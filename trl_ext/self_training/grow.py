"""The Grow of a stage, from prompts to a finished file: on all processes, once. It may die anywhere and goes on from there.

sampled, tokenised    the generator's samples and the data set's own    grow-000/sampled-00003.parquet
scored                duplicate, reward/…, score; log_probs, kl         grow-000/scored-00003.parquet
selected, kept        key, kept                                         grow-000.parquet
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
from accelerate import Accelerator
from datasets import Dataset, IterableDataset

from trl_ext.generation.protocol import Generator, Part, Policy, passes_policy
from trl_ext.generation.sample_files import Parts, prompt_type, sample_missing, sample_schema
from trl_ext.generation.tokenising import tokenised
from trl_ext.rewards.reward_columns import reward_columns
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.improve_rows import KeptRows
from trl_ext.self_training.schedule import Schedule, steps_per_improve
from trl_ext.self_training.selection import first_of_each
from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.self_training.stage_prompts import Check, SetPrompts, StageRows, StreamPrompts
from trl_ext.self_training.stage_selection import score_bounds, select
from trl_ext.self_training.weights import Weights, exchanged
from trl_ext.sequences.log_probs import completion_log_probs
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.texts import text_of
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.sequences.training_rows import training_row
from trl_ext.trainer_kit.machines import are_on_one_machine, seen
from trl_ext.trainer_kit.overrides import replaced
from trl_ext.trainer_kit.processes import from_main, together
from trl_ext.trainer_kit.seeds import stable_seed
from trl_ext.trainer_kit.whole_copies import WholeCopy

LogProbs = Callable[[list[Sample]], dict[str, list]]


@dataclass
class Grower:
    """What a Grow needs, apart from its number.

    Args:
        args, schedule: Of the run.
        prompts: Of all stages: rows with `prompt`, with columns for the rewards, maybe with `completion`.
        policy: Who is sampled.
        copy: Of the policy where FSDP2 cuts it, for passes that each process makes alone.
        generator: Who samples.
        scorer: Who scores.
        accelerator: The processes, each of which samples and scores its own parts.
        initial: The policy's trainable weights at the run's beginning, where it returns to them or measures from them.
        precision: Of the passes: the trainer's autocast.
        say: Told what is going on, for the progress bar.
        between_parts: Called when all that was made of a Grow is on disk; it may end the run by raising.
        enter: Told which phase begins, generate, score or train, for the memory that each takes.
        check: Told the prompts of a stage that come from a stream; it may refuse them.
    """

    args: SelfTrainingConfig
    schedule: Schedule
    prompts: SetPrompts | StreamPrompts
    policy: Policy
    copy: WholeCopy | None
    generator: Generator
    scorer: Scorer
    accelerator: Accelerator
    initial: Weights | None
    precision: Callable[[], AbstractContextManager]
    say: Callable[[str], None]
    between_parts: Callable[[], None]
    enter: Callable[[str], None]
    check: Check

    @property
    def dataset(self) -> Dataset | IterableDataset:
        """All prompts, as they were given."""
        return self.prompts.dataset

    def stage_rows(self, stage: int) -> StageRows:
        """What a stage asks, or has asked."""
        return self.prompts.of(stage, Path(self.args.output_dir), self.schedule)

    def files(self, stage: int) -> GrowFiles:
        return GrowFiles(Path(self.args.output_dir), stage)

    def grow(self, stage: int) -> GrowFiles:
        """Do whatever of a stage's Grow is not on disk yet."""
        files = self.files(stage)
        if not from_main(self.accelerator, files.finished.exists):  # machines may see it at different times
            needed = passes_policy(self.generator) or self.needs_log_probs
            with self.precision(), self.whole_policy() if needed else nullcontext():
                self._make(files, stage)
        self.tidy()
        with together(self.accelerator):
            seen(files.finished)
        self.enter("train")
        return files

    @contextmanager
    def whole_policy(self) -> Iterator[None]:
        """Inside the block each process may pass the policy at its own pace; all must enter it."""
        if self.copy is None:
            yield
            return
        with self.copy.filled() as model, replaced(self.policy, model=model):
            yield

    def kept_rows(self, stage: int, improve: int) -> KeptRows:
        """What an Improve of a stage whose Grow is finished learns from: a file that all processes map.

        It is removed at once, or by `tidy` where there are several machines: a shared drive takes it from all of them.
        """
        files = self.files(stage)
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                files.write_kept(improve, importance=self.args.importance_clip is not None)
        with together(self.accelerator):
            rows = KeptRows(seen(files.kept(improve)))
        if are_on_one_machine(self.accelerator):
            self.tidy()
        return rows

    def tidy(self) -> None:
        """Remove the parts of Grows that are finished, which no process reads from now on; all must ask for it."""
        with together(self.accelerator), suppress(PermissionError):  # of Windows, where one is open: the next time
            if self.accelerator.is_main_process:
                for stage in range(self.schedule.num_stages):
                    self.files(stage).tidy()

    def _make(self, files: GrowFiles, stage: int) -> None:
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                self.prompts.prepare(stage, Path(self.args.output_dir), self.check)
        with together(self.accelerator):
            dataset, rows = self.stage_rows(stage)
        parts = Parts(dataset, rows, size=self.args.prompts_per_part)
        mine = parts[self.accelerator.process_index :: self.accelerator.num_processes]
        self.enter("generate")
        with together(self.accelerator):
            self._sample(files, mine, stage, dataset)
        self.enter("score")
        with together(self.accelerator):
            for part in mine.indices:
                self._tell(f"stage {stage + 1}/{self.args.num_stages}: scoring part {part + 1}/{len(parts)}")
                self._score(files, part, stage, dataset)
            self.between_parts()
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                self._select(files, len(parts), stage)

    def _sample(self, files: GrowFiles, parts: Parts, stage: int, dataset: Dataset) -> None:
        schema = sample_schema(prompt_type(dataset), tokenizer_fingerprint(self.policy.tokenizer))
        sampling = self.args.sampling(stage=stage)
        where = f"stage {stage + 1}/{self.args.num_stages}"
        self._tell(f"{where}: sampling")
        complete = partial(self._completed, dataset=dataset)
        done = sample_missing(files, parts, self.generator, sampling, self.policy, schema=schema, complete=complete)
        for count, _ in enumerate(done, start=1):
            self._tell(f"{where}: sampled part {count}/{len(parts)}")

    def _tell(self, text: str) -> None:
        self.say(text)
        self.between_parts()

    def _completed(self, part: Part, samples: list[Sample], dataset: Dataset) -> list[Sample]:
        """Samples with the data set's own completions among them, and token ids for all."""
        if self.args.mix_dataset and "completion" in dataset.column_names:
            samples = samples + _own_completions(part, dataset)
        return sorted(tokenised(samples, self.policy), key=lambda sample: (sample["row"], sample["sample"]))

    def _score(self, files: GrowFiles, part: int, stage: int, dataset: Dataset) -> None:
        scorer = replace(self.scorer, seed=stable_seed(self.args.seed, "score", stage))
        log_probs = self._log_probs if self.needs_log_probs else None
        files.score(part, lambda table: with_scores(table, scorer, dataset, part, log_probs))

    @property
    def needs_log_probs(self) -> bool:
        """Whether its rows have the policy's log-probabilities."""
        return needs_log_probs(self.args)

    def _log_probs(self, samples: list[Sample]) -> dict[str, list]:
        """log π of each token of a completion; for λ also log π_0, at the run's beginning, and kl = Σ_t log π − log π_0."""
        rows = [training_row(sample["prompt_ids"], sample["completion_ids"]) for sample in samples]
        model, passes = self.policy.model, {"pad_token_id": self.policy.tokenizer.pad_token_id}
        passes |= {"batch_size": self.args.per_device_eval_batch_size, "device": self.accelerator.device}
        now = completion_log_probs(model, rows, **passes)
        if not self.args.beta:
            return {"log_probs": now}
        with exchanged(model, self.initial):
            then = completion_log_probs(model, rows, **passes)
        kl = [sum(a) - sum(b) for a, b in zip(now, then, strict=True)]
        return {"log_probs": now, "initial_log_probs": then, "kl": kl}

    def _select(self, files: GrowFiles, parts: int, stage: int) -> None:
        for part in range(parts):
            seen(files.scored(part))
        samples = files.selection_columns(parts)
        if not len(samples.scores):
            raise ValueError(
                f"the generator {self.generator.name!r} gave no completion to any prompt of stage {stage + 1}. Check "
                "that its prompts are those of train_dataset."
            )
        earlier = (self.files(g).table(["score"])["score"].to_numpy() for g in range(stage))
        bounds = score_bounds(samples.scores, earlier, self.args, stage=stage)
        seed = stable_seed(self.args.seed, "random", stage)
        files.finish_selected(parts, select(samples, self.args, bounds=bounds, seed=seed))


def needs_log_probs(args: SelfTrainingConfig) -> bool:
    """Whether a run's rows have the policy's log-probabilities."""
    return bool(args.beta) or args.importance_clip is not None


def schedule_of(args: SelfTrainingConfig, prompts: int) -> Schedule:
    """The plan of a run over so many prompts."""
    b = min(args.stage_batch_size or prompts, prompts)
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.improve_steps or steps_per_improve(b, epochs=args.improve_epochs, rows_per_step=rows)
    return Schedule(prompts, b, args.num_stages, args.improves_per_stage, steps, rows_per_step=rows, seed=args.seed)


def with_scores(
    table: pa.Table, scorer: Scorer, dataset: Dataset, part: int, log_probs: LogProbs | None = None
) -> pa.Table:
    """A part's samples, all of a prompt together, with `duplicate`, each reward, `score`, and what `log_probs` makes of them."""
    samples = table.to_pylist()
    new = ~first_of_each([(sample["row"], text_of(sample["completion"])) for sample in samples])
    table = table.append_column("duplicate", pa.array(new, pa.bool_()))
    columns = reward_columns(dataset, [sample["row"] for sample in samples])
    scores = scorer.columns(samples, columns, part=part) if samples else {}
    for name in [*(f"reward/{name}" for name in scorer.names), "score"]:
        table = table.append_column(name, pa.array(scores.get(name, []), pa.float64()))
    if log_probs is not None:
        for name, values in log_probs(samples).items():
            kind = pa.float64() if name == "kl" else pa.list_(pa.float32())
            table = table.append_column(name, pa.array(values, kind))
    return table


def _own_completions(part: Part, dataset: Dataset) -> list[Sample]:
    untold = {"sample": -1, "prompt_ids": None, "completion_ids": None, "seed": -1}
    rows = zip(part.rows, part.prompts, dataset[list(part.rows)]["completion"], strict=True)
    return [
        Sample(row=row, prompt=prompt, completion=completion, ended=True, generator="dataset", **untold)
        for row, prompt, completion in rows
        if completion is not None
    ]
