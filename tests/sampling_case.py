"""Rollout functions that sample a tiny policy, or what is left of it, token by token, and say how probable each token was."""

from collections.abc import Callable
from typing import Any

import torch
from ppo_case import PROMPTS, ppo_trainer
from tiny import byte_tokenizer, tiny_llama
from transformers import LlamaForCausalLM, PreTrainedModel

from trl_ext import PPOTrainer

TOKENIZER = byte_tokenizer()


def rounded(model: PreTrainedModel, bits: int | None = None) -> LlamaForCausalLM:
    """A copy; its linear layers' weights rounded to so many bits, by rows, as a server in 8 or 4 bits would hold them."""
    copy = LlamaForCausalLM(model.config).eval()
    copy.load_state_dict(model.state_dict())
    for layer in copy.model.layers.modules() if bits else ():
        if isinstance(layer, torch.nn.Linear):
            step = layer.weight.detach().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            layer.weight.data = (layer.weight.detach() / step).round() * step
    return copy


@torch.no_grad()
def draw(model: PreTrainedModel, prompts: list[str], generator: torch.Generator, *, tokens: int = 6) -> dict[str, Any]:
    """As a rollout function answers: ids, and the log-probability of each, sampled at temperature 1."""
    prompt_ids = [TOKENIZER(prompt)["input_ids"] for prompt in prompts]
    answer = {"prompt_ids": prompt_ids, "completion_ids": [], "logprobs": []}
    for ids in prompt_ids:
        row, log_probs = [*ids], []
        while len(log_probs) < tokens and TOKENIZER.eos_token_id not in row[len(ids) :]:
            distribution = model(torch.tensor([row])).logits[0, -1].log_softmax(-1)
            row.append(torch.multinomial(distribution.exp(), 1, generator=generator).item())
            log_probs.append(distribution[row[-1]].item())
        answer["completion_ids"].append(row[len(ids) :])
        answer["logprobs"].append(log_probs)
    return answer


def sampled_trainer(
    folder, sampled: Callable[[PPOTrainer], PreTrainedModel], change=lambda rows: rows, name="other_engine", **options
) -> PPOTrainer:
    """A trainer whose completions are drawn from `sampled(trainer)`, their log-probabilities given as `change` has them."""
    generator = torch.Generator().manual_seed(0)

    def other_engine(prompts, trainer):
        answer = draw(sampled(trainer), prompts, generator)
        return answer | {"logprobs": change(answer["logprobs"])}

    other_engine.__name__ = name
    settings = {"prompts": PROMPTS * 2, "per_device_train_batch_size": 16, "max_completion_length": 6}
    settings |= {"model": tiny_llama(TOKENIZER), "max_steps": 8, "num_iterations": 2}
    return ppo_trainer(folder, rollout_func=other_engine, processing_class=TOKENIZER, **settings | options)
