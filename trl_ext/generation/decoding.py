"""Decodes a batch of completions, each from uniforms of its own, so that none depends on who shares its batch.

Shapes: `B` completions, `L` tokens of their longest prompt, `T` of a longest completion, `V` of the vocabulary.
"""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from trl_ext.generation.drawing import inverse_cdf, logits_filters
from trl_ext.generation.protocol import Sampling
from trl_ext.trainer_kit.passes import behind, forward_parameters, states_as_one_matrix

LEAVE_FROM = 1 / 4  # rows leave a batch when so many have ended: to select from the cache costs about one more step


def left_padded(prompts: list[list[int]], *, room: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask, `(B, L + room)` each: prompts that end at L, then room for completions.

    A prompt is padded by its own first token: the mask hides it from the model, and a repetition penalty, which
    reads tokens without a mask, has seen it anyway.

    >>> left_padded([[5, 6], [7]], room=1)[0].tolist()
    [[5, 6, 0], [7, 7, 0]]
    """
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = [prompt[:1] * pad + prompt + [0] * room for pad, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad + room) for pad in padding]
    return torch.tensor(tokens), torch.tensor(mask)


def distinct_prompts(prompts: list[list[int]]) -> tuple[list[int], list[int]]:
    """Where each different prompt comes first, and which of them each one is.

    >>> distinct_prompts([[5], [5], [6]])
    ([0, 2], [0, 0, 1])
    """
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    return [which.index(number) for number in range(len(numbers))], which


class Batch:
    """Completions on their way.

    Args:
        model: In eval mode.
        prompts: One per completion; equal ones are read once.
        room: T.

    Attributes:
        tokens: `(B, L + T)`, of all completions.
        rows: Which of them are still read, `(≤ B,)`; the cache has a line for each.
        length: Columns that are filled.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, prompts: list[list[int]], *, room: int):
        tokens, mask = left_padded(prompts, room=room)
        self.model, self.cache = model, DynamicCache(config=model.config)
        self.tokens, self.mask = tokens.to(model.device), mask.to(model.device)
        self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        self.length, self._read = tokens.size(1) - room, 0
        self._parameters, self._behind = forward_parameters(model), behind(self.cache, model)
        first, self._which = (torch.tensor(rows, device=model.device) for rows in distinct_prompts(prompts))
        self.rows = first

    def prefill(self) -> Tensor:
        """Read each prompt once, then give each completion its own copy: logits `(B, V)` of the first tokens."""
        with states_as_one_matrix(self.model):
            logits = self.next_logits()
        read = {layer.get_seq_length() for layer in self.cache.layers}
        if read != {self.length}:
            raise ValueError(
                f"TransformersGenerator.generate: {type(self.model).__name__} was given {self.length} tokens, and its "
                f"cache's layers hold {sorted(read)}: it keeps its state elsewhere, from where ended rows cannot be "
                "taken. Use another generator, e.g. VLLMGenerator."
            )
        self.cache.batch_select_indices(self._which)
        self.rows = torch.arange(len(self.tokens), device=self.tokens.device)
        return logits[self._which]

    def next_logits(self) -> Tensor:
        """Read what is not read yet: logits `(rows, V)` of the next tokens, in fp32."""
        columns = slice(self._read, self.length)
        options: dict[str, Any] = {"position_ids": self.positions[self.rows, columns], "logits_to_keep": 1}
        output = self.model(
            input_ids=self.tokens[self.rows, columns],
            attention_mask=self.mask[self.rows, : self.length],
            **self._behind,
            **{name: value for name, value in options.items() if name in self._parameters},
        )
        self._read = self.length
        return output.logits[:, -1].float()

    def append(self, tokens: Tensor) -> None:
        self.tokens[self.rows, self.length] = tokens
        self.length += 1

    def keep(self, lines: Tensor) -> None:
        """Go on with these of the rows only."""
        self.cache.batch_select_indices(lines)
        self.rows = self.rows[lines]


@torch.no_grad()
def complete(
    model: PreTrainedModel | PeftModel,
    prompts: list[list[int]],
    uniforms: Tensor,
    *,
    sampling: Sampling,
    end_ids: frozenset[int],
) -> list[list[int]]:
    """One completion of each prompt: up to its first end token, which it contains, or T tokens.

    Args:
        model: In eval mode.
        prompts: B lists of tokens, none empty; equal ones are read once.
        uniforms: `(B, T)`, float64 in [0, 1): token t is drawn at number t.
        sampling: What the logits are filtered by.
        end_ids: Tokens that end a completion.
    """
    room = uniforms.size(1)
    batch = Batch(model, prompts, room=room)
    uniforms, ends = uniforms.to(model.device), torch.tensor(sorted(end_ids), dtype=torch.long, device=model.device)
    filters, going = logits_filters(sampling), torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    logits = batch.prefill()
    for step in range(room):
        scores = filters(batch.tokens[batch.rows, : batch.length], logits)
        greedy = sampling.temperature == 0
        tokens = scores.argmax(dim=-1) if greedy else inverse_cdf(scores, uniforms[batch.rows, step])
        batch.append(tokens)
        going[batch.rows] &= ~torch.isin(tokens, ends)
        lines = going[batch.rows].nonzero().squeeze(1)
        if step == room - 1 or not len(lines):
            break
        if len(lines) <= (1 - LEAVE_FROM) * len(batch.rows):
            batch.keep(lines)
        logits = batch.next_logits()
    return [until_end(ids, end_ids) for ids in batch.tokens[:, -room:].tolist()]


def until_end(ids: list[int], end_ids: frozenset[int]) -> list[int]:
    """Up to the first end token, with it.

    >>> until_end([5, 1, 6, 1], frozenset({1}))
    [5, 1]
    """
    ends = [i for i, token in enumerate(ids) if token in end_ids]
    return ids[: ends[0] + 1] if ends else ids
