"""The least time of each phase of a run: of one batch of completions, and of one epoch over what is learned of it."""

import math

from trl_ext.memory_planning.card_speeds import Card
from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.memory_terms import cache_bytes
from trl_ext.memory_planning.plan_settings import PlanSettings
from trl_ext.memory_planning.time_terms import Work, adapter_weights, attention, head, layer_weights, weights_read


def learned(settings: PlanSettings) -> float:
    """Rows that are trained on of `batch`, each epoch: of RAFT and ReST as many as there are prompts."""
    return settings.batch / settings.num_generations if settings.method in ("raft", "rest") else settings.batch


def forward(
    shape: ModelShape,
    settings: PlanSettings,
    *,
    rows: float,
    start: int,
    end: int,
    scored: float,
    bits: int | None,
    rank: int | None = None,
) -> Work:
    """`rows` sequences' tokens start … end − 1 through a base and its adapter, `scored` of them through the head.

    `rank`: of the adapter; None: the policy's.
    """
    rank = settings.lora or 0 if rank is None else rank
    tokens = rows * (end - start)
    layers = 2 * tokens * layer_weights(shape)
    rest = 2 * tokens * adapter_weights(shape, rank) + head(shape, scored)
    rest += rows * attention(shape, start=start, end=end)
    if bits == 8:
        return Work(slow(settings) * rest, layers)
    return Work(slow(settings) * (layers + rest))


def slow(settings: PlanSettings) -> int:
    """How many times the rate of 16 bits is that of what computes."""
    return 2 if settings.compute_width == 4 else 1


def reading(shape: ModelShape, settings: PlanSettings, *, passes: float, with_head: bool = True) -> Work:
    """The base, once for each pass."""
    return Work(
        read=passes * weights_read(shape, bits=settings.bits, width=settings.compute_width, with_head=with_head)
    )


def generating(shape: ModelShape, settings: PlanSettings, card: Card) -> float:
    """Reading the prompts, then a step for each further token of the completions at once: the base and their keys and values
    are read in each, so that a step of few completions takes as long as reading takes."""
    if settings.sampled_elsewhere:
        return 0.0  # by somebody else
    by_vllm = settings.generator == "vllm"
    bits = settings.served_bits if by_vllm else settings.bits
    at_once = min(settings.served_at_once or settings.batch, settings.batch)
    rows = settings.batch if settings.on_policy and not by_vllm else settings.batch / settings.num_generations
    prompt = forward(shape, settings, rows=rows, start=0, end=settings.prompt_length, scored=rows, bits=bits)
    read = weights_read(shape, bits=bits, width=settings.compute_width, with_head=True)
    seconds = _seconds(prompt + Work(read=read), card)
    for tokens in range(settings.prompt_length + 1, settings.length):
        step = forward(shape, settings, rows=at_once, start=tokens - 1, end=tokens, scored=at_once, bits=bits)
        kept = cache_bytes(shape, rows=at_once, tokens=tokens, width=settings.compute_width)
        seconds += settings.batch / at_once * _seconds(step + Work(read=read + kept), card)
    return seconds


def scoring(shape: ModelShape, settings: PlanSettings, card: Card) -> float:
    """Reward models, which read each prompt once; on-policy the reference, of PPO also the policy and its value model."""
    rewards = [_paying(shape, settings, bits=settings.bits, rank=settings.lora or 0)] * settings.rewards
    rewards += [_paying(judge.shape, settings, bits=judge.bits, rank=0) for judge in settings.judges if judge.shape]
    policies = (settings.method == "ppo") + settings.has_reference
    passes = math.ceil(settings.batch / settings.micro_batch)
    policy = whole(shape, settings, rows=settings.batch, scored=settings.batch * settings.completion_length)
    critic = whole(shape, settings, rows=settings.batch, scored=0)
    return (
        sum(_seconds(reward, card) for reward in rewards)
        + policies * _seconds(policy + reading(shape, settings, passes=passes), card)
        + settings.has_critic * _seconds(critic + reading(shape, settings, passes=passes, with_head=False), card)
    )


def training(shape: ModelShape, settings: PlanSettings, card: Card) -> float:
    """One epoch over what is learned of `batch`: forward, with checkpoints the layers again, and backward.

    Backward is in 16 bits, and twice attention; through weights that are trained a second product.
    """
    sequences = learned(settings) * (2 if settings.method == "reward" else 1)
    scored = 0.0 if settings.method == "reward" and not settings.imitates else sequences * settings.completion_length
    models = [(scored, True)] + [(0.0, False)] * settings.has_critic
    passes = math.ceil(learned(settings) / settings.micro_batch) * (3 if settings.gradient_checkpointing else 2)
    return sum(
        _seconds(
            step(shape, settings, rows=sequences, scored=scored)
            + reading(shape, settings, passes=passes, with_head=with_head and settings.method != "reward"),
            card,
        )
        for scored, with_head in models
    )


def step(shape: ModelShape, settings: PlanSettings, *, rows: float, scored: float) -> Work:
    """Forward and backward of whole sequences."""
    tokens = rows * settings.length
    once = whole(shape, settings, rows=rows, scored=scored)
    again = whole(shape, settings, rows=rows, scored=0) if settings.gradient_checkpointing else Work()
    through = 2 * tokens * (layer_weights(shape) + adapter_weights(shape, settings.lora or 0)) + head(shape, scored)
    through += 2 * rows * attention(shape, start=0, end=settings.length)
    weights = 2 * tokens * adapter_weights(shape, settings.lora or 0)
    if settings.lora is None:
        weights = 2 * tokens * layer_weights(shape) + head(shape, scored)
    return once + again + Work(slow(settings) * (through + weights))


def whole(shape: ModelShape, settings: PlanSettings, *, rows: float, scored: float) -> Work:
    return forward(shape, settings, rows=rows, start=0, end=settings.length, scored=scored, bits=settings.bits)


def _paying(shape: ModelShape, settings: PlanSettings, *, bits: int | None, rank: int) -> Work:
    """A reward model's or judge's passes over a batch: each prompt once, and the completions behind it."""
    start, end = settings.prompt_length, settings.length
    through = {"scored": 0, "bits": bits, "rank": rank}
    prompts = forward(shape, settings, rows=settings.batch / settings.num_generations, start=0, end=start, **through)
    completions = forward(shape, settings, rows=settings.batch, start=start, end=end, **through)
    read = weights_read(shape, bits=bits, width=settings.compute_width, with_head=False)
    return prompts + completions + Work(read=math.ceil(settings.batch / settings.reward_batch) * read)


def _seconds(work: Work, card: Card) -> float:
    return card.seconds(operations=work.operations, in_8_bits=work.in_8_bits, read=work.read)
