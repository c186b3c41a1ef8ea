"""The generator that a trainer is given: whether it is one, whether it can serve the policy, and what a run notes of it."""

from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset

from trl_ext.generation.protocol import ChecksPolicy, ExpectsLength, Generator, Part, Policy, Sampling
from trl_ext.sequences.prompt_facts import longest_prompt_ids
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.text_shapes import shown


def checked_generator(generator: object, *, call: str) -> Generator:
    """The generator, or a ValueError for what is none; `call`: where it was given."""
    if isinstance(generator, type):
        raise ValueError(
            f"{call}: expected a generator, got the class {generator.__name__}. Give an object of it, "
            f"{generator.__name__}(…)."
        )
    if not isinstance(generator, Generator):
        lacks = [name for name in ("name", "generate", "settings") if not hasattr(generator, name)]
        raise ValueError(
            f"{call}: expected a generator, e.g. TransformersGenerator() or VLLMGenerator(), got {generator!r}, which has "
            f"no {' and no '.join(map(repr, lacks))}. Give an object with what trl_ext.generation.Generator names."
        )
    return generator


def check_policy(generator: Generator, policy: Policy, sampling: Sampling, *datasets: object) -> None:
    """Raise a ValueError for a policy that the generator knows it cannot serve, where it says so; and tell it how long the
    longest prompt with its completion is, where it asks.

    Args:
        generator, policy, sampling: Who samples whom, and how.
        datasets: All prompts that it will be given: data sets, or dictionaries of them; of a stream nobody knows.
    """
    if isinstance(generator, ChecksPolicy):
        generator.check_policy(policy, sampling)
    if isinstance(generator, ExpectsLength):
        several = [rows for data in datasets for rows in (data.values() if isinstance(data, dict) else [data])]
        read = [policy.tokenizer, policy.chat_template_kwargs]
        longest = [longest_prompt_ids(rows, *read) for rows in several if isinstance(rows, Dataset) and rows]
        if longest:
            generator.expect(max(longest) + sampling.max_completion_length)


def finished_parts(
    generator: Generator, parts: Iterable[Part], sampling: Sampling, policy: Policy
) -> Iterator[tuple[Part, list[Sample]]]:
    """What the generator yields, as it comes; a ValueError for what is no part with its samples."""
    for answer in generator.generate(parts, sampling, policy) or ():
        is_pair = isinstance(answer, list | tuple) and len(answer) == 2 and isinstance(answer[0], Part)
        if not is_pair or not isinstance(answer[1], list | tuple):
            raise ValueError(
                f"the generator {generator.name!r}: expected its `generate` to yield (part, samples), each part that it was "
                f"given with a list of its samples, got {shown(answer)}. Mend the generator."
            )
        yield answer


def generator_record(generator: Generator) -> dict[str, Any]:
    """Who samples, as a run's record has it: a resumed run must have the same."""
    return {"name": generator.name} | generator.settings()
