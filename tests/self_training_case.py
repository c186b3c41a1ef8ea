"""A RAFT or ReST run small enough to look at every number of."""

from dataclasses import fields

from datasets import Dataset
from tiny import ON_CPU, byte_tokenizer, tiny_llama

from trl_ext import RAFTConfig, RAFTTrainer

CONFIG_FIELDS = {field.name for field in fields(RAFTConfig)}
PROMPTS = ["say it", "why?", "tell me more", "go", "what", "who is it", "and then", "yes"]


def even_letters(completions, **columns):
    """Score: share of a completion's characters that have an even code. About half at the start."""
    return [sum(ord(letter) % 2 == 0 for letter in text) / max(len(text), 1) for text in completions]


def trainer(
    folder,
    cls=RAFTTrainer,
    *,
    model=None,
    reward_funcs=even_letters,
    prompts=PROMPTS,
    columns=None,
    train_dataset=None,
    **options,
):
    """A trainer on the CPU; `options` go to its config or to itself, wherever they belong."""
    settings = ON_CPU | {
        "output_dir": str(folder),
        "num_stages": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "prompts_per_part": 3,
        "drop_truncated": False,
    }
    names = {field.name for field in fields(cls.config_class)}
    settings |= {name: options.pop(name) for name in list(options) if name in names}
    tokenizer = options.pop("processing_class", None) or byte_tokenizer()
    return cls(
        model=tiny_llama(tokenizer) if model is None else model,
        reward_funcs=reward_funcs,
        args=cls.config_class(**settings),
        train_dataset=train_dataset or Dataset.from_dict({"prompt": prompts} | (columns or {})),
        processing_class=tokenizer,
        **options,
    )


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
