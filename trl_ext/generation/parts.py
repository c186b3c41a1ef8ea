"""Prompts cut into parts, and the parts sampled that are not on disk."""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from trl_ext.generation.protocol import Generator, Part, Policy, Sampling
from trl_ext.generation.sample_files import SampleFiles
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.texts import Text


def make_parts(rows: list[int], prompts: list[Text], *, size: int) -> list[Part]:
    """Cut the prompts of a Grow into parts.

    >>> [part.rows for part in make_parts([3, 5, 9], ["a", "b", "c"], size=2)]
    [(3, 5), (9,)]
    """
    cuts = range(0, len(rows), size)
    return [Part(i, tuple(rows[at : at + size]), tuple(prompts[at : at + size])) for i, at in enumerate(cuts)]


def sample_missing(
    files: SampleFiles,
    parts: Iterable[Part],
    generator: Generator,
    sampling: Sampling,
    policy: Policy,
    *,
    schema: pa.Schema,
    complete: Callable[[Part, list[Sample]], list[Sample]] = lambda part, samples: samples,
) -> Iterator[Part]:
    """Sample the parts that are not on disk, and write each as it comes; yields them.

    Args:
        complete: What is done to a part's samples before they are written.
    """
    missing = [part for part in parts if not files.is_sampled(part.index)]
    if missing:
        for part, samples in generator.generate(missing, sampling, policy):
            files.write_sampled(part.index, complete(part, samples), schema)
            yield part
