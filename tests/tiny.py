"""The smallest models and tokenizers that behave like real ones, built in place and the same on every run."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token if m.role == 'assistant' else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
TRAINING = {  # what every trainer's config takes: steps that move tiny weights, and nothing said or saved
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "logging_steps": 1,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}
ON_CPU = TRAINING | {"use_cpu": True, "dataloader_pin_memory": False}


def byte_tokenizer(bos: bool = False, pad_is_eos: bool = False, words: int | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, so that tokens can be counted by eye; ids 0 to 2 are <pad>, <eos> and <bos>; `words`: the first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<eos>", "<bos>"]
    vocab = {token: i for i, token in enumerate((specials + alphabet)[:words])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<eos>" if pad_is_eos else "<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=["<pad>"] if pad_is_eos else None,
    )


def tiny_config(tokenizer, **changes) -> LlamaConfig:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "initializer_range": 0.1,
    }
    return LlamaConfig(**sizes | changes)


def tiny_llama(tokenizer, seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config(tokenizer, **changes)).eval()


def tiny_reward_model(tokenizer, seed: int = 0, num_labels: int = 1, **changes) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(tiny_config(tokenizer, num_labels=num_labels, **changes)).eval()


def never_ending(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model, which gives its end token no chance."""
    end = torch.tensor([model.config.eos_token_id])
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, end, -1e4))
    return model


def reversed_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer's tokens, as many of them, with their ids the other way round; the special ones keep theirs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


def tokenizer_with_options(bos: bool = False) -> PreTrainedTokenizerFast:
    """The byte tokenizer with options in its chat template: `shout` begins with LOUD, `tools` with their number."""
    tokenizer = byte_tokenizer(bos)
    tokenizer.chat_template = "{% if shout %}LOUD{% endif %}{{ tools | length if tools }}" + CHAT_TEMPLATE
    return tokenizer


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Knows a, b, c and the merge of b with c."""
    vocab = {token: i for i, token in enumerate(["<eos>", "a", "b", "c", "bc"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("b", "c")]))
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
