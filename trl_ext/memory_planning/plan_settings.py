"""What a plan is asked for, checked."""

from dataclasses import dataclass
from numbers import Integral

from trl_ext.memory_planning.memory_terms import BYTES_OF
from trl_ext.memory_planning.plan_judges import PlannedJudge
from trl_ext.memory_planning.plan_shard_rules import check_shard

METHODS = ("ppo", "grpo", "raft", "rest", "reward", "sft")
CHOICES = {
    "method": METHODS,
    "bits": (None, 8, 4),
    "dtype": tuple(BYTES_OF),
    "optimizer": ("adamw", "adamw_8bit", "paged_adamw_8bit"),
    "device": ("cuda", "cpu"),
    "generator": ("transformers", "vllm", "endpoint", "file"),
    "served_bits": (None, 8, 4),
    "shard": (None, "ddp", "fsdp2", "zero2", "zero3"),
}
SIZES = ("batch", "micro_batch", "prompt_length", "completion_length", "reward_batch", "num_generations", "num_gpus")
SIZES += ("reduce_bucket_size", "max_live_parameters")
SWITCHES = ("gradient_checkpointing", "reentrant", "value_model", "reference", "imitation", "autocast", "shared")
SWITCHES += ("sync_each_batch", "imitation_head", "policy_passes")
LEAST = dict.fromkeys(SIZES, 1) | {"reward_models": 0}

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """A run, as far as memory depends on it; the arguments of `memory_plan`.

    Raises:
        ValueError: For a value that no run can have.
    """

    method: str = "ppo"
    bits: int | None = None
    dtype: str = "bfloat16"
    lora: int | None = 16
    batch: int = 16
    micro_batch: int = 1
    prompt_length: int = 512
    completion_length: int = 512
    gradient_checkpointing: bool = True
    reentrant: bool = False
    value_model: bool = False
    reward_models: int = 1
    reward_batch: int = 8
    num_generations: int | None = None
    reference: bool = True
    imitation: bool = False
    autocast: bool = False
    optimizer: str = "adamw"
    shared: bool | None = None
    device: str = "cuda"
    generator: str = "transformers"
    served_bits: int | None = None
    served_at_once: int | None = None
    judges: tuple[PlannedJudge, ...] = ()
    num_gpus: int = 1
    shard: str | None = None
    sync_each_batch: bool = False
    reduce_bucket_size: int = 500_000_000
    max_live_parameters: int = 1_000_000_000
    imitation_head: bool = False
    policy_passes: bool = False

    def __post_init__(self):
        if self.shared is None:
            object.__setattr__(self, "shared", not self.shards)
        if self.num_generations is None:
            object.__setattr__(self, "num_generations", 1 if self.method == "ppo" else 8)
        for name in ("bits", "served_bits"):
            if getattr(self, name) == 16:
                object.__setattr__(self, name, None)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or value not in choices:
                hint = ", None for weights that are not quantised" if name.endswith("bits") else ""
                self._refuse(name, f"one of {', '.join(map(str, choices))}", f"Choose one{hint}.")
        for name, least in LEAST.items():
            if not _is_whole(getattr(self, name), least):
                self._refuse(name, f"a whole number from {least} on", "Mend it.")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False", "Mend it.")
        if self.lora is not None and not _is_whole(self.lora, 1):
            self._refuse("lora", "a rank from 1 on, or None for all weights", "Give the r of its LoraConfig.")
        if self.served_at_once is not None and not _is_whole(self.served_at_once, 1):
            self._refuse("served_at_once", "a whole number from 1 on, or None for the whole batch", "Mend it.")
        self._check_together()

    def _check_together(self) -> None:
        if self.bits is not None and self.lora is None:
            raise ValueError(
                f"memory_plan(bits={self.bits}, lora=None): quantised weights are frozen, so there would be nothing to "
                "train. Give a LoRA rank, e.g. lora=16, or bits=None."
            )
        if self.autocast and self.dtype != "float32":
            raise ValueError(
                f"memory_plan(dtype={self.dtype!r}, autocast=True): expected weights in float32, which training in 16 bits "
                "turns to 16 bits layer by layer. Give dtype='float32', or autocast=False."
            )
        if self.micro_batch > self.batch:
            raise ValueError(
                f"memory_plan(batch={self.batch}, micro_batch={self.micro_batch}): expected micro_batch ≤ batch, of "
                "which it is a part. Lower micro_batch, or raise batch."
            )
        if self.judges and not self.samples:
            raise ValueError(f"memory_plan(method={self.method!r}, judges=…): nothing is scored. Leave judges out.")
        if self.imitation_head and not self.imitates:
            self._refuse(
                "imitation_head",
                "False, since nothing is imitated",
                "Give method='reward' and imitation=True, or leave it out.",
            )
        self._check_generator()
        check_shard(self)

    def _check_generator(self) -> None:
        if self.generator != "transformers" and not self.samples:
            raise ValueError(
                f"memory_plan(method={self.method!r}, generator={self.generator!r}): nothing is sampled. Leave generator out."
            )
        if self.sampled_elsewhere and self.on_policy:
            raise ValueError(
                f"memory_plan(method={self.method!r}, generator={self.generator!r}): it learns from what its own policy samples. "
                "Leave generator out."
            )
        if self.policy_passes and not self.sampled_elsewhere:
            self._refuse("policy_passes", "False, since the policy samples itself", "Leave it out.")
        if self.generator == "vllm" and (self.lora or 0) > RANKS[-1]:
            self._refuse("lora", f"a rank of {RANKS[-1]} at most, since vLLM serves none above", "Lower it.")
        for name in ("served_bits", "served_at_once"):
            if getattr(self, name) is not None and self.generator != "vllm":
                self._refuse(name, "None, since vLLM alone is served by it", "Give generator='vllm', or leave it out.")

    def _refuse(self, name: str, expected: str, remedy: str) -> None:
        raise ValueError(f"memory_plan({name}={getattr(self, name)!r}): expected {expected}. {remedy}")

    # What follows

    @property
    def width(self) -> int:
        """Bytes of a number in `dtype`."""
        return BYTES_OF[self.dtype]

    @property
    def compute_width(self) -> int:
        """Bytes of a number that training computes with."""
        return 2 if self.autocast else self.width

    @property
    def shards(self) -> bool:
        """Whether an engine cuts anything of what is trained over the cards."""
        return self.shard in ("fsdp2", "zero2", "zero3")

    @property
    def cuts_weights(self) -> bool:
        """Whether no card has whole weights."""
        return self.shard in ("fsdp2", "zero3")

    @property
    def is_fsdp(self) -> bool:
        return self.shard == "fsdp2"

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed does, which trains in one precision, beside master weights in fp32."""
        return self.shard in ("zero2", "zero3")

    @property
    def held_width(self) -> int:
        """Bytes of a number of the models that passes without gradients read: as loaded, or as DeepSpeed has cast them."""
        return self.compute_width if self.is_zero else self.width

    @property
    def adapter_width(self) -> int:
        """Bytes of a number of the adapters that are trained, and of heads."""
        return self.compute_width if self.is_zero else 4

    @property
    def sampled_elsewhere(self) -> bool:
        """Whether completions come from a server or a file."""
        return self.generator in ("endpoint", "file")

    @property
    def samples_policy(self) -> bool:
        """Whether this process samples from its policy: always, or, where samples come from elsewhere, what is held out."""
        return self.generator == "transformers" or self.policy_passes

    @property
    def upcasts(self) -> bool:
        """Whether what is trained is kept in fp32 though it was loaded in 16 bits: as accelerate does where FSDP2 cuts it."""
        return self.is_fsdp and self.width == 2

    @property
    def gathers_gradients(self) -> bool:
        """Whether all gradients wait whole, on each card, for further micro-batches."""
        return self.is_fsdp and self.accumulates and not self.sync_each_batch

    @property
    def imitates(self) -> bool:
        """Whether a reward model's states are read by a frozen vocabulary head."""
        return self.method == "reward" and self.imitation

    @property
    def sets_tiles(self) -> bool:
        """Whether the trainer lets TRL's vocabulary head take narrow tiles: ours do, on a CPU."""
        return not self.cuda and self.method in ("ppo", "raft", "rest")

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return self.prompt_length + self.completion_length

    @property
    def samples(self) -> bool:
        """Whether completions are sampled and scored."""
        return self.method in ("ppo", "grpo", "raft", "rest")

    @property
    def on_policy(self) -> bool:
        """Whether log-probabilities of the samples are compared with a reference's."""
        return self.method in ("ppo", "grpo")

    @property
    def has_critic(self) -> bool:
        """Whether there is a value model."""
        return self.method == "ppo" and self.value_model

    @property
    def has_reference(self) -> bool:
        return self.on_policy and self.reference

    @property
    def rewards(self) -> int:
        """Reward models beside the policy, of its shape."""
        return self.reward_models if self.samples else 0

    @property
    def scorers(self) -> int:
        """All that score completions."""
        return self.rewards + len(self.judges)

    @property
    def accumulates(self) -> bool:
        """Whether gradients wait for further micro-batches."""
        return self.batch > self.micro_batch

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


def _is_whole(value, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least
