"""From terms to phases: what is on the card in the moments of a run that need most.

A moment is a dict from the name of a term to bytes; a phase is its largest moment.
"""

import math
from dataclasses import dataclass, replace

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.layer_pass import in_largest
from trl_ext.memory_planning.memory_terms import cache_bytes
from trl_ext.memory_planning.plan_activations import layer_forward, mask_bytes
from trl_ext.memory_planning.plan_heads import head_forward
from trl_ext.memory_planning.plan_judges import PlannedJudge
from trl_ext.memory_planning.plan_roles import judge_bases, other_bases, policy_base, residents
from trl_ext.memory_planning.plan_settings import PlanSettings
from trl_ext.memory_planning.plan_sharding import COPY, UNIT, copied, held_whole, largest_unit, reference_whole
from trl_ext.memory_planning.plan_training import (
    ACTIVATIONS,
    LOGITS,
    WEIGHT,
    model_pass,
    scored_tokens,
    sharded_moments,
    training_pass,
)
from trl_ext.memory_planning.plan_vllm import awake, staying

CUDA_CONTEXT = 512 * 2**20  # assumed: the driver's own, which torch does not count
SLACK = 0.05  # assumed: what torch reserves beyond what it allocates, as a share of that
CONTEXT_LINE, SLACK_LINE = "CUDA context (assumed)", "allocator slack (assumed)"
CACHE = "KV cache"
SHARED_READING = 256  # tokens that samples of one prompt must save together to be scored behind it

Moment = dict[str, int]


@dataclass(frozen=True)
class Phase:
    """A part of a run at the moment in which it needs most.

    Args:
        terms: Bytes of each part of it.
    """

    terms: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.terms.values())

    @property
    def slack(self) -> int:
        """Bytes of allocator slack, the part that is least certain."""
        return self.terms.get(SLACK_LINE, 0)


def phases(shape: ModelShape, settings: PlanSettings) -> dict[str, Phase]:
    """Each phase by name, in the order in which a run comes to them."""
    moments = {"load": [loading(shape, settings)]}
    by_vllm = settings.generator == "vllm"
    if settings.samples:
        sampling = sampled_by_vllm(shape, settings) if by_vllm else generating(shape, settings)
        moments |= {"generate": sampling, "score": scoring(shape, settings)}
    moments["train"] = sharded_moments(shape, settings)
    stays = {name: staying(shape, settings, name) if by_vllm else residents(shape, settings) for name in moments}
    stays = {name: terms | held_whole(shape, settings, name) for name, terms in stays.items()}
    return {name: _phase(found, {} if name == "load" else stays[name], settings) for name, found in moments.items()}


def _phase(moments: list[Moment], staying: Moment, settings: PlanSettings) -> Phase:
    terms = staying | max(moments, key=lambda moment: sum(moment.values()), default={})
    if settings.cuda:
        slack = int(SLACK * sum(terms.values()))
        terms = terms | {CONTEXT_LINE: CUDA_CONTEXT, SLACK_LINE: slack}
    return Phase({name: size for name, size in terms.items() if size})


def loading(shape: ModelShape, settings: PlanSettings) -> Moment:
    """All bases, and, while a weight is quantised, the largest one as it was, or while it is cut, the largest unit."""
    quantised = [judge for judge in settings.judges if judge.bits and judge.shape]
    largest = [settings.width * shape.largest_linear if settings.bits else 0]
    largest += [judge.width * judge.shape.largest_linear for judge in quantised]
    others = other_bases(shape, settings) + judge_bases(settings)
    unit = {UNIT: largest_unit(shape, settings)} if settings.cuts_weights else {}
    return {"base weights": policy_base(shape, settings), "other bases": others, WEIGHT: max(largest)} | unit


def sampled_by_vllm(shape: ModelShape, settings: PlanSettings) -> list[Moment]:
    """vLLM awake; before, the whole weights that it is given, where they are cut."""
    given = [{COPY: copied(shape, settings)}] if settings.cuts_weights else []
    return [awake(shape, settings), *given]


def generating(shape: ModelShape, settings: PlanSettings) -> list[Moment]:
    """Reading the prompts, of which RAFT and ReST read each once, and sampling the last token; nothing where others sample."""
    if not settings.samples_policy:
        return [{}]
    rows = settings.batch if settings.on_policy else math.ceil(settings.batch / settings.num_generations)
    prompt = model_pass(shape, settings, rows=rows, length=settings.prompt_length, autocast=False)
    step = model_pass(shape, settings, rows=settings.batch, length=1, autocast=False)
    logits = sampling_bytes(shape, settings)
    read = cache_bytes(shape, rows=rows, tokens=settings.prompt_length, width=settings.held_width)
    full = cache_bytes(shape, rows=settings.batch, tokens=settings.length - 1, width=settings.held_width)
    activations = prompt.state + in_largest(layer_forward, prompt) + mask_bytes(prompt)
    grown = step.state + in_largest(layer_forward, step) + cache_copies(shape, settings)
    return [{CACHE: read, ACTIVATIONS: activations}, {CACHE: full, ACTIVATIONS: grown}, {CACHE: full, LOGITS: logits}]


def sampling_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Logits of one step, `(batch, V)`: as computed, in fp32, and probabilities; on CUDA also the draw's own copy.

    RAFT and ReST draw by the distribution function: logits and probabilities in fp32, sums in fp64, on CUDA also of a
    copy in fp64.
    """
    numbers = settings.batch * shape.vocab
    if not settings.on_policy:
        return numbers * (16 + (8 if settings.cuda else 0))
    return numbers * (settings.held_width + 8 + (4 if settings.cuda else 0))


def cache_copies(shape: ModelShape, settings: PlanSettings) -> int:
    """A layer's keys twice while a token is appended, or keys and values once for each head that shares them."""
    rows_tokens = settings.batch * settings.length * settings.held_width
    copied = [2 * layer.queries if layer.heads > layer.kv_heads else layer.keys for layer in shape.kinds]
    return rows_tokens * max(copied)


def scoring(shape: ModelShape, settings: PlanSettings) -> list[Moment]:
    """Reward models' passes and, on-policy, log-probabilities and values of a micro-batch; all without gradients."""
    moments = [reward_pass(shape, settings)] if settings.rewards else []
    moments += [reward_pass(judge.shape, settings, judge) for judge in settings.judges if judge.shape]
    if settings.has_reference or settings.method == "ppo":
        run = training_pass(shape, settings)
        state = run.state + mask_bytes(run)
        whole = reference_whole(shape, settings)
        moments.append({ACTIVATIONS: state + in_largest(layer_forward, run)} | whole)
        moments.append({ACTIVATIONS: 2 * state, LOGITS: head_forward(run, scored=scored_tokens(settings))} | whole)
    return moments


def reward_pass(shape: ModelShape, settings: PlanSettings, judge: PlannedJudge | None = None) -> Moment:
    """A batch of whole sequences; samples of one long prompt are read behind its keys and values, which are kept.

    Args:
        shape: Of the model that reads.
        settings: Of the run.
        judge: None: a reward model in the policy's precision.
    """
    rows = min(settings.reward_batch, settings.batch)
    group = min(settings.num_generations, rows)
    behind = settings.prompt_length * (group - 1) >= SHARED_READING
    length = settings.completion_length if behind else settings.length
    run = model_pass(shape, settings, rows=group if behind else rows, length=length, autocast=False)
    run = replace(run, width=settings.width)  # which no engine has cast
    if judge is not None:
        run = replace(run, bits=judge.bits, width=judge.width, rank=0)
    cache = cache_bytes(shape, rows=run.rows, tokens=settings.length, width=run.width) if behind else 0
    return {CACHE: cache, ACTIVATIONS: run.state + in_largest(layer_forward, run) + mask_bytes(run)}
