"""What DeepSpeed's ZeRO-2 and ZeRO-3 have on each of several cards: read in its code, 0.19, and counted in CPU processes.

Of n trained numbers on N cards, c bytes each in the passes (2 with bf16=True, to which it casts the whole model), and its own
sizes, which the files in examples/accelerate leave as they are: B gradients a bucket, L live weights.

                             ZeRO-2                          ZeRO-3
weights                      c, whole                        c / N; in a pass L of them; all while PPO or GRPO sample
master weights, Adam's       12 n / N, in fp32               12 n / N
gradients                    c n / N, twice where they wait  c n / N, always
bucket                       c B, going backward             c B, always; once more what is exchanged
a step                       (c + 4) n / N, and a copy       4 n / N of 10⁹ numbers, and a copy

DDP has all of one card's on each, and once more all gradients, in its buckets.
"""

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.memory_terms import adapter_params
from trl_ext.memory_planning.plan_settings import PlanSettings

GATHERED, COPY, UNCUT = "gathered weights", "whole copy to sample from", "gradients not cut yet"
MASTER, BUFFERS, REDUCED = "master weights in fp32", "gradients, buckets", "bucket, exchanged"
STEPPED, DDP = "gradients, stepping", "DDP's buckets"
FP32 = 4
SUB_GROUP = 10**9  # numbers that ZeRO-3 steps at once


def cut_numbers(shape: ModelShape, settings: PlanSettings) -> int:
    """Numbers of all that one engine holds: policy or reward model, and the critic inside, with their adapters."""
    trunk = shape.params - shape.head_params
    own = trunk if settings.method == "reward" else shape.params
    adapters = (1 + settings.has_critic) * adapter_params(shape, settings.lora) if settings.lora else 0
    return own + settings.has_critic * trunk + adapters


def gathered_by_zero(shape: ModelShape, settings: PlanSettings, phase: str) -> dict[str, int]:
    """What of the weights that ZeRO-3 has cut is whole in a phase, at most."""
    numbers = cut_numbers(shape, settings)
    if phase == "generate":
        return {COPY: settings.compute_width * numbers}
    return {GATHERED: settings.compute_width * min(numbers, settings.max_live_parameters)}


def beside_training(count: int, settings: PlanSettings, *, width: int) -> dict[str, int]:
    """What engines keep for gradients in every phase.

    Args:
        count: Numbers that are trained.
        settings: Of the run.
        width: Bytes of one.
    """
    if settings.shard == "ddp":
        return {DDP: width * count}
    if settings.shard == "zero3":
        return {BUFFERS: part(width * count, settings) + width * settings.reduce_bucket_size}
    return {}


def backward_by_zero(count: int, largest: int, settings: PlanSettings) -> dict[str, int]:
    """What going backward needs beside activations.

    Args:
        count: Numbers that are trained.
        largest: Of the largest tensor of those, whose gradient is made before the bucket takes it.
        settings: Of the run.
    """
    width, bucket = settings.compute_width, settings.reduce_bucket_size
    made = {UNCUT: width * largest}
    if settings.shard == "zero3":
        return made | {REDUCED: width * bucket if count > bucket else 0}
    waiting = 1 + settings.accumulates
    return made | {BUFFERS: waiting * part(width * count, settings) + width * bucket}


def step_by_zero(count: int, settings: PlanSettings) -> list[dict[str, int]]:
    """The last exchange, and the step: gradients in fp32, made of a copy in the precision of the passes."""
    width = settings.compute_width
    at_once = FP32 + (width if width < FP32 else 0)
    if settings.shard == "zero2":
        return [{STEPPED: part((width + at_once) * count, settings)}]
    exchanged = width * min(count, settings.reduce_bucket_size)
    return [{REDUCED: exchanged}, {STEPPED: part(at_once * min(count, SUB_GROUP), settings)}]


def part(size: int, settings: PlanSettings) -> int:
    """A card's part of so many bytes: ⌈size / N⌉."""
    return -(-size // settings.num_gpus)
