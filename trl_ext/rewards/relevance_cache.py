"""Vectors of texts that come again, the prompts and references of a data set: each is made once. D dimensions."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trl_ext.rewards.encoder import encode

MEBIBYTES = 256  # per encoder and process, of the computer's memory: 70 000 texts of 768 dimensions
BESIDE = 700  # bytes that an entry takes beside its numbers: digest, tensor, place


class VectorCache:
    """The latest vectors of texts, in the computer's memory; the one that was not asked for the longest goes first.

    It belongs to one process and is never pickled: it fills again.

    Args:
        mebibytes: Most that its vectors take, all that goes with them included.
    """

    def __init__(self, mebibytes: float = MEBIBYTES):
        self._most, self._vectors, self._lock = mebibytes * 2**20, OrderedDict[bytes, Tensor](), Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def vectors(self, texts: list[str], *, longest: int, encode_one: Callable[[str], Tensor]) -> Tensor:
        """One per text, `(N, D)`, on the CPU.

        Each is made by itself, so that it is the same, bit for bit, whatever is known already: a run that was resumed
        scores as one that was not.

        Args:
            texts: N of them.
            longest: Tokens that are read of a text; of another number, its vector is another.
            encode_one: Makes the vector of one text, `(D,)`.
        """
        return torch.stack([self._vector(text, longest, encode_one) for text in texts])

    def _vector(self, text: str, longest: int, encode_one: Callable[[str], Tensor]) -> Tensor:
        key = hashlib.blake2b(f"{longest} {text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            if key in self._vectors:
                self._vectors.move_to_end(key)
                return self._vectors[key]
        vector = encode_one(text).cpu().clone()  # outside of the lock: two threads may both make it, alike
        with self._lock:
            self._vectors[key] = vector
            while len(self._vectors) * (vector.nbytes + BESIDE) > self._most:
                self._vectors.popitem(last=False)
        return vector


_CACHES: WeakKeyDictionary[nn.Module, VectorCache] = WeakKeyDictionary()


def kept_vectors(
    encoder: nn.Module, tokenizer: PreTrainedTokenizerBase | None, texts: list[str], *, max_length: int
) -> Tensor:
    """One vector per text, `(N, D)`, by an encoder that never changes; its cache goes with it. Arguments as of `encode`."""

    def encode_one(text: str) -> Tensor:
        return encode(encoder, tokenizer, [text], max_length=max_length, batch_size=1)[0]

    vectors = _CACHES.setdefault(encoder, VectorCache()).vectors(texts, longest=max_length, encode_one=encode_one)
    return vectors.to(next(encoder.parameters()).device)
