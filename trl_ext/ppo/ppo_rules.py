"""What PPO asks of its options: those of `GRPOConfig` that mean nothing, and where each other does something."""

from dataclasses import fields, replace

from transformers import GenerationConfig
from trl import GRPOConfig

from trl_ext.trainer_kit.near_names import near_name
from trl_ext.trainer_kit.option_rules import Need, Rule, below, nonzero, switched_on, without
from trl_ext.trainer_kit.training_rules import FINITE, TRAINING_RULES

# Fields of GRPOConfig that PPO gives no meaning, and why. Their defaults are accepted, anything else is refused.
MEANINGLESS = {
    "loss_type": "PPO's means run over the real tokens of the accumulation window, which is 'dapo'",
    "importance_sampling_level": "advantages differ from token to token, which a ratio per sequence cannot weigh",
    "scale_rewards": "there are no groups to scale by; `score_scaling` and `whiten_advantages` do the scaling",
    "multi_objective_aggregation": "there are no groups to normalise in; weigh rewards with `reward_weights`",
    "delta": "two-sided clipping is another surrogate; PPO's is bounded by `epsilon` and `epsilon_high`",
    "use_bias_correction_kl": "KL is charged in the reward, not in the loss; choose `kl_estimator`",
    "off_policy_mask_threshold": "it masks sequences by one advantage each, PPO has one per token",
    "sapo_temperature_neg": "it belongs to loss_type='sapo'",
    "sapo_temperature_pos": "it belongs to loss_type='sapo'",
    "vespo_k_pos": "it belongs to loss_type='vespo'",
    "vespo_lambda_pos": "it belongs to loss_type='vespo'",
    "vespo_k_neg": "it belongs to loss_type='vespo'",
    "vespo_lambda_neg": "it belongs to loss_type='vespo'",
    "sync_ref_model": "the reference is the policy as it was when the run began",
    "ref_model_mixup_alpha": "it belongs to `sync_ref_model`; the reference does not move",
    "ref_model_sync_steps": "it belongs to `sync_ref_model`; the reference does not move",
    "ignore_data_skip": "a resumed run would go on with other prompts than the one that was stopped",
    "label_smoothing_factor": "there are no labels to smooth",
    "neftune_noise_alpha": "noise in the embeddings would move the ratios away from 1 before the first step",
    "use_liger_kernel": "TRL 1.12 would compute GRPO's own loss with it, past the critic; "
    "layer kernels are model_init_kwargs={'use_kernels': True}",
    "max_tool_calling_iterations": "tools are not supported; use TRL's GRPOTrainer for agents",
    "train_sampling_strategy": "prompts are shuffled; no batch of rollouts has one length",
    "remove_unused_columns": "the rewards read the data set's other columns",
    "log_multimodal": "there are no images to log",
    "ds3_gather_for_generation": "under ZeRO-3, processes whose completions differ in length would wait for each other for ever",
}

# What `generation_kwargs` may not say, and the option that does, by which ratios and masks are taken.
SAID_BY = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
SAID_BY |= dict.fromkeys(
    ("max_new_tokens", "max_length", "max_tokens", "max_completion_length"), "max_completion_length"
)
SAID_BY |= dict.fromkeys(("num_return_sequences", "n", "num_generations"), "num_generations")
SAID_BY |= {"do_sample": "temperature", "eos_token_id": "stop_tokens"}
KNOWN = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - SAID_BY.keys()


def check_generation_kwargs(config: GRPOConfig) -> None:
    """Raise a ValueError where `generation_kwargs` is no dict, says what an option does, or what nobody knows."""
    given = config.generation_kwargs
    call = f"{type(config).__name__}(generation_kwargs={given!r})"
    if not isinstance(given, dict | None):
        raise ValueError(f"{call}: expected a dict of further options of generation, or None.")
    for name in given or ():
        if name in SAID_BY:
            raise ValueError(
                f"{call}: {name!r} would change how completions are sampled, and neither ratios nor masks would know. "
                f"Leave it out, and give `{SAID_BY[name]}` of the config."
            )
    unknown = [name for name in given or () if name not in KNOWN and not config.use_vllm]  # vLLM has others
    if unknown:
        near = near_name(str(unknown[0]), KNOWN | SAID_BY.keys())
        raise ValueError(
            f"{call}: transformers' generation has no option {unknown[0]!r}, so it would do nothing. "
            f"{f'Is {near!r} meant? ' if near else ''}Give names that `GenerationConfig` has."
        )


CRITIC_MOVES = Need(
    lambda config: config.critic_learning_rate != 0 or not config.detach_critic,
    "it does nothing, since the value loss moves neither critic nor policy. Leave it out, or let the critic learn.",
    ("critic_learning_rate", "detach_critic"),
)

# What PPO asks of its options, and of those of GRPOConfig that it reads. The annotations say their types.
RULES = TRAINING_RULES | {
    "scale_rewards": Rule(typed=False),  # of the parent's former True and False
    "num_generations": Rule(1, required=True),
    "num_generations_eval": Rule(1),
    "num_iterations": Rule(1),
    "generation_batch_size": Rule(1),
    "steps_per_generation": Rule(1),
    "epsilon": Rule(above=0.0, high=1.0),
    "epsilon_high": Rule(above=0.0),
    "max_completion_length": Rule(1, required=True),
    "temperature": Rule(above=0.0),
    "top_p": Rule(above=0.0, high=1.0),
    "top_k": Rule(0),
    "min_p": Rule(0.0, 1.0),
    "repetition_penalty": Rule(above=0.0),
    "top_entropy_quantile": Rule(0.0, 1.0),  # 0: of each micro-batch, the tokens of the highest entropy alone
    "entropy_coef": FINITE,
    "beta": Rule(0.0),
    "kl_estimator": Rule(words=("k1", "k3"), needs=nonzero("beta")),
    "kl_target": Rule(above=0.0),
    "kl_horizon": Rule(1, needs=switched_on("adaptive_kl")),
    "missing_eos_penalty": Rule(
        0.0,
        needs=without(
            "mask_truncated_completions",
            "what did not end itself is left out of the loss, so the penalty would reach nobody",
        ),
    ),
    "stop_tokens": Rule(needs=without("use_vllm", "vLLM would not be told of them")),
    "score_clip": Rule(above=0.0, needs=switched_on("score_scaling")),
    "gamma": Rule(above=0.0, high=1.0),
    "lam": Rule(0.0, 1.0),
    "sampling_weight_cap": Rule(1.0, needs=without("use_vllm", "there TRL weighs, by vllm_importance_sampling_mode")),
    "ptx_coef": Rule(0.0),
    "ptx_max_length": Rule(2, needs=nonzero("ptx_coef")),
    "value_clip": Rule(above=0.0, needs=(nonzero("value_coef"), CRITIC_MOVES)),
    "value_coef": Rule(0.0, needs=CRITIC_MOVES),
    "critic_learning_rate": Rule(0.0, needs=nonzero("value_coef")),
    "critic_warmup_rollouts": Rule(0, needs=(nonzero("value_coef"), nonzero("critic_learning_rate"))),
    "detach_critic": Rule(needs=nonzero("value_coef")),
}
PORT = Rule(1, 65_535)
SWITCHED = {  # what of GRPOConfig belongs to a switch, by that
    "use_vllm": {
        **{field.name: Rule() for field in fields(GRPOConfig) if field.name.startswith("vllm_")},
        "vllm_mode": Rule(words=("colocate", "server")),
        "vllm_model_impl": Rule(words=("vllm", "transformers")),
        "vllm_server_port": PORT,
        "vllm_group_port": PORT,
        "vllm_server_timeout": Rule(0.0),
        "vllm_gpu_memory_utilization": Rule(above=0.0, high=1.0),
        "vllm_max_model_length": Rule(1),
        "vllm_tensor_parallel_size": Rule(1),
        "vllm_importance_sampling_mode": Rule(
            words=("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
        ),
        "vllm_importance_sampling_clip_max": Rule(above=0.0),
        "vllm_importance_sampling_clip_min": Rule(
            0.0, needs=below("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max")
        ),
        "vllm_importance_sampling_cap": Rule(above=0.0),
    },
    "use_adaptive_entropy": {
        "entropy_coef_min": replace(FINITE, needs=below("entropy_coef_min", "entropy_coef_max")),
        "entropy_coef_max": replace(FINITE, needs=below("entropy_coef_min", "entropy_coef_max")),
        "entropy_coef_delta": Rule(above=0.0),
        "entropy_target": Rule(above=0.0),
    },
    "log_completions": {
        "num_completions_to_print": Rule(0),
        "log_unique_prompts": Rule(),
        "log_completions_hub_repo": Rule(),
    },
    "use_transformers_continuous_batching": {"transformers_continuous_batching_config": Rule()},
}
for switch, rules in SWITCHED.items():
    for name, rule in rules.items():
        further = (rule.needs,) if isinstance(rule.needs, Need) else rule.needs
        RULES[name] = replace(rule, needs=(switched_on(switch), *further))
