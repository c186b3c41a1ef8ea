"""A stream read on and on: where it is, so many rows from there, anew from its beginning where it ends."""

import hashlib
import json
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import IterableDataset

Row = dict[str, Any]


@dataclass(frozen=True)
class Position:
    """How far a stream was read.

    Args:
        epoch: How often it has begun anew.
        taken: Rows since then.
        digest: Of these rows, so that another stream is not taken for it.
    """

    epoch: int = 0
    taken: int = 0
    digest: str = ""


class PromptStream:
    """Reads a stream once, in its own order; where it ends it begins anew, as Trainer's epochs do, by `set_epoch`.

    A position is found again by reading the rows before it: exact whatever the stream is made of, also behind a buffer
    that shuffles, whose content `state_dict` does not hold. Reading a prompt takes microseconds, answering it seconds.

    Args:
        stream: As given.
        call: Who was given it, for messages.
    """

    def __init__(self, stream: IterableDataset, *, call: str):
        self.stream, self.call = stream, call
        self._open(0)

    def first(self, count: int) -> list[Row]:
        """The first rows, or all there are; they are still to come."""
        self._ahead += islice(self._rows, count - len(self._ahead))
        return list(self._ahead)

    def take(self, count: int) -> list[Row]:
        """The next rows.

        Raises:
            ValueError: If the whole stream has fewer.
        """
        rows = list(self._next(count))
        if len(rows) < count:
            self._begin_anew(count)
            rows += self._next(count - len(rows))
        return rows

    @property
    def position(self) -> Position:
        return Position(self._epoch, self._taken, self._digest.hexdigest() if self._taken else "")

    def seek(self, position: Position) -> None:
        """Go on from where it was; a ValueError if the rows before that are not those that they were."""
        if position == self.position:
            return
        self._open(position.epoch)
        deque(self._next(position.taken), maxlen=0)
        if position != self.position:
            raise ValueError(
                f"{self.call}: the first {position.taken} prompts of the stream are not those that the run has had before. A "
                "run goes on with a stream that comes in the same order each time (shuffle(seed=…)); begin anew in another "
                "output_dir."
            )

    def _next(self, count: int) -> Iterator[Row]:
        for _ in range(count):
            row = self._ahead.pop(0) if self._ahead else next(self._rows, None)
            if row is None:
                return
            self._taken += 1
            self._digest.update(json.dumps(row, sort_keys=True, default=str).encode())
            yield row

    def _open(self, epoch: int) -> None:
        self.stream.set_epoch(epoch)
        self._epoch, self._taken, self._digest = epoch, 0, hashlib.blake2b(digest_size=16)
        self._rows, self._ahead = iter(self.stream), []

    def _begin_anew(self, count: int) -> None:
        if self._taken < count:
            raise ValueError(
                f"{self.call}: the stream ended after {self._taken} prompts, and stage_batch_size={count}. Lower that, or give "
                "more prompts."
            )
        warnings.warn(
            f"{self.call}: the stream ended after {self._taken} prompts and is read anew, pass {self._epoch + 2}.",
            stacklevel=2,
        )
        self._open(self._epoch + 1)
