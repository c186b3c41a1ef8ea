"""The moments of a training step that may need most."""

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.layer_pass import Pass, in_all, in_largest, of_each
from trl_ext.memory_planning.memory_terms import adapter_params
from trl_ext.memory_planning.plan_activations import (
    cached_casts,
    int8_kept,
    layer_backward,
    layer_kept,
    mask_bytes,
    one_weight,
)
from trl_ext.memory_planning.plan_heads import OUR_CPU_TILE, head_backward, head_kept, imitation_kept, imitation_logits
from trl_ext.memory_planning.plan_roles import trained, trained_width
from trl_ext.memory_planning.plan_settings import PlanSettings
from trl_ext.memory_planning.plan_sharding import state_share, uncut_gradients
from trl_ext.memory_planning.plan_zero import backward_by_zero, step_by_zero

ACTIVATIONS, LOGITS, WEIGHT, GRADIENTS = "activations", "logits, sampling", "one dequantised weight", "gradients"


def training_moments(shape: ModelShape, settings: PlanSettings) -> list[dict[str, int]]:
    """Backward through the vocabulary head, through the last layer of each model, through the first, and the step.

    Policy loss and value loss are one sum, so that both models' graphs are alive until the value model, which ran
    last, has gone backward.
    """
    run = training_pass(shape, settings)
    gradients = [gradient_bytes(n, settings) for n in trained(shape, settings)]
    waiting = sum(gradients) if settings.accumulates else 0
    kept = graph_bytes(run, settings, scored=scored_tokens(settings))
    moments = []
    if settings.has_critic:
        both = kept + graph_bytes(run, settings, scored=0)
        moments.append(_through_layer(run, settings, both) | {GRADIENTS: waiting})
        kept += in_all(int8_kept, run) * holds_inputs(settings)  # of the value model, to the end
    earlier = waiting or sum(gradients[1:])
    kept += cached_casts(run)
    if settings.imitates:
        imitated = settings.micro_batch * settings.completion_length
        kept += imitation_kept(run, imitated=imitated)
        moments.append({ACTIVATIONS: kept, LOGITS: imitation_logits(run, imitated=imitated), GRADIENTS: earlier})
    if settings.method != "reward":
        logits = head_backward(run, scored=scored_tokens(settings))
        moments.append({ACTIVATIONS: kept, LOGITS: logits, GRADIENTS: earlier})
    moments.append(_through_layer(run, settings, kept) | {GRADIENTS: earlier})
    first = run.residual if settings.gradient_checkpointing else in_largest(layer_kept, run)
    moments.append(_through_layer(run, settings, first) | {GRADIENTS: sum(gradients)})
    return [*moments, {GRADIENTS: sum(gradients)}]


def sharded_moments(shape: ModelShape, settings: PlanSettings) -> list[dict[str, int]]:
    """The same where DeepSpeed takes each gradient as it is made: its own buffers, and no gradient beside them."""
    if not settings.is_zero:
        return training_moments(shape, settings)
    numbers, largest = sum(trained(shape, settings)), largest_gradient(shape, settings)
    during = backward_by_zero(numbers, largest, settings)
    backward = [moment | {GRADIENTS: 0} | during for moment in training_moments(shape, settings)[:-1]]
    return [*backward, *step_by_zero(numbers, settings)]


def largest_gradient(shape: ModelShape, settings: PlanSettings) -> int:
    """Numbers of the largest tensor that is trained."""
    if settings.lora is None:
        return max(shape.largest_linear, shape.embedding_params)
    return settings.lora * max(max(linear) for layer in shape.kinds for linear in layer.linears)


def gradient_bytes(count: int, settings: PlanSettings) -> int:
    """The gradient of so many numbers, as it waits: a card's share, or between cut weights' micro-batches all of it."""
    if settings.gathers_gradients:
        return count * settings.compute_width
    return state_share(count * trained_width(settings), settings)


def training_pass(shape: ModelShape, settings: PlanSettings) -> Pass:
    """What the trained model reads at once: a micro-batch, of pairs for a reward model."""
    rows = settings.micro_batch * (2 if settings.method == "reward" else 1)
    return model_pass(shape, settings, rows=rows, length=settings.length)


def model_pass(shape: ModelShape, settings: PlanSettings, *, rows: int, length: int, autocast: bool = True) -> Pass:
    return Pass(
        shape=shape,
        rows=rows,
        length=length,
        width=settings.compute_width if autocast else settings.held_width,
        rank=settings.lora or 0,
        bits=settings.bits,
        trains_all=settings.lora is None,
        autocast=autocast,
        cuda=settings.cuda,
        cast=autocast and settings.autocast and not settings.shards,  # what is cut is gathered in 16 bits
        tile=OUR_CPU_TILE if settings.sets_tiles else None,
    )


def scored_tokens(settings: PlanSettings) -> int:
    """Tokens of a micro-batch that the vocabulary head reads: of completions on CUDA, all on the CPU."""
    if settings.method == "reward":
        return 0
    return settings.micro_batch * (settings.completion_length if settings.cuda else settings.length - 1)


def holds_inputs(settings: PlanSettings) -> bool:
    """Whether the graph of the forward pass holds inputs of 8-bit layers; reentrant checkpoints build none."""
    return not (settings.gradient_checkpointing and settings.reentrant)


def graph_bytes(run: Pass, settings: PlanSettings, *, scored: int) -> int:
    """What the forward pass leaves: a hidden state per layer, or all that each layer keeps; the end; the mask.

    Without checkpoints also the adapter's weights in 16 bits, to which autocast has turned them.
    """
    if settings.gradient_checkpointing:
        layers = run.shape.layers * run.residual + in_all(int8_kept, run) * holds_inputs(settings)
    else:
        cast = 2 * adapter_params(run.shape, run.rank) if run.width == 2 else 0
        layers = in_all(layer_kept, run) + cast
    return layers + head_kept(run, scored=scored) + mask_bytes(run)


def _through_layer(run: Pass, settings: PlanSettings, kept: int) -> dict[str, int]:
    """Backward through the largest layer while `kept` is alive; a checkpointed one is computed anew first.

    In fp32 its first norm keeps the checkpoint itself.
    """
    again = settings.gradient_checkpointing

    def backward(one: Pass) -> int:
        anew = layer_kept(one) - (one.residual if one.width == 4 or one.cast else 0) if again else 0
        return anew + layer_backward(one)

    largest = max((one for one, _ in of_each(run)), key=lambda one: backward(one) + one_weight(one))
    working = {ACTIVATIONS: kept + backward(largest), WEIGHT: one_weight(largest)}
    return working | uncut_gradients(run.shape, settings)
