"""What `trl-ext generate` does: a Grow without a selection, into a file of any name."""

import json
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from rich.console import Console

from trl_ext.cli.alpaca_eval import check_free, write_alpaca_eval
from trl_ext.cli.generate_files import already_complete, check_parts, sampled_schema, summary
from trl_ext.cli.generate_policy import make_generator, make_policy
from trl_ext.cli.generate_progress import PartProgress
from trl_ext.cli.named_rewards import named_reward
from trl_ext.cli.prompt_files import read_prompts
from trl_ext.generation.given_generator import generator_record
from trl_ext.generation.protocol import Generator, Policy, Sampling
from trl_ext.generation.sample_files import Parts, SampleFiles, sample_missing
from trl_ext.generation.vllm_generator import VLLMGenerator
from trl_ext.rewards.reward_callables import reward_callables
from trl_ext.rewards.reward_columns import check_reward_columns
from trl_ext.rewards.weighted_rewards import Scorer, check_weights
from trl_ext.self_training.grow import with_scores
from trl_ext.sequences.turn_end import TEACH_THE_END
from trl_ext.trainer_kit.device import checked_device
from trl_ext.trainer_kit.fingerprints import data_fingerprint
from trl_ext.trainer_kit.own_folders import check_is_folder
from trl_ext.trainer_kit.run_record import write_record
from trl_ext.trainer_kit.seeds import check_seed, stable_seed


def generate(args: Namespace) -> None:
    """Do whatever of the command is not on disk yet; ends with one line of what the file holds."""
    _check(args)
    prompts = read_prompts(args.prompts, args.prompt_column)
    sampling = Sampling(**{field.name: getattr(args, field.name) for field in fields(Sampling)})
    generator = make_generator(args)
    record = generation_record(args, prompts, sampling, generator)
    files, console = SampleFiles(args.output), Console(soft_wrap=True, highlight=False, markup=False)
    complete = already_complete(files, record)
    check_free(args.alpaca_eval, complete=complete)
    if complete:
        write_alpaca_eval(args.alpaca_eval, args.output, prompts, name=leaderboard_name(args))
        tell(files, console, begin="Complete already. ")
        return
    check_parts(files, record)
    scorer = make_scorer(args)
    check_reward_columns(scorer.rewards, prompts, call=f"--prompts {args.prompts}")
    parts = Parts(prompts, size=args.prompts_per_part)
    if parts.missing(files):
        policy = make_policy(args)
        write_record(files.parts, record)  # only now that all else is in order
        sample(files, parts, generator, sampling, policy, schema=sampled_schema(prompts, policy, record))
        del policy  # rewards may need its memory
        if isinstance(generator, VLLMGenerator):
            generator.close()  # and its own
    score_missing(files, parts, scorer, prompts)
    files.finish(len(parts), {})
    write_alpaca_eval(args.alpaca_eval, args.output, prompts, name=leaderboard_name(args))
    tell(files, console)


def leaderboard_name(args: Namespace) -> str:
    """What AlpacaEval's table calls who sampled: the adapter's name, else the model's, else the generator's."""
    return Path(args.adapter or args.model or args.generator).name


def tell(files: SampleFiles, console: Console, begin: str = "") -> None:
    """One line of what the file holds; and on stderr that nothing in it ended, where that is so."""
    line, ended = summary(files)
    console.print(begin + line)
    if ended == 0:
        print(
            "trl-ext generate: warning: no completion ended; all were cut at --max-completion-length. Raise it, or "
            f"{TEACH_THE_END}.",
            file=sys.stderr,
        )


def sample(
    files: SampleFiles,
    parts: Parts,
    generator: Generator,
    sampling: Sampling,
    policy: Policy,
    *,
    schema: pa.Schema,
) -> None:
    """Sample the missing parts, behind a progress bar."""
    with PartProgress("sampling", len(parts)) as progress:
        progress.skip(len(parts) - len(parts.missing(files)))
        for _ in sample_missing(files, parts, generator, sampling, policy, schema=schema, complete=progress.count):
            progress.advance()


def _check(args: Namespace) -> None:
    if args.output.suffix != ".parquet":
        raise ValueError(f"--output {args.output}: expected a name that ends in .parquet.")
    check_is_folder(args.output.parent, call=f"--output {args.output}")
    if args.prompts_per_part < 1:
        raise ValueError(f"--prompts-per-part {args.prompts_per_part}: expected at least 1.")
    check_seed(args.seed, call=f"--seed {args.seed}")
    if args.device is not None:
        checked_device(args.device, call=f"--device {args.device}")


def make_scorer(args: Namespace) -> Scorer:
    """The rewards that are named, with their weights; without rewards one that has none."""
    flag, weights = args.reward_flag, args.reward_weights
    rewards = [named_reward(name, flag=flag) for name in args.reward]
    check_weights(weights, len(rewards), given=f"--reward-weights {weights}", each=flag)
    return Scorer(
        reward_callables(rewards, None, args, trainer="trl-ext generate"),
        weights or [1.0] * len(rewards),
        seed=stable_seed(args.seed, "score"),
    )


def score_missing(files: SampleFiles, parts: Parts, scorer: Scorer, prompts: Dataset) -> None:
    """Score the parts that are not scored yet. Without rewards they stay as they are."""
    with PartProgress("scoring", len(parts), shown=bool(scorer.rewards)) as progress:
        for part in parts.indices:
            files.score(
                part,
                lambda table, part=part: with_scores(table, scorer, prompts, part) if scorer.rewards else table,
            )
            progress.advance()


def generation_record(args: Namespace, prompts: Dataset, sampling: Sampling, generator: Generator) -> dict:
    """Everything that decides the samples and scores, as JSON takes it."""
    record = {
        "prompts": data_fingerprint(prompts),
        "prompts_per_part": args.prompts_per_part,
        "model": args.model,
        "adapter": args.adapter,
        "tokenizer": args.tokenizer,
        "dtype": args.dtype,
        "sampling": sampling.settings(),
        "generator": generator_record(generator),
        "reward": args.reward,
        "reward_weights": None if set(args.reward_weights or ()) <= {1.0} else args.reward_weights,  # None is 1 each
    }
    return json.loads(json.dumps(record))
