"""Hyperparameters of PPO."""

from dataclasses import dataclass

from trl import GRPOConfig

from trl_ext.ppo.migration import OlderOptions
from trl_ext.trainer_kit.config_checks import check_ranges, refuse_meaningless, refuse_unused
from trl_ext.trainer_kit.config_docs import documented, option


class _OneGeneration(int):
    """The number 1, for GRPOConfig's checks: a group needs two samples, PPO has no groups.

    >>> _OneGeneration(1) < 2, 4 % _OneGeneration(1)
    (False, 0)
    """

    def __lt__(self, other) -> bool:
        return False


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
}

LEARNING_RATE, ADAPTER_RATE = 1e-6, 1e-5  # of all weights, and of an adapter

RANGES = {
    "gamma": (0.0, 1.0, False),
    "lam": (0.0, 1.0, True),
    "epsilon": (0.0, 1.0, False),
    "epsilon_high": (0.0, None, False),
    "beta": (0.0, None, True),
    "value_clip": (0.0, None, False),
    "value_coef": (0.0, None, True),
    "score_clip": (0.0, None, False),
    "missing_eos_penalty": (0.0, None, True),
    "critic_learning_rate": (0.0, None, True),
    "critic_warmup_rollouts": (0, None, True),
    "num_iterations": (1, None, True),
    "num_generations": (1, None, True),
    "temperature": (0.0, None, False),
    "kl_target": (0.0, None, False),
    "kl_horizon": (1, None, True),
    "ptx_coef": (0.0, None, True),
    "ptx_max_length": (2, None, True),
}


@documented
@dataclass
class PPOConfig(OlderOptions, GRPOConfig):
    """What PPO adds to GRPO: a critic, advantages per token instead of per group, and KL in the reward.

    Everything about sampling, batching and the clipped policy loss keeps its GRPO name and meaning. The generation
    batch (`per_device_train_batch_size × gradient_accumulation_steps` completions per process, or
    `generation_batch_size`) may have any size. Options of GRPO that mean nothing for PPO are refused.

    Raises:
        ValueError: For a value out of its range, or an option of GRPO that PPO gives no meaning.
    """

    learning_rate: float | None = option(
        None,
        "Peak learning rate of the policy. None: 1e-5 with an adapter, 1e-6 in full.",
        group="the training, with other defaults than GRPO's",
    )
    num_generations: int | None = option(1, "Completions sampled per prompt, 1 or more.")
    num_iterations: int = option(
        4,
        "Optimisation epochs over each batch of rollouts. Larger: more is learned per rollout, further from the "
        "policy that sampled.",
    )
    disable_dropout: bool = option(True, "Turn dropout off, so that ratios start at 1 and KL at 0.")
    scale_rewards: str = option("none", "Fixed: PPO has no groups. See `score_scaling`.")

    beta: float = option(
        0.05, "Price of one nat of KL to the reference, in units of (scaled) score. 0: free.", group="the reward"
    )
    kl_estimator: str = option("k1", "'k1': log-ratio, unbiased. 'k3': never negative, lower variance.")
    adaptive_kl: bool = option(False, "Move `beta` so that KL stays near `kl_target`; False: it is fixed.")
    kl_target: float | None = option(
        None, "KL per completion to keep to with `adaptive_kl`, in nats, above 0. Larger: the policy may go further."
    )
    kl_horizon: int = option(
        10_000, "Completions over which `beta` follows KL, by at most a fifth; 1 or more. Larger: slower."
    )
    missing_eos_penalty: float = option(
        0.0, "Taken off the score of a completion that did not end itself. Larger: they end sooner; 0: none."
    )
    stop_tokens: list[str] | None = option(
        None, "Tokens that end a completion, besides the end token; a completion with one has ended itself."
    )
    score_scaling: bool = option(True, "Centre scores and divide them by their deviation over the run so far.")
    score_clip: float = option(
        10.0, "Largest scaled score, in deviations; needs `score_scaling`. Larger: outliers weigh more."
    )

    gamma: float = option(
        1.0,
        "Discount per token, in (0, 1]. Smaller: the score counts less, the further from the end.",
        group="the advantages",
    )
    lam: float = option(0.95, "GAE λ in [0, 1]: 0 trusts the critic, 1 the sampled return.")
    whiten_advantages: bool = option(True, "Bring advantages to mean 0 and variance 1 over each batch of rollouts.")

    ptx_coef: float = option(
        0.0,
        "Weight of the mean NLL per token of `ptx_dataset` in the loss. Larger: forgets less; 0: none.",
        group="the text that is learned beside",
    )
    ptx_max_length: int = option(512, "Longest row of `ptx_dataset`, in tokens; cut at its end.")

    value_clip: float = option(
        0.2,
        "Largest trusted move of a value, in units of return, above 0. Larger: the critic follows faster.",
        group="the critic",
    )
    value_coef: float = option(
        0.1, "Weight of the value loss. Larger: the critic learns faster; 0: it does not learn."
    )
    critic_learning_rate: float | None = option(
        None,
        "Peak learning rate of the critic. Larger: it learns faster; 0: it does not learn; None: 10 × the "
        "policy's for a head, equal for a model.",
    )
    critic_warmup_rollouts: int = option(
        0,
        "Batches of rollouts during which only the critic learns. Larger: a better critic before the policy "
        "moves; 0: both learn from the first.",
    )
    detach_critic: bool = option(True, "Keep the value loss out of the policy's weights; only for the built-in head.")

    def __post_init__(self):
        check_ranges(self, RANGES, optional=("critic_learning_rate", "epsilon_high", "kl_target"))
        self._check_texts()
        self._refuse_sharding()
        if self.num_generations == 1:
            self.num_generations = _OneGeneration(1)
        super().__post_init__()
        self.num_generations = int(self.num_generations)
        self._refuse_meaningless()
        self._check_together()

    def _check_texts(self) -> None:
        if self.kl_estimator not in ("k1", "k3"):
            raise ValueError(f"PPOConfig(kl_estimator={self.kl_estimator!r}): choose 'k1' or 'k3'.")
        if isinstance(self.stop_tokens, str):
            raise ValueError(
                f"PPOConfig(stop_tokens={self.stop_tokens!r}): expected a list of tokens, got one text. Write "
                f"stop_tokens=[{self.stop_tokens!r}]."
            )

    def _check_together(self) -> None:
        if self.adaptive_kl and self.kl_target is None:
            raise ValueError(
                "PPOConfig(adaptive_kl=True, kl_target=None): expected the KL per completion to keep to, in nats, e.g. "
                "kl_target=6.0. Give one, or leave adaptive_kl out."
            )
        if self.kl_target is not None and not self.adaptive_kl:
            raise ValueError(
                f"PPOConfig(kl_target={self.kl_target}) does nothing without adaptive_kl=True. Set that, or leave it out."
            )
        refuse_unused(self, {"score_clip": "score_scaling", "kl_horizon": "adaptive_kl"})
        if self.adaptive_kl and self.beta == 0:
            raise ValueError(
                "PPOConfig(adaptive_kl=True, beta=0): without `beta` there is no reference to measure KL to. Give a small "
                "beta, e.g. 1e-4."
            )
        if self.mask_truncated_completions and self.missing_eos_penalty:
            raise ValueError(
                f"PPOConfig(mask_truncated_completions=True, missing_eos_penalty={self.missing_eos_penalty}): what did not end "
                "itself is left out of the loss, so the penalty would reach nobody. Leave one of the two out."
            )
        if self.stop_tokens and self.use_vllm:
            raise ValueError(
                f"PPOConfig(stop_tokens={self.stop_tokens}, use_vllm=True): vLLM would not be told of them. Leave one out."
            )

    def _refuse_sharding(self) -> None:
        for name in ("deepspeed", "fsdp"):
            if getattr(self, name):
                raise ValueError(
                    f"PPOConfig({name}={getattr(self, name)!r}): the critic is outside the model that it shards. Leave it out: "
                    "several GPUs share the work with `accelerate launch --multi_gpu`, and what does not fit one of them "
                    "may with an adapter on a base in 8 or 4 bits (SharedBase)."
                )

    def _refuse_meaningless(self) -> None:
        refuse_meaningless(self, MEANINGLESS)
        if self.use_transformers_continuous_batching and (self.bf16 or self.fp16):
            raise ValueError(
                "PPOConfig(use_transformers_continuous_batching=True) with bf16 or fp16 would turn the policy itself, "
                "adapters included, to 16 bits, where small steps are lost. Set bf16=False, or leave it off."
            )
