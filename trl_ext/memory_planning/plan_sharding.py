"""What FSDP2 and DeepSpeed cut over several cards, and what each card holds whole for a while. Read in its code, not measured on cards.

With accelerate's settings in examples/accelerate/fsdp2.yaml, of N cards each has 1/N of the policy, of the critic, which is
inside it, of the reference, of the gradients and of the optimizer's state. Whole are activations, reward models, and:

two layers at a time, and the vocabulary's weights     gathered in each pass, also for each token that PPO and GRPO sample
all weights beside the cut ones                        of RAFT and ReST while they sample and score
a reference that is a model of its own                 while it runs, since TRL makes one unit of it
all gradients                                          between the micro-batches of a step, unless sync_each_batch
"""

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.memory_terms import adapter_params
from trl_ext.memory_planning.plan_settings import PlanSettings
from trl_ext.memory_planning.plan_zero import COPY, FP32, GATHERED, UNCUT, gathered_by_zero, part

REFERENCE = "reference, gathered"
UNIT = "one unit, being cut"
AT_ONCE = 2  # layers: the one that computes, and the one that comes next


def share(size: int, settings: PlanSettings) -> int:
    """A card's part of so many bytes of weights: ⌈size / N⌉, or all where they are not cut.

    >>> share(10, PlanSettings(shard="fsdp2", num_gpus=4))
    3
    """
    return part(size, settings) if settings.cuts_weights else size


def state_share(size: int, settings: PlanSettings) -> int:
    """The same of gradients and of the optimizer's states, which ZeRO-2 cuts too."""
    return part(size, settings) if settings.shards else size


def held_whole(shape: ModelShape, settings: PlanSettings, phase: str) -> dict[str, int]:
    """What of the cut weights a card holds whole in every moment of a phase."""
    if not settings.cuts_weights or phase == "load":
        return {}
    if settings.is_zero:
        return gathered_by_zero(shape, settings, phase)
    if phase != "train" and not settings.on_policy:
        waited = settings.generator == "vllm" and phase == "score"  # while vLLM sampled
        return {COPY: copied(shape, settings)} if settings.samples_policy or waited else {}
    beside = settings.has_critic and phase != "generate"  # the critic's own embedding, while it runs
    ends = shape.embedding_params * (1 + beside)
    return {GATHERED: settings.compute_width * (AT_ONCE * layer_params(shape, settings) + ends)}


def layer_params(shape: ModelShape, settings: PlanSettings) -> int:
    """Numbers of the largest layer, with its biases, norms and adapter: a unit that is gathered at once."""
    small, rank = shape.small_params // shape.layers, settings.lora or 0
    return max(layer.params + rank * layer.adapter for layer in shape.kinds) + small


def copied(shape: ModelShape, settings: PlanSettings) -> int:
    """All weights of the policy, as they are kept: in fp32 what is trained."""
    if settings.lora is None:
        return FP32 * shape.params if settings.upcasts else settings.width * shape.params
    return settings.width * shape.params + FP32 * adapter_params(shape, settings.lora)


def largest_unit(shape: ModelShape, settings: PlanSettings) -> int:
    """A layer or the embedding, which is on the card while it is cut."""
    width = FP32 if settings.lora is None and settings.upcasts else settings.width
    return width * max(layer_params(shape, settings), shape.embedding_params)


def reference_whole(shape: ModelShape, settings: PlanSettings) -> dict[str, int]:
    """The reference of a run that trains all weights: all of it in the compute precision, while it runs."""
    is_model = settings.cuts_weights and settings.has_reference and settings.lora is None
    whole = min(shape.params, settings.max_live_parameters) if settings.is_zero else shape.params
    return {REFERENCE: settings.compute_width * whole} if is_model else {}


def uncut_gradients(shape: ModelShape, settings: PlanSettings) -> dict[str, int]:
    """Gradients of the layers that go backward, before they are added up over the cards and cut."""
    if not settings.is_fsdp or settings.gathers_gradients:
        return {}
    trained = layer_params(shape, settings)
    if settings.lora is not None:
        trained = settings.lora * max(layer.adapter for layer in shape.kinds)
    return {UNCUT: AT_ONCE * settings.compute_width * trained}


def read_first(shape: ModelShape, settings: PlanSettings) -> int:
    """Bytes that each process reads into the computer's memory before anything is cut: of policy, critic and reference."""
    if not settings.shards:
        return 0
    trunk = shape.params - shape.head_params
    own = shape.params if settings.method != "reward" else trunk
    reference = shape.params if settings.has_reference and settings.lora is None else 0
    return settings.width * (own + reference + settings.has_critic * trunk)
