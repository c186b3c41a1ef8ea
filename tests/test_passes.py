"""trainer_kit.passes: what the vocabulary head is given where a prompt is read for its last position's logits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ppo_case import ppo_trainer
from tiny import byte_tokenizer, tiny_llama

from trl_ext.generation.decoding import complete
from trl_ext.generation.drawing import seeded_uniforms
from trl_ext.generation.protocol import Sampling
from trl_ext.sequences.log_probs import completion_log_probs
from trl_ext.trainer_kit.passes import states_as_one_matrix, under_adapter

PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]


def frozen(seed: int = 0):
    return get_peft_model(tiny_llama(byte_tokenizer(), seed), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).eval()  # fmt: skip


def given_to_head(model) -> list[torch.Tensor]:
    """What the head is given from now on, as it comes to the product itself."""
    given, head = [], under_adapter(model).get_output_embeddings()
    multiply = type(head).forward
    head.forward = lambda states: given.append(states) or multiply(head, states)
    return given


def is_one_matrix(states: torch.Tensor) -> bool:
    """By the strides themselves: a slice of one row is called contiguous, and is read as slowly as others."""
    return states.stride() == torch.empty(states.shape).stride()


def sampled(model, prompts=PROMPTS) -> list[list[int]]:
    uniforms = torch.stack([seeded_uniforms(i, 3) for i in range(len(prompts))])
    return complete(model, prompts, uniforms, sampling=Sampling(max_completion_length=3), end_ids=frozenset({1}))


def test_a_slice_of_states_is_what_transformers_gives_its_head():
    """The assumption: if a release makes it one matrix, the block may go."""
    model = frozen()
    given = given_to_head(model)
    model(input_ids=torch.tensor(PROMPTS[:1] * 2), logits_to_keep=1)
    assert given[0].shape == (2, 1, 16) and not given[0].is_contiguous()


def test_our_sampler_s_head_reads_one_matrix():
    model = frozen()
    before = sampled(model)
    given = given_to_head(model)
    assert sampled(model) == before
    assert given[0].shape == (2, 1, 16) and all(states.is_contiguous() for states in given)
    assert all(map(is_one_matrix, given))


def test_of_a_single_prompt_too():
    model = frozen()
    given = given_to_head(model)
    sampled(model, PROMPTS[:1])
    assert given[0].shape == (1, 1, 16) and all(map(is_one_matrix, given))


def test_log_probabilities_give_the_head_one_matrix():
    """The whole model's own call is answered from its states, and the head is given the least that it can be."""
    model = frozen()
    given = given_to_head(model)
    rows = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in PROMPTS]
    completion_log_probs(model, rows, pad_token_id=0, batch_size=2, device=torch.device("cpu"))
    assert (1, 1, 16) in [states.shape for states in given] and all(map(is_one_matrix, given))


def test_the_block_changes_no_number_and_leaves_nothing():
    model, ids = frozen(), torch.tensor(PROMPTS[:1] * 2)
    head = under_adapter(model).get_output_embeddings()
    outside = model(input_ids=ids, logits_to_keep=1).logits
    with states_as_one_matrix(model):
        torch.testing.assert_close(model(input_ids=ids, logits_to_keep=1).logits, outside)
        assert len(head._forward_pre_hooks) == 1
    assert not head._forward_pre_hooks
    with pytest.raises(RuntimeError), states_as_one_matrix(model):
        raise RuntimeError
    assert not head._forward_pre_hooks


def test_ppo_s_rollouts_too(tmp_path):
    trainer = ppo_trainer(
        tmp_path, peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"), max_steps=1
    )
    given = given_to_head(trainer.model)
    trainer.train()
    asked = [states for states in given if states.dim() == 3 and states.size(1) == 1]
    assert asked and all(states.is_contiguous() for states in asked) and all(map(is_one_matrix, asked))
    assert not under_adapter(trainer.model).get_output_embeddings()._forward_pre_hooks
