"""Hyperparameters of PPO."""

import math
from dataclasses import dataclass

from trl import GRPOConfig

from trl_ext.ppo.migration import OlderOptions
from trl_ext.ppo.ppo_rules import MEANINGLESS, RULES, check_generation_kwargs
from trl_ext.trainer_kit.config_checks import check_config, defaults_of, refuse_meaningless
from trl_ext.trainer_kit.config_docs import documented, option


class _OneGeneration(int):
    """The number 1, for GRPOConfig's checks: a group needs two samples, PPO has no groups.

    >>> _OneGeneration(1) < 2, 4 % _OneGeneration(1)
    (False, 0)
    """

    def __lt__(self, other) -> bool:
        return False


LEARNING_RATE, ADAPTER_RATE = 1e-6, 1e-5  # of all weights, and of an adapter


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
    num_generations: int = option(1, "Completions sampled per prompt, 1 or more.")
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
    sampling_weight_cap: float | None = option(
        2.0,
        "Largest weight π / π_sampled of a token's advantage, where another than the policy samples and says how "
        "probable its tokens were; 1 or more. Larger: less bias, more variance; None: no weights.",
    )

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

    accept_changes: list[str] | None = option(
        None, "What a resumed run may change: names of options, or e.g. 'train_dataset'.", group="the run's folder"
    )

    def __post_init__(self):
        self._refuse_sharding()
        check_config(self, RULES)
        self._check_adaptive_kl()
        if self.num_generations == 1:
            self.num_generations = _OneGeneration(1)
        size, by_steps = self.generation_batch_size, self.steps_per_generation is not None
        if by_steps:  # GRPOConfig refuses to be given both, and fills in both, which `dataclasses.replace` gives again
            self.generation_batch_size = None
        super().__post_init__()
        self.num_generations = int(self.num_generations)
        if by_steps and size not in (None, self.generation_batch_size):
            raise self._two_sizes(size)
        self._refuse_meaningless()
        check_generation_kwargs(self)
        self._refuse_idle_clips()
        if self.max_steps > 0:
            self.check_warmup(self.max_steps)

    def check_warmup(self, steps: int) -> None:
        """Raise a ValueError where a run of so many steps has no batch of rollouts after the critic's warm-up."""
        rollouts = math.ceil(steps / self.steps_per_rollout)
        if 0 < rollouts <= self.critic_warmup_rollouts:
            raise ValueError(
                f"PPOConfig(critic_warmup_rollouts={self.critic_warmup_rollouts}): the run samples {rollouts} batches of "
                f"rollouts in its {steps} steps, so the policy would never learn. Lower it, or train longer."
            )

    @property
    def steps_per_rollout(self) -> float:
        return self.num_iterations * self.steps_per_generation / self.gradient_accumulation_steps

    def _two_sizes(self, size: int) -> ValueError:
        return ValueError(
            f"PPOConfig(generation_batch_size={size}, steps_per_generation={self.steps_per_generation}, "
            f"per_device_train_batch_size={self.per_device_train_batch_size}): so many steps are "
            f"{self.generation_batch_size} completions. Give one of the two sizes; of a copy with another batch size, "
            "both as None."
        )

    def _refuse_idle_clips(self) -> None:
        defaults = defaults_of(self)
        for name in ("epsilon", "epsilon_high", "value_clip"):
            if getattr(self, name) != defaults[name] and self.steps_per_rollout <= 1 and self.disable_dropout:
                raise ValueError(
                    f"PPOConfig({name}={getattr(self, name)}, num_iterations={self.num_iterations}): it does nothing with one "
                    "step per batch of rollouts, in which neither policy nor critic has moved yet. Give more "
                    "num_iterations, or leave it out."
                )

    def _check_adaptive_kl(self) -> None:
        if self.adaptive_kl and self.kl_target is None:
            raise ValueError(
                "PPOConfig(adaptive_kl=True, kl_target=None): expected the KL per completion to keep to, in nats, e.g. "
                "kl_target=6.0. Give one, or leave adaptive_kl out."
            )
        if self.kl_target is not None and not self.adaptive_kl:
            raise ValueError(
                f"PPOConfig(kl_target={self.kl_target}) does nothing without adaptive_kl=True. Set that, or leave it out."
            )
        if self.adaptive_kl and self.beta == 0:
            raise ValueError(
                "PPOConfig(adaptive_kl=True, beta=0): without `beta` there is no reference to measure KL to. Give a small "
                "beta, e.g. 1e-4."
            )

    def _refuse_sharding(self) -> None:
        for name in ("deepspeed", "fsdp"):
            if getattr(self, name):
                raise ValueError(
                    f"PPOConfig({name}={getattr(self, name)!r}): accelerate's file is what asks for it here. Leave it out: "
                    "several GPUs share the work with `accelerate launch --multi_gpu`; what does not fit one of them may "
                    "with an adapter on a base in 8 or 4 bits (SharedBase), or under FSDP2, ZeRO-2 or ZeRO-3, which PPO takes "
                    "from `accelerate launch --config_file examples/accelerate/fsdp2.yaml` (or zero2.yaml, zero3.yaml)."
                )

    def _refuse_meaningless(self) -> None:
        refuse_meaningless(self, MEANINGLESS)
        if self.use_transformers_continuous_batching and (self.bf16 or self.fp16):
            raise ValueError(
                "PPOConfig(use_transformers_continuous_batching=True) with bf16 or fp16 would turn the policy itself, "
                "adapters included, to 16 bits, where small steps are lost. Set bf16=False, or leave it off."
            )
