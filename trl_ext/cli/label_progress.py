"""How far `trl-ext label` is, how fast, and what it has cost."""

import time
from collections.abc import Iterator

from trl_ext.cli.generate_progress import PartProgress
from trl_ext.query_types import EndpointLabeler, LanguageModelLabeler
from trl_ext.query_types.labels import Label, Labeler


class LabelProgress:
    """A bar of what is labelled, with its rate and the tokens so far; without a terminal a line now and then.

    Args:
        unit: What is labelled.
    """

    def __init__(self, unit: str):
        self.unit = unit
        self._bar: _Rate | None = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._bar is not None:
            self._bar.__exit__(*error)

    def begin(self, total: int, done: int) -> None:
        self._bar = _Rate("labelling", total, unit=self.unit)
        self._bar.__enter__()
        self._bar.skip(done)

    def advance(self, tokens: int) -> None:
        self._bar.cost(tokens)
        self._bar.advance()


class _Rate(PartProgress):
    """So many in a second, and the tokens that these have cost."""

    labelled = 0

    def cost(self, tokens: int) -> None:
        self.labelled += 1
        self._tokens += tokens

    def speed(self, seconds: float) -> str:
        tokens = f", {self._tokens:,} tokens" if self._tokens else ""
        return f"{self.labelled / max(seconds, 1e-9):,.1f} {self.unit}/s{tokens}"


class WatchedLabeler:
    """A labeler of query types that tells how far it is.

    Args:
        labeler: Who labels.
        progress: Who is told.
    """

    def __init__(self, labeler: Labeler, progress: LabelProgress):
        self._labeler, self._progress = labeler, progress
        self.name, self.threshold, self.needs_file = labeler.name, labeler.threshold, labeler.needs_file
        self.asked, self._start = 0, time.perf_counter()

    def label(self, queries: list[str]) -> Iterator[tuple[int, Label]]:
        self._progress.begin(len(queries), 0)
        before = self.tokens
        for each in self._labeler.label(queries):
            yield each
            now = self.tokens
            self.asked += 1
            self._progress.advance(now - before)
            before = now

    @property
    def tokens(self) -> int:
        """Read and written so far; the classifier has none."""
        is_counted = isinstance(self._labeler, EndpointLabeler | LanguageModelLabeler)
        return self._labeler.tokens if is_counted else 0

    def cost(self) -> str:
        """As the report of preferences has it."""
        return f"cost: {self.asked:,} asked, {self.tokens:,} tokens, {time.perf_counter() - self._start:,.1f} s"
