"""The pairs of a batch as a reader sees them, each answer with the score that the model gives it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trl_ext.sequences.common_prefix import common_length
from trl_ext.sequences.preference_rows import PROMPT_TOKENS


def scored_pairs(
    batch: Mapping[str, Tensor], scores: Sequence[float], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Prompt, completion and score of both answers of each pair, the chosen one first.

    Args:
        batch: `input_ids` and `attention_mask`, `(2B, T)`, the chosen sequences before the rejected ones; where it is known
            PROMPT_TOKENS `(B,)`, the number of tokens of each prompt, else a prompt is what both begin with.
        scores: One for each sequence.
    """
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    half, found = len(rows) // 2, []
    for i in range(half):
        known = PROMPT_TOKENS in batch
        begin = int(batch[PROMPT_TOKENS][i]) if known else common_length([rows[i], rows[half + i]])
        for name, at in (("chosen", i), ("rejected", half + i)):
            prompt, answer = (tokenizer.decode(ids) for ids in (rows[at][:begin], rows[at][begin:]))
            sample = {"prompt": prompt, "completion": answer, "score": scores[at]}
            found.append(sample | {"rewards": {name: scores[at]}})
    return found
