"""What the tests of known defects share."""

import torch
from tiny import byte_tokenizer, tiny_llama


def often_ending_policy(tokenizer=None):
    """Every fifth token or so ends a completion, so that lengths differ."""
    policy = tiny_llama(tokenizer or byte_tokenizer())
    policy.generation_config.eos_token_id = [1, *range(3, 60)]
    return policy


def written(rollout) -> list[list[int]]:
    """Each completion's tokens, without padding."""
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(rollout["completion_ids"], rollout["completion_mask"], strict=True)
    ]


def weights_of(module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def forward_lengths(model, action) -> list[int]:
    """The width of the inputs of each pass through the model while something is done."""
    widths = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: widths.append(output.size(1))
    )
    action()
    handle.remove()
    return widths
