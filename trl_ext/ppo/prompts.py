"""Checks of what `PPOTrainer` is given to start from, made before any token is sampled."""

from collections.abc import Iterable

from datasets import Dataset, IterableDataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from trl import apply_chat_template, is_conversational

from trl_ext.ppo.ppo_config import PPOConfig


def check_prompts(dataset: Dataset | IterableDataset | None, args: PPOConfig, *, name: str = "train_dataset") -> None:
    """Raise a ValueError unless the data set has prompts enough for one batch of rollouts.

    Of a stream only the first row is looked at: its length is unknown.
    """
    if dataset is None or (isinstance(dataset, Dataset) and len(dataset) == 0):
        raise ValueError(f"PPOTrainer({name}=…) is empty: expected rows with a column `prompt`.")
    columns = dataset.column_names or list(next(iter(dataset)))
    if "prompt" not in columns:
        raise ValueError(f"PPOTrainer({name}=…) has columns {columns}: expected a column `prompt`. Rename yours.")
    needed = args.generation_batch_size // args.num_generations
    if name == "train_dataset" and isinstance(dataset, Dataset) and len(dataset) < needed:
        raise ValueError(
            f"PPOTrainer(train_dataset=…) has {len(dataset)} prompts, but one batch of rollouts takes {needed}, so no "
            "step could be made. Lower per_device_train_batch_size or gradient_accumulation_steps, or add prompts."
        )


def check_lengths(
    prompts: Iterable[str | list],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    args: PPOConfig,
    *,
    name: str = "train_dataset",
) -> None:
    """Raise a ValueError for the first prompt that, with its completion, would not fit the model's window.

    A prompt with no more bytes than there is room for is passed over unread: a token is at least a byte.
    """
    window = getattr(config.get_text_config(), "max_position_embeddings", None)  # unlimited where it has none
    if window is None:
        return
    room = window - args.max_completion_length
    for row, prompt in enumerate(prompts):
        length = _length(prompt, tokenizer, args, room)
        if length > room:
            raise ValueError(
                f"PPOTrainer({name}=…): the prompt of row {row} has {length} tokens, which with "
                f"max_completion_length={args.max_completion_length} passes the model's window of {window}. Drop or "
                "shorten such prompts, or lower max_completion_length."
            )


def _length(prompt: str | list, tokenizer: PreTrainedTokenizerBase, args: PPOConfig, room: int) -> int:
    if is_conversational({"prompt": prompt}):
        prompt = apply_chat_template({"prompt": prompt}, tokenizer, **(args.chat_template_kwargs or {}))["prompt"]
    specials = tokenizer.num_special_tokens_to_add()
    if len(prompt.encode()) + specials <= room:
        return 0
    return len(tokenizer(prompt)["input_ids"])
