"""How far `trl-ext label` is, how fast, and what it has cost."""

from collections.abc import Iterator

from trl_ext.cli.generate_progress import PartProgress
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

    def label(self, queries: list[str]) -> Iterator[tuple[int, Label]]:
        self._progress.begin(len(queries), 0)
        before = self._tokens
        for each in self._labeler.label(queries):
            yield each
            self._progress.advance(self._tokens - before)
            before = self._tokens

    @property
    def _tokens(self) -> int:
        """Of those who read any: the shipped classifier reads none."""
        return getattr(self._labeler, "tokens", 0)
