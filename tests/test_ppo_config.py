import dataclasses
import math
import re

import pytest
from ppo_case import ppo_trainer
from trl import GRPOConfig, TrlParser

from trl_ext import PPOConfig
from trl_ext.ppo.ppo_config import MEANINGLESS


def config(**changes):
    return PPOConfig(**{"output_dir": "unused", "bf16": False, "report_to": "none"} | changes)


def test_defaults():
    args = config()
    expected = {
        "num_generations": 1, "num_iterations": 4, "beta": 0.05, "kl_estimator": "k1", "gamma": 1.0, "lam": 0.95,
        "epsilon": 0.2, "value_clip": 0.2, "value_coef": 0.1, "critic_learning_rate": None, "detach_critic": True,
        "critic_warmup_rollouts": 0, "whiten_advantages": True, "score_scaling": True, "score_clip": 10.0,
        "missing_eos_penalty": 0.0, "learning_rate": None, "disable_dropout": True, "loss_type": "dapo",
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    assert type(args.num_generations) is int


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_any_generation_batch_size(size, accumulation):
    args = config(
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=size,
    )
    assert (args.generation_batch_size, args.steps_per_generation) == (size * accumulation, accumulation)


def test_groups_must_still_fill_the_batch():
    with pytest.raises(ValueError, match="must be divisible by num_generations"):
        config(per_device_train_batch_size=3, num_generations=2)


OTHER_VALUES = {
    "loss_type": "grpo", "importance_sampling_level": "sequence", "scale_rewards": "group",
    "multi_objective_aggregation": "normalize_then_sum", "delta": 2.0, "use_bias_correction_kl": False,
    "off_policy_mask_threshold": 0.5, "sapo_temperature_neg": 2.0, "sapo_temperature_pos": 2.0, "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0, "vespo_k_neg": 1.0, "vespo_lambda_neg": 1.0, "sync_ref_model": True,
    "ref_model_mixup_alpha": 0.5, "ref_model_sync_steps": 64, "max_tool_calling_iterations": 3,
    "label_smoothing_factor": 0.1, "ignore_data_skip": True, "neftune_noise_alpha": 5.0, "use_liger_kernel": True,
    "train_sampling_strategy": "group_by_length", "remove_unused_columns": True, "log_multimodal": False,
    "ds3_gather_for_generation": False,
}  # fmt: skip


@pytest.mark.parametrize("name", MEANINGLESS)
def test_options_without_meaning_are_refused(name):
    assert OTHER_VALUES[name] != getattr(config(), name)
    with pytest.raises(ValueError, match=rf"PPOConfig\({name}=.*Leave it at"):
        config(**{name: OTHER_VALUES[name]})


def test_all_meaningless_options_are_refused_at_once():
    with pytest.raises(ValueError) as raised:
        config(loss_type="grpo", scale_rewards="batch")
    assert all(
        f"PPOConfig({option}): " in str(raised.value) for option in ("loss_type='grpo'", "scale_rewards='batch'")
    )


ACCEPTED = {  # the rest of what GRPOConfig adds to TrainingArguments: it means for PPO what it means for GRPO
    "model_init_kwargs", "trust_remote_code", "router_aux_loss_coef", "disable_dropout", "cast_lm_head_to_fp32",
    "num_generations", "num_generations_eval", "max_completion_length",
    "shuffle_dataset", "pad_to_multiple_of", "generation_batch_size", "steps_per_generation", "temperature", "top_p",
    "top_k", "min_p", "generation_kwargs", "chat_template_kwargs", "repetition_penalty", "cache_implementation",
    "use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex",
    "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
    "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size",
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap", "beta", "num_iterations", "epsilon",
    "epsilon_high", "reward_weights", "mask_truncated_completions", "top_entropy_quantile", "entropy_coef",
    "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target",
    "log_completions", "num_completions_to_print", "log_unique_prompts", "log_completions_hub_repo",
    "use_transformers_continuous_batching", "transformers_continuous_batching_config", "use_transformers_paged",
}  # fmt: skip


def test_every_field_of_grpo_was_read():
    """A new option upstream must be put on one of the two lists before it reaches a user."""
    from transformers import TrainingArguments

    inherited = {f.name for f in dataclasses.fields(GRPOConfig)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    assert inherited - ACCEPTED - set(MEANINGLESS) == set()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("gamma", 0.0), ("gamma", 1.1), ("lam", -0.1), ("lam", 1.01), ("epsilon", 0.0), ("epsilon_high", 0.0),
        ("beta", -0.1), ("value_clip", 0.0), ("value_coef", -1.0), ("score_clip", 0.0), ("missing_eos_penalty", -1.0),
        ("critic_learning_rate", -1e-3), ("critic_warmup_rollouts", -1), ("num_iterations", 0), ("num_generations", 0),
        ("temperature", 0.0), ("gamma", float("nan")), ("beta", float("inf")), ("lam", "0.9"), ("value_coef", None),
    ],
)  # fmt: skip
def test_values_out_of_range(name, bad):
    with pytest.raises(ValueError, match=rf"PPOConfig\({name}={bad!r}\): it must be in "):
        config(**{name: bad})


def test_unknown_estimator():
    with pytest.raises(ValueError, match=r"kl_estimator='k2'\): choose 'k1' or 'k3'"):
        config(kl_estimator="k2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_tokens": "ab"}, r"stop_tokens='ab'\): expected a list .* Write stop_tokens=\['ab'\]"),
        ({"score_scaling": False, "score_clip": 5.0}, r"score_clip=5.0, score_scaling=False\): it does nothing"),
        ({"kl_horizon": 100}, r"kl_horizon=100, adaptive_kl=False\): it does nothing"),
        ({"use_liger_kernel": True}, r"use_liger_kernel=True\): TRL 1.12 would .* past the critic"),
        ({"kl_estimator": "k3", "beta": 0.0}, r"kl_estimator='k3', beta=0.0\): it does nothing at beta=0"),
        ({"ptx_max_length": 64}, r"ptx_max_length=64, ptx_coef=0.0\): it does nothing at ptx_coef=0"),
        ({"value_clip": 0.5, "value_coef": 0.0}, r"value_clip=0.5, value_coef=0.0\): it does nothing at value_coef=0"),
        (
            {"critic_learning_rate": 1e-4, "value_coef": 0},
            r"critic_learning_rate=0.0001, value_coef=0\): it does nothing",
        ),
        (
            {"critic_warmup_rollouts": 2, "value_coef": 0.0},
            r"critic_warmup_rollouts=2, value_coef=0.0\): it does nothing",
        ),
        ({"detach_critic": False, "value_coef": 0.0}, r"detach_critic=False, value_coef=0.0\): it does nothing"),
        (
            {"critic_warmup_rollouts": 2, "critic_learning_rate": 0},
            r"rollouts=2, critic_learning_rate=0\): it does nothing",
        ),
        ({"value_clip": 0.5, "critic_learning_rate": 0.0}, "it does nothing, since the value loss moves neither"),
        ({"value_coef": 0.5, "critic_learning_rate": 0.0}, "it does nothing, since the value loss moves neither"),
        (
            {"critic_warmup_rollouts": 2, "max_steps": 8},
            r"rollouts=2\): the run samples 2 batches of rollouts in its 8 st",
        ),
        (
            {"epsilon": 0.1, "num_iterations": 1},
            r"epsilon=0.1, num_iterations=1\): it does nothing with one step per batch",
        ),
        (
            {"value_clip": 0.1, "num_iterations": 1},
            r"value_clip=0.1, num_iterations=1\): it does nothing with one step",
        ),
        ({"stop_tokens": ["b"], "use_vllm": True}, "vLLM would not be told of them"),
        ({"vllm_mode": "server"}, r"vllm_mode='server', use_vllm=False\): it does nothing without use_vllm=True"),
        ({"entropy_target": 0.1}, r"use_adaptive_entropy=False\): it does nothing without use_adaptive_entropy=True"),
        ({"log_unique_prompts": True}, r"log_completions=False\): it does nothing without log_completions=True"),
    ],
)
def test_options_that_would_do_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"critic_learning_rate": 0.0},
        {"critic_learning_rate": 0.0, "detach_critic": False, "value_coef": 0.5, "value_clip": 0.5},
        {"value_coef": 0.0, "value_clip": 0.2},
        {"critic_warmup_rollouts": 2, "max_steps": 9},
        {"beta": 0.0, "kl_estimator": "k1"},
        {"scale_rewards": False},
        {"epsilon": 0.1, "epsilon_high": 0.2, "num_iterations": 1, "disable_dropout": False},
        {"value_clip": 0.1, "num_iterations": 1, "steps_per_generation": 2},
    ],
)
def test_options_that_do_something_yet(options):
    config(**options)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("score_scaling", "no"), ("whiten_advantages", 1), ("adaptive_kl", "no"), ("num_iterations", 2.5), ("lam", True),
        ("critic_warmup_rollouts", 1.5), ("max_completion_length", None), ("num_generations", None), ("stop_tokens", [3]),
        ("top_k", -1), ("min_p", 1.5), ("repetition_penalty", 0.0), ("kl_estimator", None), ("detach_critic", None),
    ],
)  # fmt: skip
def test_values_of_another_type_or_kind(name, bad):
    with pytest.raises(ValueError, match=rf"PPOConfig\({name}="):
        config(**{name: bad})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.7}, "'temperature' would change .* and give `temperature` of the config"),
        ({"min_new_tokens": 2, "max_new_tokens": 8}, "'max_new_tokens' would .* give `max_completion_length`"),
        ('{"top_k": 5}', "'top_k' would change how completions are sampled"),
        ({"do_sample": False}, "'do_sample' would change how completions are sampled"),
        ([("top_p", 0.9)], "expected a dict of further options of generation, or None"),
        ("top_p", "expected a dict"),
    ],
)
def test_generation_kwargs_that_options_say(given, message):
    with pytest.raises(ValueError, match=rf"PPOConfig\(generation_kwargs=.*\): {message}"):
        config(generation_kwargs=given)


@pytest.mark.parametrize(
    ("name", "near"), [("min_new_token", "min_new_tokens"), ("temperatur", "temperature"), ("seed", None)]
)
def test_generation_kwargs_that_nobody_reads(name, near):
    meant = f"Is '{near}' meant" if near else "Give names"
    with pytest.raises(ValueError, match=rf"generation_kwargs=.*has no option '{name}', so .* nothing\. {meant}"):
        config(generation_kwargs={name: 2})


def test_further_generation_kwargs():
    given = {"min_new_tokens": 2, "seed": 3, "stop_token_ids": [7]}
    assert config(generation_kwargs=given, use_vllm=True).generation_kwargs == given
    assert config(generation_kwargs='{"num_beams": 1}').generation_kwargs == {"num_beams": 1}


@pytest.mark.parametrize(
    ("switch", "name", "bad"),
    [
        ("use_vllm", "vllm_mode", "colocated"), ("use_vllm", "vllm_model_impl", "hf"), ("use_vllm", "vllm_server_port", 0),
        ("use_vllm", "vllm_group_port", 70_000), ("use_vllm", "vllm_server_timeout", -1.0),
        ("use_vllm", "vllm_gpu_memory_utilization", 1.5), ("use_vllm", "vllm_gpu_memory_utilization", 0.0),
        ("use_vllm", "vllm_max_model_length", 0), ("use_vllm", "vllm_tensor_parallel_size", 0),
        ("use_vllm", "vllm_importance_sampling_mode", "token"), ("use_vllm", "vllm_importance_sampling_clip_max", 0.0),
        ("use_vllm", "vllm_importance_sampling_clip_min", -0.1), ("use_vllm", "vllm_importance_sampling_cap", -2.0),
        ("use_adaptive_entropy", "entropy_coef_min", math.nan), ("use_adaptive_entropy", "entropy_coef_max", math.inf),
        ("use_adaptive_entropy", "entropy_coef_delta", 0.0), ("use_adaptive_entropy", "entropy_target", -0.2),
        ("log_completions", "num_completions_to_print", -1), (None, "top_entropy_quantile", -0.1),
    ],
)  # fmt: skip
def test_inherited_numbers_and_words_out_of_range(switch, name, bad):
    with pytest.raises(ValueError, match=rf"PPOConfig\({name}={re.escape(repr(bad))}"):
        config(**({switch: True} if switch else {}), **{name: bad})


@pytest.mark.parametrize(
    ("switch", "low", "high", "values"),
    [
        ("use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", (0.3, 0.2)),
        ("use_vllm", "vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max", (2.0, 2.0)),
    ],
)
def test_bounds_the_wrong_way_round(switch, low, high, values):
    with pytest.raises(ValueError, match=rf"PPOConfig\({low}={values[0]}, {high}={values[1]}\): expected {low} below"):
        config(**{switch: True, low: values[0], high: values[1]})
    config(**{switch: True, low: 0.1, high: 0.2})


def test_the_highest_entropy_alone():
    """0 is TRL's own smallest: all but the token of the highest entropy are masked."""
    assert config(top_entropy_quantile=0.0).top_entropy_quantile == 0.0


def test_a_copy_with_changes():
    args = config(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    copy = dataclasses.replace(args, gamma=0.9)
    assert (copy.gamma, copy.generation_batch_size, copy.steps_per_generation) == (0.9, 8, 2)
    with pytest.raises(
        ValueError, match=r"generation_batch_size=8, steps_per_generation=2, .*_size=2\): .* are 4 .*, both as None"
    ):
        dataclasses.replace(args, per_device_train_batch_size=2)
    other = dataclasses.replace(
        args, per_device_train_batch_size=2, generation_batch_size=None, steps_per_generation=None
    )
    assert other.generation_batch_size == 4


def test_whole_numbers_however_they_are_written():
    args = config(kl_horizon=1e4, num_iterations=2.0)
    assert (args.kl_horizon, args.num_iterations) == (10_000, 2) and type(args.num_iterations) is int


def test_16_bit_continuous_batching_is_refused():
    with pytest.raises(ValueError, match="Set bf16=False"):
        config(use_transformers_continuous_batching=True, bf16=True, use_cpu=True)


def test_command_line():
    (args,) = TrlParser(PPOConfig).parse_args_and_config(
        ["--output_dir", "x", "--bf16", "False", "--report_to", "none", "--lam", "0.9", "--learning_rate", "1e-4"]
    )
    assert (args.lam, args.learning_rate, args.num_generations) == (0.9, 1e-4, 1)


def test_every_field_has_help():
    assert all(f.metadata.get("help") for f in dataclasses.fields(PPOConfig) if f.name not in GRPO_FIELDS)


GRPO_FIELDS = {f.name for f in dataclasses.fields(GRPOConfig)}


def test_a_warm_up_as_long_as_the_run(tmp_path):
    """Sixteen prompts, four a batch: four batches of rollouts in an epoch, which the trainer knows when it begins."""
    with pytest.raises(
        ValueError, match=r"critic_warmup_rollouts=4\): the run samples 4 batches of rollouts in its 4 st"
    ):
        ppo_trainer(tmp_path, critic_warmup_rollouts=4, max_steps=-1, num_train_epochs=1, num_iterations=1).train()
