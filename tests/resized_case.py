"""Adapters of a base whose tokenizer has grown by three tokens, in each way in which PEFT saves the rows of these."""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

KINDS = ["frozen", "saved", "trained tokens", "saved with padding", "fewer"]
TEXT = "hello<new1>world<new2>"


def grown_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new0>", "<new1>", "<new2>"], special_tokens=True)
    return tokenizer


def new_ids() -> torch.Tensor:
    """A text with two of the new tokens."""
    return torch.tensor([grown_tokenizer()(TEXT)["input_ids"]])


def base_folder(folder: Path, *, tied: bool = False, **changes) -> Path:
    """A causal LM with its tokenizer, before it has grown."""
    tiny_llama(byte_tokenizer(), tie_word_embeddings=tied, **changes).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    return folder / "base"


def grown_adapter(
    folder: Path, kind: str, task: str, *, tied: bool, sizes: dict | None = None, **lora
) -> tuple[Path, PeftModel]:
    """The folder of an adapter, its tokenizer beside it, and the model that was saved there.

    Args:
        folder: In which the base and the adapter go.
        kind: "frozen": PEFT sees that the embeddings have another size, and saves them; "saved": trained whole;
            "trained tokens": the new ones alone; "saved with padding": with more rows than tokens; "fewer": rows were cut
            off the base, which had more than tokens.
        task: CAUSAL_LM or SEQ_CLS.
        tied: Whether the vocabulary head is the embedding.
        sizes: Of the base, where they matter.
        lora: Further settings.
    """
    tokenizer = grown_tokenizer()
    base = base_folder(folder, tied=tied, **({"vocab_size": 300} if kind == "fewer" else {}), **(sizes or {}))
    auto, options = {
        "CAUSAL_LM": (AutoModelForCausalLM, {}),
        "SEQ_CLS": (AutoModelForSequenceClassification, {"num_labels": 1}),
    }[task]
    model = auto.from_pretrained(base, dtype=torch.float32, **options)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64 if kind == "saved with padding" else None)
    tables = ["embed_tokens"] if tied or task == "SEQ_CLS" else ["embed_tokens", "lm_head"]
    if kind.startswith("saved"):
        lora = {"modules_to_save": tables} | lora
    elif kind == "trained tokens":
        lora = {"trainable_token_indices": [len(tokenizer) - 3, len(tokenizer) - 2, len(tokenizer) - 1]} | lora
    model = get_peft_model(model, LoraConfig(**{"task_type": task, "target_modules": ["q_proj"], "r": 2} | lora))
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        model.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    return folder / "adapter", model.eval()


@torch.no_grad()
def answers(model, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits or scores of a text with new tokens."""
    return model.eval()(input_ids=new_ids() if ids is None else ids).logits
