"""What stays on the card for the whole run: the roles' weights and the optimiser's state."""

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.memory_terms import adapter_params, base_bytes, optimizer_bytes
from trl_ext.memory_planning.plan_settings import PlanSettings
from trl_ext.memory_planning.plan_sharding import FP32, share, state_share
from trl_ext.memory_planning.plan_zero import MASTER, beside_training


def own_bases(settings: PlanSettings) -> bool:
    """Whether roles have bases of their own: asked for, or because all weights are trained."""
    return not settings.shared or settings.lora is None


def base(shape: ModelShape, settings: PlanSettings, *, head: bool = True, learns: bool = False) -> int:
    """A base; `learns`: whether it is one whose weights are trained where no adapter is."""
    width = trained_width(settings) if learns and settings.lora is None else settings.held_width
    return base_bytes(shape, bits=settings.bits, width=width, head=head)


def residents(shape: ModelShape, settings: PlanSettings) -> dict[str, int]:
    """Bytes of what every phase but loading holds."""
    numbers = trained(shape, settings)
    states = sum(optimizer_bytes(n, settings.optimizer, width=state_width(settings)) for n in numbers)
    paged = settings.optimizer == "paged_adamw_8bit"
    return {
        "base weights": policy_base(shape, settings),
        "other bases": other_bases(shape, settings) + judge_bases(settings),
        "adapters, heads": adapters(shape, settings),
        "imitation head": imitation_head(shape, settings),
        "optimizer state": 0 if paged else state_share(states, settings),
        MASTER: state_share(FP32 * sum(numbers), settings) if settings.is_zero else 0,
        **beside_training(sum(numbers), settings, width=trained_width(settings)),
    }


def policy_base(shape: ModelShape, settings: PlanSettings) -> int:
    """The base that is trained or shared. A reward model alone has no vocabulary head."""
    head = settings.method != "reward" or not own_bases(settings)
    return share(base(shape, settings, head=head, learns=True), settings)


def other_bases(shape: ModelShape, settings: PlanSettings) -> int:
    """Bases of the roles beside the policy, where they share none.

    The reference of an adapter is its own base without it, so that it needs one only where all weights are trained.
    """
    if not own_bases(settings):
        return 0
    reference = base(shape, settings) if settings.has_reference and settings.lora is None else 0
    critic = base(shape, settings, head=False, learns=True) if settings.has_critic else 0
    rewards = settings.rewards * base_bytes(shape, bits=settings.bits, width=settings.width, head=False)
    return share(reference + critic, settings) + rewards


def judge_bases(settings: PlanSettings) -> int:
    """Bytes of judges that are other models."""
    return sum(judge.weights for judge in settings.judges)


def adapters(shape: ModelShape, settings: PlanSettings) -> int:
    """LoRA weights and score heads in fp32: of policy, reference, value model and reward models.

    The reference is a copy of the policy's adapter where that came as one, as those of a shared base do.
    """
    each = adapter_params(shape, settings.lora) if settings.lora else 0
    learns = settings.has_critic or settings.method == "reward"
    heads = learns or settings.method == "ppo"
    trained_ones = policy_adapters(shape, settings) + settings.adapter_width * (learns * each + heads * shape.hidden)
    return share(trained_ones, settings) + FP32 * settings.rewards * (each + shape.hidden)


def policy_adapters(shape: ModelShape, settings: PlanSettings) -> int:
    """LoRA weights of the policy and its reference, which are in one model."""
    policies = 0 if settings.method == "reward" else 1 + (settings.has_reference and settings.shared)
    return settings.adapter_width * policies * adapter_params(shape, settings.lora) if settings.lora else 0


def imitation_head(shape: ModelShape, settings: PlanSettings) -> int:
    """The frozen vocabulary head: given for itself, or where neither the shared base nor the embedding is it."""
    if settings.imitation_head and shape.tied:  # another is counted already
        return shape.embedding_params * settings.width
    return shape.head_params * settings.width if settings.imitates and own_bases(settings) else 0


def trained(shape: ModelShape, settings: PlanSettings) -> tuple[int, ...]:
    """How many numbers are trained: of the policy (or the only model), and of the value model if there is one."""
    if settings.lora is not None:
        one = adapter_params(shape, settings.lora)
        return (one, one + shape.hidden) if settings.has_critic else (one,)
    trunk = shape.params - shape.head_params + shape.hidden
    if settings.method == "reward":
        return (trunk,)
    return (shape.params, trunk) if settings.has_critic else (shape.params,)


def trained_width(settings: PlanSettings) -> int:
    """Bytes of a trained number: adapters are in fp32, weights in their own precision, where FSDP2 cuts them in fp32; under
    DeepSpeed all in the precision of the passes."""
    if settings.is_zero:
        return settings.compute_width
    return FP32 if settings.lora is not None or settings.upcasts else settings.width


def state_width(settings: PlanSettings) -> int:
    """Bytes of a number of the optimizer's means: as what is trained, which under DeepSpeed are master weights in fp32."""
    return FP32 if settings.is_zero else trained_width(settings)


def paged_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Optimiser state that waits in the computer's memory and visits the card in pages."""
    if settings.optimizer != "paged_adamw_8bit":
        return 0
    return sum(optimizer_bytes(n, settings.optimizer, width=FP32) for n in trained(shape, settings))
