"""Counts the bytes of live tensors on any device, as an allocator would without its slack."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trl_ext.memory_planning.memory_watch import Card


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators have returned and that are still alive.

    Each storage counts once. What single kernels need inside is not seen, and neither are other threads.

    Args:
        models: Whose tensors are not counted.

    Attributes:
        live: Bytes now.
        peak: Most of them at one time.
    """

    def __init__(self, *models: nn.Module):
        super().__init__()
        tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.watch(tensor for tensor in tree_leaves(output) if isinstance(tensor, Tensor))
        return output

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count these too, each as long as it lives."""
        for tensor in tensors:
            if not tensor.is_meta:  # of which there is only the shape
                self._watch(tensor.untyped_storage())

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class PhasePeaks:
    """The peak of each phase of a run; a phase within another belongs to itself only.

    Args:
        live: What counts.

    Attributes:
        peaks: Bytes, by name of phase.
    """

    def __init__(self, live: LiveBytes):
        self.live, self.peaks = live, {}
        self._names: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside belongs to the phase of that name."""
        self._settle()
        self._names.append(name)
        try:
            yield
        finally:
            self._settle()
            self._names.pop()

    def _settle(self) -> None:
        if self._names:
            name = self._names[-1]
            self.peaks[name] = max(self.peaks.get(name, 0), self.live.peak)
        self.live.peak = self.live.live


class CudaPhasePeaks(PhasePeaks):
    """`PhasePeaks` as CUDA's allocator counts.

    Attributes:
        peaks: Bytes allocated, by name of phase.
        reserved: Bytes reserved.
    """

    def __init__(self):
        self.peaks, self.reserved, self._names = {}, {}, []

    def _settle(self) -> None:
        if self._names:
            name = self._names[-1]
            self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated())
            self.reserved[name] = max(self.reserved.get(name, 0), torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class CardWithoutPeaks(Card):
    """What one of our trainers knows of its card, but for the peaks, which are left to whoever measures here."""

    def reset(self) -> None:
        """Peaks go on; what sampling has cached is still given back."""


def leave_peaks(trainer) -> None:
    """Keep one of our trainers from beginning the peaks anew while they are measured."""
    if trainer.memory.card is not None:
        trainer.memory.card = CardWithoutPeaks(trainer.memory.card.device)


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of these tensors, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
