"""From several completions of a prompt to the pairs that a labeler compares."""

import random
import warnings
from itertools import combinations
from typing import Any

from datasets import Dataset

from trl_ext.ai_feedback.preference_pairs import COMPLETIONS
from trl_ext.generation.completion_files import key_of
from trl_ext.sequences.prompt_rows import as_dataset, check_completions, check_prompts, one_split
from trl_ext.sequences.texts import Text, text_of
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import AT_LEAST_1
from trl_ext.trainer_kit.seeds import check_seed, stable_seed

CALL = "sample_pairs"
NEEDED = ("prompt", "completion")


def sample_pairs(samples: Dataset | list[dict], *, per_prompt: int = 1, seed: int = 0) -> Dataset:
    """Pairs of different completions of one prompt, drawn: `prompt`, `completion_1`, `completion_2`.

        samples = Dataset.from_parquet("samples.parquet")     # of `trl-ext generate`, or a Grow's
        PreferenceLabeler("my-judge").label(sample_pairs(samples))

    Args:
        samples: Or a list of rows, with `prompt` and `completion`, text or messages; those of one prompt may stand anywhere.
        per_prompt: How many; of n different completions there are at most n (n − 1) / 2.
        seed: Of the draw, which is each prompt's own: more prompts change none.

    Raises:
        ValueError: Where no prompt has two completions that differ; of fewer it is warned.
    """
    per_prompt = checked(CALL, "per_prompt", per_prompt, int, AT_LEAST_1)
    check_seed(seed, call=f"{CALL}(seed={seed!r})")
    groups = _by_prompt(samples)
    pairs = [pair for key, group in groups.items() for pair in _drawn(*group, per_prompt, stable_seed(seed, key))]
    lonely = sum(len(texts) < 2 for _, texts in groups.values())
    if not pairs:
        raise ValueError(
            f"{CALL}: none of {len(groups)} prompts has two completions that differ, so there is no pair. Sample more of each, "
            "e.g. trl-ext generate --num-generations 4."
        )
    if lonely:
        warnings.warn(
            f"{CALL}: {lonely} of {len(groups)} prompts have no two completions that differ, and so no pair.",
            stacklevel=2,
        )
    return Dataset.from_list(pairs)


def _by_prompt(samples: Dataset | list[dict]) -> dict[str, tuple[Text, dict[str, Text]]]:
    """By what is equal for equal prompts: the prompt, and its completions by their text, without empty ones."""
    one_split(samples, call=CALL)
    if isinstance(samples, list) and samples and all(isinstance(row, dict) and {*NEEDED} <= {*row} for row in samples):
        samples = as_dataset([{name: row[name] for name in NEEDED} for row in samples], call=CALL)
    columns = samples.column_names if isinstance(samples, Dataset) else type(samples).__name__
    if not isinstance(samples, Dataset) or not {*NEEDED} <= {*columns}:
        raise ValueError(f"{CALL}: expected a Dataset with `prompt` and `completion`, a row a sample; got {columns}.")
    prompts, completions = (samples.with_format(None)[name][:] for name in NEEDED)
    check_prompts(prompts, call=CALL)
    check_completions(prompts, completions, call=CALL)
    groups: dict[str, tuple[Text, dict[str, Text]]] = {}
    for prompt, completion in zip(prompts, completions, strict=True):
        _, texts = groups.setdefault(key_of(prompt), (prompt, {}))
        if text_of(completion).strip():
            texts.setdefault(text_of(completion), completion)
    return groups


def _drawn(prompt: Text, texts: dict[str, Text], most: int, seed: int) -> list[dict[str, Any]]:
    """So many pairs, in any order, as is who comes first in each."""
    rng, all_pairs = random.Random(seed), list(combinations(texts.values(), 2))
    pairs = rng.sample(all_pairs, min(most, len(all_pairs)))
    return [{"prompt": prompt} | dict(zip(COMPLETIONS, rng.sample(pair, 2), strict=True)) for pair in pairs]
