"""What users of TRL's PPO met, in tokens and sampling: one test for each thread of huggingface/trl by its number.

The docstring's first sentence is the symptom there. Each test fails with the defect put back.
"""

import math

import pytest
import torch
from defects_case import forward_lengths, often_ending_policy, weights_of, written
from peft import LoraConfig, get_peft_model
from ppo_case import logged, ppo_trainer, rollout_of, scored_rollout_of
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM

from trl_ext.ppo.token_rewards import last_own_token


@pytest.mark.parametrize("lam", [0.5, 1.0])
def test_trl_3750_the_score_lands_on_the_last_real_token(tmp_path, lam):
    """The score was added to the pad after <eos>, one token late. Here the last own token's return is the score."""
    trainer = ppo_trainer(
        tmp_path, model=often_ending_policy(), beta=0.0, lam=lam, score_scaling=False, whiten_advantages=False
    )
    rollout, scores = scored_rollout_of(trainer)
    last = last_own_token(rollout["tool_mask"])
    lengths = [len(ids) for ids in written(rollout)]
    assert len(set(lengths)) > 1 and last.int().argmax(1).tolist() == [length - 1 for length in lengths]
    torch.testing.assert_close(rollout["advantages"][last], scores)  # V = 0, β = 0
    assert not rollout["returns"][rollout["completion_mask"] == 0].any()


def test_trl_5303_eos_is_a_token_even_where_it_is_also_the_pad(tmp_path):
    """With pad == eos the masks, made from ids, hid the <eos> that the policy wrote. Here they are made from lengths."""

    def rollout_func(prompts, trainer):
        ids = [[10, 11, 12, 1], [10, 1], [1], [10, 11, 12, 13, 14]]
        return {"prompt_ids": [[5, 6], [5], [1, 6], [7]], "completion_ids": ids, "logprobs": None}

    def run(pad_is_eos):
        tokenizer = byte_tokenizer(pad_is_eos=pad_is_eos)
        policy, value_model = tiny_llama(tokenizer), tiny_reward_model(tokenizer, seed=5)
        policy.load_state_dict(tiny_llama(byte_tokenizer()).state_dict())  # its row of the pad is zeros
        value_model.load_state_dict(tiny_reward_model(byte_tokenizer(), seed=5).state_dict())
        trainer = ppo_trainer(
            tmp_path, model=policy, processing_class=tokenizer, rollout_func=rollout_func, value_model=value_model,
            missing_eos_penalty=1.0,
        )  # fmt: skip
        return rollout_of(trainer), trainer

    rollout, trainer = run(pad_is_eos=True)
    assert rollout["tool_mask"].sum(1).tolist() == [4, 2, 1, 5]
    assert rollout["prompt_mask"].sum(1).tolist() == [2, 1, 2, 1]  # one begins with <eos>
    assert trainer._metrics["train"]["completions/eos_ratio"] == [0.75]
    apart, _ = run(pad_is_eos=False)
    for name in ("old_per_token_logps", "values", "returns", "advantages"):
        mask = rollout["tool_mask"].bool()
        torch.testing.assert_close(rollout[name][mask], apart[name][mask])


def test_trl_3339_an_empty_completion_is_no_nan(tmp_path):
    """A mean over the tokens of an empty answer was 0 / 0, and the loss NaN. Here a row, a micro-batch or a whole window
    without tokens has no part in the loss."""
    for empty in ({0}, {0, 1}, {0, 1, 2, 3}):
        trainer = ppo_trainer(
            tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=1,
            logging_nan_inf_filter=False,
        )  # fmt: skip
        own_tokens = trainer.walk.own_tokens

        def without_some(*args, own_tokens=own_tokens, empty=empty):
            own = own_tokens(*args)
            own["tool_mask"][list(empty)] = 0
            return own | {"num_items_in_batch": own["tool_mask"].sum()}

        trainer.walk.own_tokens = without_some
        before = weights_of(trainer.model)
        trainer.train()
        numbers = [
            value for entry in trainer.state.log_history for value in entry.values() if isinstance(value, float)
        ]
        assert all(math.isfinite(number) for number in numbers)
        assert all(weight.isfinite().all() for weight in trainer.model.parameters())
        stayed = all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
        assert stayed == (len(empty) == 4)


def test_trl_3339_a_completion_without_a_token_is_refused(tmp_path):
    """Not even the end token: there is nothing to pay the score on."""

    def rollout_func(prompts, trainer):
        ids = [[5, 6], [], [7], []]
        return {"prompt_ids": [[3]] * 4, "completion_ids": ids, "logprobs": [[0.0] * len(row) for row in ids]}

    trainer = ppo_trainer(tmp_path, rollout_func=rollout_func, per_device_train_batch_size=4)
    with pytest.raises(ValueError, match=r"rollout_func=…\).*got none in 2 of 4, e.g. row 1. .*the end token alone"):
        rollout_of(trainer)


def test_trl_2387_sampling_stops_at_the_end_token(tmp_path):
    """No end token was set, so that every sample ran to full length. Here the tokenizer's is set, whatever the model's
    generation config says, and sampling ends with the longest row."""
    policy = tiny_llama(byte_tokenizer())
    policy.generation_config.eos_token_id = None
    with torch.no_grad():  # every hidden state is (1, …, 1), and <eos> as likely as a third
        policy.model.embed_tokens.weight.fill_(1.0)
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        policy.lm_head.weight.zero_()
        policy.lm_head.weight[1] = math.log(258 / 2) / 16
    trainer = ppo_trainer(tmp_path, model=policy, max_completion_length=64)
    sampled = []
    passes = forward_lengths(trainer.model, lambda: sampled.append(trainer._generate(["say it"] * 4)))
    assert 1 <= len(passes) < 40
    assert max(len(ids) for ids in sampled[0][1]) == len(passes)


def dropping_policies() -> dict[str, LlamaForCausalLM | OPTForCausalLM]:
    """Dropout in modules, as LoRA's, and in functions: Llama's in its attention, OPT's wherever it has any."""
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    opt = OPTConfig(vocab_size=259, word_embed_proj_dim=16, dropout=0.5, init_std=0.1, **sizes)
    adapter = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    return {
        "lora": get_peft_model(tiny_llama(byte_tokenizer()), adapter),
        "llama": tiny_llama(byte_tokenizer(), attention_dropout=0.5),
        "opt": OPTForCausalLM(opt),
    }


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("kind", ["lora", "llama", "opt"])
def test_trl_1586_no_dropout_and_a_cache_while_sampling(tmp_path, kind, checkpointing):
    """Samples were drawn with dropout and without a cache. Here dropout is off, so that ratios begin at exactly 1, and
    after the prompt each pass reads one token, also with gradient checkpointing."""
    trainer = ppo_trainer(
        tmp_path, model=dropping_policies()[kind], gradient_checkpointing=checkpointing, max_completion_length=8
    )
    trainer.model.train()
    widths = forward_lengths(trainer.model, lambda: trainer._generate(["say it"] * 4))
    assert widths == [len("say it"), *[1] * 7]
    trainer.train()
    assert logged(trainer, "ratio")[0] == pytest.approx(1.0, abs=1e-6)
