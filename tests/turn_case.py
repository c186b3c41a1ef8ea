"""A base that was fine-tuned on messages: it closes its turns with a token that nothing but its chat template names."""

import torch
from tiny import byte_tokenizer, tiny_llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TURN_END = "<end_of_turn>"
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)


def chat_tokenizer(template: str | None = GEMMA, *, eos: str = "<eos>", specials=("<start_of_turn>", TURN_END)):
    """The byte tokenizer with a chat template and its special tokens; of a base, `<eos>` is the only end."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.add_tokens(list(specials), special_tokens=True)
    tokenizer.eos_token = eos
    return tokenizer


def turn_end_of(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.convert_tokens_to_ids(TURN_END)


def chat_llama(strength: float, tokenizer: PreTrainedTokenizerFast | None = None) -> LlamaForCausalLM:
    """A tiny Llama that closes its turn soon: a direction that all its states share points to the turn's end.

    Args:
        strength: About a quarter of what is added to the token's logit; from 3 on, nothing else is likely.
        tokenizer: Of `chat_tokenizer`.
    """
    tokenizer = tokenizer or chat_tokenizer()
    model = tiny_llama(tokenizer, eos_token_id=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 5.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[turn_end_of(tokenizer), 0] = strength
    return model


def messages(*texts: str) -> list[list[dict]]:
    return [[{"role": "user", "content": text}] for text in texts]


def answer_of(model: LlamaForCausalLM, prompt_ids: list[int]) -> list[int]:
    """What plain greedy `generate` answers, by what the model's own generation config says."""
    output = model.generate(torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=6)
    return output[0, len(prompt_ids) :].tolist()
