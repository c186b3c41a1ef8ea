"""Whether the policy can read the prompts that PPO is given, with room for their completions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.sequences.prompt_rows import check_prompts
from trl_ext.sequences.text_shapes import with_text
from trl_ext.sequences.vocabulary import check_vocabulary
from trl_ext.sequences.windows import check_all_windows, check_windows


@dataclass(frozen=True)
class PromptChecks:
    """The checks of a run, each of which raises a ValueError.

    Args:
        tokenizer, config: The policy's.
        args: The trainer's config.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    args: PPOConfig

    def of_datasets(self, datasets: Mapping[str, object]) -> None:
        """What the model cannot read of padding, and of the prompts; data sets by the argument that they came in."""
        pad = self.tokenizer.pad_token_id
        check_vocabulary(self.tokenizer, self.config, call="PPOTrainer(model=…)", pad_token_id=pad)
        for name, rows in datasets.items():
            if isinstance(rows, Dataset):  # of a stream, each batch is looked at when it comes
                check_all_windows(rows, self.tokenizer, self.config, **self._room(name))

    def read_batch(self, inputs: list[dict]) -> list[dict]:
        """A batch of rollouts, looked at again: of a stream, this is where its rows are first seen."""
        check_prompts([row.get("prompt") for row in inputs], call="PPOTrainer(batch of rollouts=…)")
        rows = [row | {"prompt": with_text(row["prompt"])} for row in inputs]
        prompts = [row["prompt"] for row in rows]
        check_windows(prompts, self.tokenizer, self.config, **self._room("batch of rollouts"))
        return rows

    def _room(self, name: str) -> dict[str, Any]:
        """What a prompt with its completion must fit; `name`: where the prompts are from."""
        args = self.args
        template = {"template_kwargs": args.chat_template_kwargs}
        return {"max_completion_length": args.max_completion_length, "call": f"PPOTrainer({name}=…)"} | template
