"""Options of GRPOConfig and TrainingArguments that people combine with PPO: run for real, or refused by name."""

import pandas as pd
import pytest
import torch
from datasets import Dataset
from ppo_case import CONFIG_FIELDS, even_letters, logged, ppo_trainer, rollout_of
from shared_case import base_path, lora
from table_case import TABLE, default_dtype, run, table_trainer, weights
from tiny import byte_tokenizer, tiny_reward_model
from transformers import BitsAndBytesConfig

from trl_ext import PPOConfig, SharedBase

SGD = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


@pytest.fixture
def float64():
    with default_dtype(torch.float64):
        yield


def close(ours: dict, theirs: dict) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# Evaluation


def test_evaluating_between_steps_changes_no_step(tmp_path, float64):
    """Nor β, nor the statistics of scores."""
    options = {"num_iterations": 4, "max_steps": 6, "adaptive_kl": True, "kl_target": 1.0}
    held_out = Dataset.from_dict({"prompt": [*TABLE][:6]})
    plain = table_trainer(tmp_path, **options)
    evaluated = table_trainer(
        tmp_path, eval_dataset=held_out, eval_strategy="steps", eval_steps=1, eval_on_start=True,
        per_device_eval_batch_size=2, **options,
    )  # fmt: skip
    plain.train()
    evaluated.train()
    close(weights(evaluated), weights(plain))
    assert evaluated.rollouts.score_moments == plain.rollouts.score_moments
    for name in ("eval_score", "eval_kl", "eval_perplexity", "eval_value_loss", "eval_loss"):
        assert len(logged(evaluated, name)) == 7


# Completions


def test_completions_are_logged_with_their_mean_advantages(tmp_path):
    """Before whitening. With V = 0, λ = 1 and no KL, each token's advantage is its row's score."""
    trainer = table_trainer(
        tmp_path, log_completions=True, log_unique_prompts=True, num_completions_to_print=1, reward_funcs=even_letters,
        lam=1.0, beta=0.0, score_scaling=False, max_steps=1,
    )  # fmt: skip
    trainer.train()
    (file,) = (tmp_path / "completions").glob("*.parquet")
    table = pd.read_parquet(file)
    assert len(table) == 8 and set(table["prompt"]) <= set(TABLE)
    assert table["advantage"].tolist() == pytest.approx(table["even_letters"].tolist(), abs=1e-5)


def only_ended(completions, completion_ended, **columns):
    scores = even_letters(completions)
    return [score if ended else None for score, ended in zip(scores, completion_ended, strict=True)]


def test_cut_completions_left_out_are_like_those_without_a_score(tmp_path, float64):
    """`mask_truncated_completions`: not in the loss, the whitening, the means, nor the statistics of scores."""
    masked = table_trainer(tmp_path, mask_truncated_completions=True, reward_funcs=even_letters)
    unscored = table_trainer(tmp_path, reward_funcs=only_ended)
    masked.train()
    unscored.train()
    close(weights(masked), weights(unscored))
    assert masked.rollouts.score_moments == unscored.rollouts.score_moments
    for name in ("value_loss", "perplexity", "explained_variance", "kl"):
        assert logged(masked, name) == pytest.approx(logged(unscored, name), abs=1e-6)


def test_a_batch_in_which_all_were_cut_moves_nothing(tmp_path):
    cut = [prompt for prompt, text in TABLE.items() if not text.endswith("<eos>")][:8]
    trainer = table_trainer(tmp_path, mask_truncated_completions=True, prompts=cut, max_steps=2, **SGD)
    before = weights(trainer)
    trainer.train()
    close(weights(trainer), before)
    assert logged(trainer, "loss") == [0.0, 0.0]


def test_a_penalty_that_reaches_nobody_is_refused():
    with pytest.raises(ValueError, match=r"the penalty would reach nobody\. Leave one of the two out"):
        config(mask_truncated_completions=True, missing_eos_penalty=1.0)


# Batching


def test_micro_batches_step_like_one_batch(tmp_path):
    """Text too, and rows without a score: every mean is over the window's tokens."""
    whole = run(tmp_path, ptx_coef=0.5)
    parts = run(tmp_path, ptx_coef=0.5, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    close(parts, whole)


def test_fewer_steps_per_generation_than_micro_batches(tmp_path):
    """Each window reads its rollout twice, and steps by the mean."""
    once = run(tmp_path, num_iterations=1, max_steps=2)
    close(run(tmp_path, num_iterations=2, max_steps=2, steps_per_generation=1, gradient_accumulation_steps=2), once)


def test_more_steps_per_generation_than_micro_batches(tmp_path, float64):
    """Two steps over one rollout's halves, each by Σ / half of its tokens: in small steps, twice the step of the whole."""
    options = {"per_device_train_batch_size": 4, "num_iterations": 1, "learning_rate": 1e-6, **SGD}
    before = weights(table_trainer(tmp_path))
    halves = run(tmp_path, steps_per_generation=2, max_steps=2, **options)
    whole = run(tmp_path, gradient_accumulation_steps=2, max_steps=1, **options)
    moved = {name: halves[name] - old for name, old in before.items()}
    expected = {name: 2 * (whole[name] - old) for name, old in before.items()}
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-12)


# Memory


CHECKPOINTING = {"gradient_checkpointing", "activation_checkpointing"} & CONFIG_FIELDS


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", sorted(CHECKPOINTING))
def test_activations_computed_anew_give_the_same_weights(tmp_path, float64, name, reentrant):
    """For the policy and a value model, under the name that transformers ≥ 5.23 has for it too."""
    plain = table_trainer(tmp_path, kind="model")
    anew = table_trainer(tmp_path, kind="model", **{name: True, f"{name}_kwargs": {"use_reentrant": reentrant}})
    plain.train()
    anew.train()
    assert anew.model.is_gradient_checkpointing and anew.critic.own_model.is_gradient_checkpointing
    assert not plain.model.is_gradient_checkpointing
    close(weights(anew), weights(plain))


# Other samplers


def test_a_vllm_server_is_accepted():
    assert config(use_vllm=True, vllm_mode="server").vllm_mode == "server"


@pytest.mark.parametrize("mode", ["colocate", "server"])
@pytest.mark.parametrize("bits", [8, 4])
def test_vllm_with_a_quantised_base_is_refused(tmp_path, bits, mode):
    path = base_path(tmp_path)
    base = SharedBase.from_pretrained(path, bits=bits)
    quantisation = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    for model, options in (
        (base.policy(lora()), {}),
        (base.model, {}),
        (path, {"quantization_config": quantisation}),
        (path, {"model_init_kwargs": {"quantization_config": quantisation}}),
    ):
        with pytest.raises(
            ValueError, match=rf"in {bits} bits with use_vllm=True.*use_vllm=False, or load the base in bf"
        ):
            ppo_trainer(tmp_path, model=model, use_vllm=True, vllm_mode=mode, **options)


@pytest.mark.slow
def test_continuous_batching(tmp_path):
    """On a CPU, in float32; evaluating stays evaluating."""
    cache = {"num_blocks": 16, "max_batch_tokens": 64}
    trainer = ppo_trainer(
        tmp_path, use_transformers_continuous_batching=True, use_cpu=True, max_steps=1,
        transformers_continuous_batching_config=cache, eval_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
    )  # fmt: skip
    trainer.train()
    moments = vars(trainer.rollouts.score_moments).copy()
    assert trainer.evaluate()["eval_loss"] is not None and "eval_score" in trainer.state.log_history[-1]
    assert vars(trainer.rollouts.score_moments) == moments and trainer.rollouts.sampled == 1
    trainer.model.eval()
    trainer._generate_and_score_completions([{"prompt": "a"}] * 2)
    assert not trainer.model.training
    assert rollout_of(trainer)["old_per_token_logps"].isfinite().all()


@pytest.mark.parametrize(
    "option", [{"deepspeed": {"zero_optimization": {"stage": 2}}}, {"fsdp": "full_shard"}, {"fsdp": True}]
)
def test_sharding_is_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"PPOConfig\({name}=.*accelerate launch --multi_gpu.*SharedBase"):
        config(**option)


def config(**options) -> PPOConfig:
    return PPOConfig("unused", **{"bf16": False, "report_to": "none"} | options)


def test_sharding_asked_for_by_accelerate_is_refused(tmp_path, sharding_asked_for):
    with pytest.raises(
        ValueError, match=r"PPOTrainer runs on one device, .*under FSDP2 or .*, not under .*critic is inside"
    ):
        ppo_trainer(tmp_path, beta=0.0)


def test_an_undetached_value_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"detach_critic=False\): a value model has a trunk of its own"):
        ppo_trainer(tmp_path, value_model=tiny_reward_model(byte_tokenizer()), detach_critic=False)
