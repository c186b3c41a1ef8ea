"""What vLLM takes beside a run that it samples for, on the card and in the computer's memory. Not measured on a card.

They take turns on the card. vLLM awake: its weights, its room for an adapter, keys and values, and what a pass needs; the
policy's weights wait in the computer's memory. vLLM asleep: its context and graphs; its weights wait there. A turn begins
with both there. On a CPU it does not sleep, and all stays.
"""

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.memory_terms import adapter_params, base_bytes, cache_bytes
from trl_ext.memory_planning.plan_roles import adapters, policy_adapters, policy_base, residents
from trl_ext.memory_planning.plan_settings import RANKS, PlanSettings
from trl_ext.memory_planning.plan_sharding import copied

BLOCK = 16  # tokens of keys and values that belong together
TOKENS, SEQUENCES = 8192, 256  # of one pass, vLLM's defaults, for which it tries at its start what a pass needs
CONTEXT = 2**30  # assumed: its own CUDA context, and its graphs, which stay while it sleeps
SERVED, SERVED_ADAPTER, SERVED_CACHE = "vLLM's weights", "vLLM's adapter", "KV cache"
PASS, CONTEXT_LINE = "vLLM's pass", "vLLM's context, graphs (assumed)"
Terms = dict[str, int]


def served_weights(shape: ModelShape, settings: PlanSettings) -> Terms:
    """The base in the precision that is served, and room for one adapter of the next rank that vLLM has.

    base + width · r′ · Σ (in + out)
    """
    weights = base_bytes(shape, bits=settings.served_bits, width=settings.width)
    rank = next(rank for rank in RANKS if rank >= (settings.lora or 0))
    adapter = settings.width * adapter_params(shape, rank) if settings.lora else 0
    return {SERVED: weights, SERVED_ADAPTER: adapter}


def served_cache(shape: ModelShape, settings: PlanSettings) -> int:
    """Keys and values of the completions at once, in whole blocks: what to give as `kv_cache_memory_bytes`."""
    tokens = -(-settings.length // BLOCK) * BLOCK
    return cache_bytes(shape, rows=settings.served_at_once or settings.batch, tokens=tokens, width=settings.width)


def awake(shape: ModelShape, settings: PlanSettings) -> Terms:
    """The moment in which it samples, without what stays: `staying`."""
    layers = max(3 * shape.hidden + 3 * layer.inner for layer in shape.kinds) * settings.width * TOKENS
    logits = SEQUENCES * shape.vocab * (settings.width + 8)  # as computed, in fp32, and probabilities
    return served_weights(shape, settings) | {SERVED_CACHE: served_cache(shape, settings), PASS: max(layers, logits)}


def staying(shape: ModelShape, settings: PlanSettings, phase: str) -> Terms:
    """What is there in every moment of a phase beside its own terms."""
    roles = residents(shape, settings)
    if not settings.cuda:  # it does not sleep, and nothing is moved
        asleep = served_weights(shape, settings) | {SERVED_CACHE: served_cache(shape, settings)}
        return roles if phase == "generate" else roles | asleep
    if phase == "generate" and not settings.cuts_weights:  # of those the copy alone takes turns
        others = adapters(shape, settings) - policy_adapters(shape, settings)
        roles = roles | {"base weights": 0, "adapters, heads": others}
    return roles | {CONTEXT_LINE: CONTEXT}


def waiting(shape: ModelShape, settings: PlanSettings) -> Terms:
    """What waits in the computer's memory when a turn begins: the policy's weights, and vLLM's. On a CPU nothing waits."""
    if not settings.cuda or settings.generator != "vllm":
        return {}
    policy = policy_base(shape, settings) + policy_adapters(shape, settings)
    policy = copied(shape, settings) if settings.cuts_weights else policy
    return {"policy's weights": policy} | served_weights(shape, settings)
