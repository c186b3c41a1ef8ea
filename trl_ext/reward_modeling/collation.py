"""Batches of preference pairs that say where each chosen completion begins."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DataCollator

from trl_ext.reward_modeling.preference_data import PROMPT_TOKENS


@dataclass
class WithPromptLengths:
    """Any collator of preference pairs, TRL's or a user's, plus `num_prompt_tokens`: `(B,)`, tokens before `chosen`.

    Args:
        collator: Puts the B chosen sequences first and the rejected ones after them, as TRL's loss expects, padded on
            either side, and neither shortens nor lengthens them.
    """

    collator: DataCollator

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.collator(rows)
        lengths = batch["attention_mask"].sum(1)[: len(rows)].tolist()
        expected = [len(row["chosen_ids"]) for row in rows]
        if lengths != expected:
            raise ValueError(
                f"ImitationRewardTrainer(data_collator={type(self.collator).__name__}): expected the chosen sequences "
                f"first and whole ({expected} tokens), got {lengths} tokens. Leave them as they are, or set "
                "imitation_coef=0; `max_length` drops what is too long."
            )
        return {**batch, PROMPT_TOKENS: torch.tensor([row[PROMPT_TOKENS] for row in rows])}
