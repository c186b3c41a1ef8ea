"""Batches of preference pairs and ranked lists, with what the loss reads of them beside their tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DataCollator

from trl_ext.reward_modeling.pair_labels import PROBABILITY
from trl_ext.reward_modeling.ranked_lists import RANKED_IDS, RANKS
from trl_ext.sequences.preference_rows import PROMPT_TOKENS

LIST_OF = "list_of"  # of a batch: the number of each sequence's list
BESIDE = (PROMPT_TOKENS, PROBABILITY, LIST_OF, RANKS)  # of a batch: what TRL's loss does not know


@dataclass
class PreferenceCollator:
    """Any collator of preference pairs, TRL's or a user's, plus what B rows say beside their tokens.

        num_prompt_tokens   (B,)  tokens before the chosen, or best ranked, completion, where it is imitated
        chosen_probability  (B,)  of soft labels
        list_of, ranks      (N,)  of the N sequences of ranked lists

    Of lists each completion is there once: the best of each list first, in the order of the rows, then their second ones,
    and so on, so that lists of two are pairs.

    Args:
        collator: Puts the B chosen sequences first and the rejected ones after them, as TRL's loss expects, padded on
            either side, and neither shortens nor lengthens them.
    """

    collator: DataCollator

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        if RANKED_IDS in rows[0]:
            batch, expected = self._lists(rows)
        else:
            batch = dict(self.collator(rows))
            expected = [len(row["chosen_ids"]) for row in rows] if PROMPT_TOKENS in rows[0] else []
        self._check_whole(batch, expected)
        for column in (PROMPT_TOKENS, PROBABILITY):
            if column in rows[0]:
                batch[column] = torch.tensor([row[column] for row in rows])
        return batch

    def _lists(self, rows: list[dict]) -> tuple[dict[str, Tensor], list[int]]:
        """By rank and then by list, given to the collator as if the first half were the chosen ones of pairs."""
        longest = max(len(row[RANKED_IDS]) for row in rows)
        places = [(k, i) for k in range(longest) for i, row in enumerate(rows) if k < len(row[RANKED_IDS])]
        ids = [rows[i][RANKED_IDS][k] for k, i in places]
        half = (len(ids) + 1) // 2
        rejected = [*ids[half:], ids[-1]][:half]  # one more where their number is odd
        batch = self.collator(
            [{"chosen_ids": a, "rejected_ids": b} for a, b in zip(ids[:half], rejected, strict=True)]
        )
        batch = {name: value[: len(ids)] for name, value in batch.items()}
        batch[LIST_OF] = torch.tensor([i for _, i in places])
        batch[RANKS] = torch.tensor([rows[i][RANKS][k] for k, i in places])
        return batch, [len(one) for one in ids]

    def _check_whole(self, batch: dict[str, Tensor], expected: list[int]) -> None:
        lengths = batch["attention_mask"].sum(1)[: len(expected)].tolist() if expected else []
        if lengths != expected:
            raise ValueError(
                f"ImitationRewardTrainer(data_collator={type(self.collator).__name__}): expected the chosen sequences "
                f"first and whole ({expected} tokens), got {lengths} tokens. Leave them as they are, or set "
                "imitation_coef=0; `max_length` drops what is too long."
            )
