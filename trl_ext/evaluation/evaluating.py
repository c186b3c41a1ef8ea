"""One look at a policy: prompts that it has not trained on, what it answers, and what is thought of that."""

import warnings
from collections import Counter
from statistics import mean
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.evaluation.comparison import GENERATOR, MADE_OF, PERPLEXITY, UNEVEN, Evaluation, values_of
from trl_ext.generation.given_generator import checked_generator, finished_parts, generator_record
from trl_ext.generation.protocol import OWN_GENERATORS, Generator, Part, Policy, Sampling
from trl_ext.generation.tokenising import tokenised
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.rewards.reward_callables import Rewards, reward_functions
from trl_ext.rewards.reward_columns import check_reward_columns, reward_columns
from trl_ext.rewards.reward_fingerprints import reward_settings
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.self_training.monitors import distinct, msttr
from trl_ext.sequences.answer_rows import answer_rows
from trl_ext.sequences.exact_kl import completion_kl
from trl_ext.sequences.log_probs import completion_log_probs
from trl_ext.sequences.prompt_rows import read_dataset
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.template_check import check_template_is_asked
from trl_ext.sequences.texts import text_of
from trl_ext.sequences.training_rows import training_row
from trl_ext.sequences.windows import check_all_windows
from trl_ext.shared_base.given_policy import Base, Given, check_same_words, given_policy, name_of
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.device import default_device
from trl_ext.trainer_kit.fingerprints import data_fingerprint, weights_fingerprint
from trl_ext.trainer_kit.option_rules import Rule
from trl_ext.trainer_kit.seeds import seeded

REFERENCES = "reference"  # a column of this name may be missing
CALL = "evaluate(dataset=…)"
COUNT = Rule(1, expected="a whole number of at least 1")


def evaluate(
    policy: Given,
    dataset: Dataset,
    rewards: Rewards | None,
    *,
    max_completion_length: int,
    base: Base = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reference: Given | None = None,
    references_column: str | None = REFERENCES,
    generator: Generator | None = None,
    num_samples: int = 1,
    temperature: float = 1.0,
    chat_template_kwargs: dict[str, Any] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Sample held-out prompts from a policy, and measure: rewards, KL to a reference, length, ends, variety.

        before, after = (
            evaluate(path, prompts, [R3Reward(), "my-reward-model"], max_completion_length=256, reference="my-sft-model")
            for path in ("my-sft-model", "ppo")
        )
        after.compare(before)  # differences, their errors, and what so many prompts could have shown

    The same seed gives the same samples, and nothing of the policy, or of anybody's random numbers, is changed. KL is
    at temperature 1, of whole completions with their ends, in nats: exactly over the vocabulary (`kl`), and by k1 =
    log π − log π_ref of what was sampled (`kl_k1`). Both need the policy's own samples at temperature 1.

    Args:
        policy: A causal LM, one with an adapter (a role of a SharedBase too), or the path or hub id of either.
        dataset: Rows with `prompt`, text or messages; other columns reach the rewards.
        rewards: Functions in TRL's protocol, sync or async, reward models, their paths; one or a list of them, or None.
        max_completion_length: In tokens, as in training; `R3Reward` takes it as its L.
        base: What an adapter at a path goes on: a SharedBase or a path. None: the base that the adapter names.
        tokenizer: The policy's; None: the one beside it.
        reference: What KL is measured to, e.g. where training began, in any of the policy's forms. None: no KL.
        references_column: Answers whose perplexity is measured: messages, or text with the space that it begins with.
            Rows where it is None or empty are passed over. Data for R³ have such a column, and so get a perplexity.
        generator: Who samples; None: transformers. With a file or an endpoint only perplexity is the policy's own.
        num_samples, temperature: Completions per prompt; of sampling, 0 takes the likeliest token.
        chat_template_kwargs: Passed on to the chat template.
        batch_size: Completions sampled at once, and rows per pass. None: what memory allows, and 16.
        seed: Of sampling, and of rewards that draw random numbers.
    """
    num_samples = checked("evaluate", "num_samples", num_samples, int, COUNT)
    max_completion_length = checked("evaluate", "max_completion_length", max_completion_length, int, COUNT)
    batch_size = checked("evaluate", "batch_size", batch_size, int | None, COUNT)
    passes = 16 if batch_size is None else batch_size
    dataset = read_dataset(dataset, trainer="evaluate", name="dataset")
    if references_column not in (None, REFERENCES, *dataset.column_names):
        raise ValueError(f"evaluate({references_column=}): expected one of {dataset.column_names}, or None.")
    check_template_is_asked([dataset["prompt"][0]], chat_template_kwargs, call=CALL)
    sampling = Sampling(num_samples, max_completion_length, temperature, seed=seed)
    own = TransformersGenerator(batch_size=batch_size)
    generator = own if generator is None else checked_generator(generator, call="evaluate(generator=…)")
    functions = reward_functions(rewards, max_completion_length=max_completion_length, call="evaluate")
    check_reward_columns(functions, dataset, call=CALL)
    if reference is not None and (generator.name not in OWN_GENERATORS or temperature != 1):
        how = f"evaluate({temperature=}, generator={generator.name!r}, reference=…)"
        warnings.warn(f"{how}: no KL is measured, which needs the policy's samples at temperature 1.", stacklevel=2)
        reference = None
    with seeded(seed):
        given = given_policy(policy, base, tokenizer, device=default_device(), call="evaluate(policy=…)")
        asked, start = Policy(*given, chat_template_kwargs or {}), None
        if reference is not None:
            start, _ = given_policy(reference, base, given[1], device=given[0].device, call="evaluate(reference=…)")
            check_same_words(reference, start, *given, call="evaluate")
        rows = _rows_that_fit(asked, start, dataset, references_column, max_completion_length)
        samples = _sampled(generator, dataset, sampling, asked)
        columns, metrics = _scores(functions, samples, dataset, seed)
        columns |= {} if start is None else _kl(asked, start, samples, passes)
        references = _nll(asked, rows, len(dataset), passes)
    made_of = {f"the reward {name!r}": made for name, made in reward_settings(functions).items()}
    made_of |= {} if start is None else {"the reference": weights_fingerprint(start)}
    counts = Counter(sample["row"] for sample in samples)
    uneven = [[row, counts[row]] for row in range(len(dataset)) if counts[row] != num_samples]
    settings = {"prompts": len(dataset), "dataset": data_fingerprint(dataset), "num_samples": num_samples}
    settings |= {"max_completion_length": max_completion_length, "temperature": temperature}
    settings |= {"rewards": [function.__name__ for function in functions], "references_column": references_column}
    settings |= {"reference": reference and name_of(reference), "chat_template_kwargs": asked.chat_template_kwargs}
    settings |= {GENERATOR: generator_record(generator), UNEVEN: uneven, MADE_OF: made_of}
    return _evaluation(samples, columns, references, metrics, settings)


def _rows_that_fit(asked: Policy, start, dataset: Dataset, column: str | None, longest: int) -> dict:
    """Reference answers by their prompts' numbers, or a ValueError where something is too long for a model's window."""
    kwargs, tokenizer = asked.chat_template_kwargs, asked.tokenizer
    room = {"max_completion_length": longest, "call": CALL, "template_kwargs": kwargs}
    for model in [asked.model] if start is None else [asked.model, start]:
        check_all_windows(dataset, tokenizer, model.config, **room)
    if column not in dataset.column_names:
        return {}
    return answer_rows(dataset["prompt"][:], dataset[column][:], tokenizer, asked.model.config, kwargs, call=CALL)


def _sampled(generator: Generator, dataset: Dataset, sampling: Sampling, asked: Policy) -> list[Sample]:
    part = Part(0, tuple(range(len(dataset))), tuple(dataset["prompt"][:]))
    samples = [sample for _, samples in finished_parts(generator, [part], sampling, asked) for sample in samples]
    if not (samples := tokenised(samples, asked)):
        raise ValueError(f"evaluate(generator={generator.name!r}): it gave no completion to any prompt.")
    return samples


def _scores(functions: list, samples: list[Sample], dataset: Dataset, seed: int) -> tuple[dict[str, list], dict]:
    scorer = Scorer(functions, [1.0] * len(functions), seed)
    columns = scorer.columns(samples, reward_columns(dataset, [sample["row"] for sample in samples]), part=0)
    del columns["score"]
    return columns, {name: mean(values) for name, values in scorer.metrics.items()}


def _kl(asked: Policy, start, samples: list[Sample], batch_size: int) -> dict[str, list]:
    rows = [training_row(sample["prompt_ids"], sample["completion_ids"]) for sample in samples]
    kl, k1 = zip(*completion_kl(asked.model, start, rows, batch_size=batch_size), strict=True)
    return {"kl": list(kl), "kl_k1": list(k1)}


def _nll(asked: Policy, rows: dict, prompts: int, batch_size: int) -> dict[str, np.ndarray]:
    passes = {"pad_token_id": 0, "batch_size": batch_size, "device": asked.model.device}
    sums, log_probs = np.zeros((prompts, 2)), completion_log_probs(asked.model, list(rows.values()), **passes)
    for row, values in zip(rows, log_probs, strict=True):
        sums[row] = -sum(values), len(values)
    return {PERPLEXITY: sums} if rows else {}


def _evaluation(samples: list[Sample], columns: dict, references: dict, metrics: dict, settings: dict) -> Evaluation:
    columns = columns | {"length": [len(sample["completion_ids"]) for sample in samples]}
    measures = columns | {"ended_share": [float(sample["ended"]) for sample in samples]}
    sums = {name: np.zeros((settings["prompts"], 2)) for name in measures}
    for name, values in measures.items():
        for sample, value in zip(samples, values, strict=True):
            sums[name][sample["row"]] += (0, 0) if value is None else (value, 1)
    sums |= references
    totals = values_of(list(sums), np.stack([each.sum(0) for each in sums.values()]))
    summary = {name: None if np.isnan(value) else float(value) for name, value in zip(sums, totals, strict=True)}
    texts = [text_of(sample["completion"]) for sample in samples]
    summary |= {"distinct_1": distinct(texts, n=1), "distinct_2": distinct(texts, n=2), "msttr": msttr(texts)}
    rows = [sample | {name: values[i] for name, values in columns.items()} for i, sample in enumerate(samples)]
    return Evaluation(summary | metrics | summary, Dataset.from_list(rows), settings, sums)
