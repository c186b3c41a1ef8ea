"""KL over the vocabulary in chunks: by hand, and that of whole logits for every kind of head."""

import math

import pytest
import torch
from test_log_probs import FAMILIES, batch, family
from tiny import byte_tokenizer, tiny_config, tiny_llama
from torch import nn
from transformers import LlamaForCausalLM

from trl_ext.sequences import exact_kl as module
from trl_ext.sequences.exact_kl import completion_kl, label_kl
from trl_ext.sequences.training_rows import IGNORED, training_row


@torch.no_grad()
def softmax_model(*probabilities: float) -> LlamaForCausalLM:
    """Gives every next token these probabilities, whatever was before."""
    model = tiny_llama(byte_tokenizer(), vocab_size=len(probabilities), pad_token_id=None, eos_token_id=None)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight.fill_(1.0)  # and so every state
    width = model.config.hidden_size
    model.lm_head.weight.copy_((torch.tensor(probabilities).log() / width).unsqueeze(1).expand(-1, width))
    return model


def by_definition(policy: nn.Module, reference: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """From whole logits, position by position."""
    log_p, log_q = (
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float().log_softmax(-1)
        for model in (policy, reference)
    )
    labels = inputs["labels"]
    kl, k1 = torch.zeros(labels.shape), torch.zeros(labels.shape)
    for row, t in (labels != IGNORED).nonzero().tolist():
        p, q = log_p[row, t - 1], log_q[row, t - 1]
        kl[row, t], k1[row, t] = (p.exp() * (p - q)).sum(), (p - q)[labels[row, t]]
    return kl[:, 1:], k1[:, 1:]


def test_kl_by_hand():
    policy, reference = softmax_model(0.5, 0.25, 0.125, 0.125), softmax_model(0.25, 0.25, 0.25, 0.25)
    rows = [training_row([3, 3], [0, 1, 2]), training_row([3], [0])]
    # KL of a state: ½ log 2 + ¼ log 1 + 2 · ⅛ log ½ = ¼ log 2;  k1: log 2 + log 1 + log ½ = 0, and log 2
    found = completion_kl(policy, reference, rows, batch_size=2)
    assert found[0] == pytest.approx((0.75 * math.log(2), 0.0), abs=1e-5)
    assert found[1] == pytest.approx((0.25 * math.log(2), math.log(2)), abs=1e-5)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_kl_is_that_of_whole_logits_in_any_chunks(config, monkeypatch):
    policy, reference = family(config), family(config)
    for parameter in reference.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    expected = by_definition(policy, reference, batch())
    assert expected[0].max() > 1e-4
    for logits in (1, 5 * 64 + 1, 2**22):
        monkeypatch.setattr(module, "CHUNK_LOGITS", logits)
        for ours, theirs in zip(label_kl(policy, reference, batch()), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_model_is_at_0_from_itself_and_from_its_copy():
    policy, copy = tiny_llama(byte_tokenizer()), tiny_llama(byte_tokenizer())
    rows = [training_row([5, 6, 7], [8, 9]), training_row([5], [6, 7, 1])]
    assert completion_kl(policy, policy, rows, batch_size=1) == [(0.0, 0.0)] * 2
    assert completion_kl(policy, copy, rows, batch_size=2) == [(0.0, 0.0)] * 2


def test_a_model_that_computes_nan_has_no_kl():
    policy, broken = tiny_llama(byte_tokenizer()), tiny_llama(byte_tokenizer())
    broken.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(
        ValueError, match=r"KL of 1 of 1 completions is not a number, of number 0 first: the policy's or"
    ):
        completion_kl(policy, broken, [training_row([5], [8])], batch_size=1)


def test_batches_change_no_more_than_rounding():
    policy, reference = tiny_llama(byte_tokenizer()), tiny_llama(byte_tokenizer(), seed=1)
    rows = [training_row([5] * n, [8] * (9 - n)) for n in (3, 1, 8, 5, 2)]
    each = [value for row in rows for value in completion_kl(policy, reference, [row], batch_size=1)[0]]
    for batch_size in (2, 5):
        together = completion_kl(policy, reference, rows, batch_size=batch_size)
        assert [value for pair in together for value in pair] == pytest.approx(each, rel=1e-5)


def test_logits_of_few_states_are_there_at_a_time(monkeypatch):
    policy, reference, seen = tiny_llama(byte_tokenizer()), tiny_llama(byte_tokenizer(), seed=1), []
    completion_kl(policy, reference, [training_row([5], [8])], batch_size=1)  # how the models read is known
    made = module.logits_of

    def spied(states, model):
        seen.append(states.size(1))
        return made(states, model)

    monkeypatch.setattr(module, "logits_of", spied)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 3 * policy.config.vocab_size)
    completion_kl(policy, reference, [training_row([5], list(range(8, 15)))], batch_size=1)
    assert seen == [3, 3, 3, 3, 1, 1]


def test_models_are_left_as_they_were():
    policy = LlamaForCausalLM(tiny_config(byte_tokenizer(), attention_dropout=0.5)).train()
    policy.model.layers[0].eval()
    modes = [one.training for one in policy.modules()]
    first, second = (completion_kl(policy, policy, [training_row([5], [8])], batch_size=1) for _ in range(2))
    assert first == second == [(0.0, 0.0)]  # no dropout
    assert modes == [one.training for one in policy.modules()]
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in policy.modules())
    assert "forward" not in vars(policy.model)
