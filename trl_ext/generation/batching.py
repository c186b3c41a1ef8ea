"""How many completions are sampled at once: what the memory at hand holds, and less after running out of it."""

from collections.abc import Callable

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel

from trl_ext.trainer_kit.passes import behind

CPU_BATCH_SIZE = 64
LARGEST_BATCH_SIZE = 1024
SHARE_OF_FREE_MEMORY = 0.5  # the rest: activations of the prompts, and a cache that is copied as it grows
BYTES_PER_LOGIT = 40  # logits, their sorted copy, probabilities and running sums, in fp32 and fp64


@torch.no_grad()
def cache_bytes_per_token(model: PreTrainedModel | PeftModel) -> int:
    """Bytes of keys and values of one token in all layers, as found after reading one."""
    cache = DynamicCache(config=model.config)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model(input_ids=token, attention_mask=torch.ones_like(token), **behind(cache, model))
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized)


def rows_in_memory(free: int, *, tokens: int, bytes_per_token: int, vocab_size: int) -> int:
    """The largest power of two of rows that half of the free memory holds, in [1, 1024].

        rows · (tokens · bytes_per_token + vocab_size · 40 bytes) ≤ free / 2

    A power of two, so that runs beside other processes on the card mostly make the same batches.

    Args:
        free: Bytes.
        tokens: Of the longest prompt with its longest completion.
        bytes_per_token: Of keys and values.
        vocab_size: Logits per row.

    >>> rows_in_memory(2**30, tokens=512, bytes_per_token=2**13, vocab_size=2**15)
    64
    """
    row = tokens * bytes_per_token + vocab_size * BYTES_PER_LOGIT
    rows = int(free * SHARE_OF_FREE_MEMORY / row)
    return min(2 ** (max(rows, 1).bit_length() - 1), LARGEST_BATCH_SIZE)


def free_cuda_memory(device: torch.device) -> int:
    """Bytes that nobody uses, of the card's own and of those that torch has reserved."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


class Batcher:
    """Cuts requests into batches, and halves them for good when CUDA runs out of memory; finished rows are kept.

    Args:
        model: In eval mode.
        batch_size: Rows; None: by memory on CUDA, 64 on the CPU.
        room: Longest completion, in tokens.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, batch_size: int | None, room: int):
        self.model, self.room, self.by_memory = model, room, batch_size is None and model.device.type == "cuda"
        self.limit = batch_size or (LARGEST_BATCH_SIZE if self.by_memory else CPU_BATCH_SIZE)
        self._bytes_per_token = cache_bytes_per_token(model) if self.by_memory else 0

    def run(
        self, prompts: list[list[int]], seeds: list[int], complete: Callable[[list, list], list[list[int]]]
    ) -> list[list[int]]:
        """Completions of all prompts, in their order.

        Args:
            prompts: Tokens of one prompt per completion, the longest first.
            seeds: One per completion.
            complete: From prompts and seeds of a batch to its completions.
        """
        done: list[list[int]] = []
        while len(done) < len(prompts):
            batch = slice(len(done), len(done) + self._size(len(prompts[len(done)])))
            done += self._attempt(prompts[batch], seeds[batch], complete)
        return done

    def _size(self, longest: int) -> int:
        if not self.by_memory:
            return self.limit
        rows = rows_in_memory(
            free_cuda_memory(self.model.device),
            tokens=longest + self.room,
            bytes_per_token=self._bytes_per_token,
            vocab_size=self.model.config.get_text_config().vocab_size,
        )
        return min(rows, self.limit)

    def _attempt(self, prompts: list, seeds: list, complete: Callable) -> list[list[int]]:
        """The batch's completions, or none of them and a smaller limit."""
        try:
            return complete(prompts, seeds)
        except torch.OutOfMemoryError as error:
            if len(prompts) == 1:
                raise ValueError(
                    f"TransformersGenerator.generate: out of memory with a single completion of a prompt of "
                    f"{len(prompts[0])} tokens and up to {self.room} new ones. Free memory on the device, load the "
                    "model in fewer bits, or lower max_completion_length."
                ) from error
        self.limit = len(prompts) // 2  # outside the except, whose traceback holds the batch
        torch.cuda.empty_cache()
        return []
