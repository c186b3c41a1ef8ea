"""What is wrong with a run: a table of rules, each with its sign, its figure, and what to turn."""

from collections.abc import Callable
from dataclasses import dataclass

from trl_ext.trainer_kit.curve_ends import LEAST, last, thirds
from trl_ext.trainer_kit.gaming_signs import gamed, length_alone, length_buys_score, parted
from trl_ext.trainer_kit.logged_run import Run


@dataclass(frozen=True)
class Finding:
    """One thing that a run shows.

    Args:
        name: What it is called.
        sign: What was seen, with its figure.
        turn: What to turn.
    """

    name: str
    sign: str
    turn: str


@dataclass(frozen=True)
class Rule:
    """A finding, as long as nobody has looked.

    Args:
        name: What it is called.
        look: The sign, with its figure; None where a run does not show it.
        turn: What to turn.
    """

    name: str
    look: Callable[[Run], str | None]
    turn: str


def findings(run: Run) -> list[Finding]:
    """What the rules find in a run, in their order."""
    seen = ((rule, rule.look(run)) for rule in RULES)
    return [Finding(rule.name, sign, rule.turn) for rule, sign in seen if sign is not None]


def too_few(run: Run) -> str | None:
    """Why nothing can be found in a run of which too little was logged; None of others."""
    most = max((len(run.values(name)) for name in run.names), default=0)
    if most >= LEAST:
        return None
    turn = "log more often (logging_steps)" + (", or look again later" if run.end is None else "")
    return (
        f"too few values were logged to say what is wrong: at most {most}, and {LEAST} are needed. {turn.capitalize()}"
    )


def collapse(run: Run) -> str | None:
    for name, least in (("perplexity", 1.0), ("grow/distinct_2", 0.0)):
        ends = thirds(run.values(name))
        if ends is not None and ends[1] - least < 0.5 * (ends[0] - least):
            return f"variety fell by half: {name} went from {ends[0]:.3g} to {ends[1]:.3g}"
    return cornered(run)


def cornered(run: Run) -> str | None:
    """As PPO's watch for collapse: what cannot grow is at its limit, surer and far from the start."""
    limit, perplexities = run.option("max_completion_length", None), run.values("perplexity")
    ends = [thirds(run.values(name)) for name in ("own_length", "perplexity", "kl_per_completion")]
    if not limit or None in ends:
        return None
    length, perplexity, kl = (last for _, last in ends)
    if length < 0.95 * limit or perplexity > 0.75 * perplexities[0] or kl < length:
        return None
    return (
        f"completions are at their limit ({length:.0f} of {limit} tokens), {kl:.0f} nats from the reference, and perplexity went "
        f"from {perplexities[0]:.3g} to {perplexity:.3g}"
    )


def idle_critic(run: Run) -> str | None:
    explained = last(run, "explained_variance")
    if (
        explained is None
        or explained > 0.05
        or not run.option("value_coef", 0.1)
        or not rewards_differ(run)
        or has_learned(run)
    ):
        return None
    return f"explained_variance is {explained:.2f} in the last third: a constant would do as well"


def runaway_kl(run: Run) -> str | None:
    ends = thirds(run.values("kl_per_completion"))
    if ends is None or ends[1] < 20 or ends[1] < 3 * max(ends[0], 0.0):
        return None
    return f"KL to the reference went from {ends[0]:.1f} to {ends[1]:.1f} nats per completion"


def rewards_differ(run: Run) -> bool:
    """Whether there was anything to learn: of equal rewards no policy moves, and no critic explains them."""
    spread = run.values("reward_std")
    return not spread or max(spread) > 0


def has_learned(run: Run) -> bool:
    """Whether the score rose by more than half the deviation that it had: whatever its critic explains, it is enough."""
    paid, spread = thirds(run.values("score")), thirds(run.values("reward_std"))
    return paid is not None and spread is not None and paid[1] - paid[0] > 0.5 * spread[0]


def alike(run: Run) -> str | None:
    of_grows = run.pairs("grow/score_max", "grow/score")
    if of_grows and all(best - level <= 1e-3 * max(abs(level), 1e-3) for best, level in of_grows):
        return f"the best score of a Grow is its mean, {of_grows[-1][1]:.3g}: there is nothing to prefer"
    spread, level = last(run, "reward_std"), last(run, "reward")
    if spread is None or level is None or spread > 1e-3 * max(abs(level), 1e-3):
        return None
    return f"rewards differ by {spread:.2g} around {level:.3g}: there is nothing to prefer"


def endless(run: Run) -> str | None:
    of_grows = run.pairs("grow/truncated", "grow/prompts")
    each = run.option("num_generations", 8)
    if of_grows and of_grows[-1][0] > 0.9 * each * of_grows[-1][1]:
        return f"{of_grows[-1][0]:.0f} of the {each * of_grows[-1][1]:.0f} completions of the last Grow are cut before they end"
    ended = last(run, "completions/eos_ratio")
    if ended is None or ended > 0.1:
        return None
    return f"{ended:.0%} of the completions end by themselves in the last third; the others are cut"


def guessing(run: Run) -> str | None:
    right = last(run, "eval_accuracy", "accuracy")
    if right is None or "Reward" not in run.trainer or right > 0.55:
        return None
    return f"{right:.0%} of the pairs are ranked right in the last third; chance is 50%"


def clipped(run: Run) -> str | None:
    share = last(run, "clip_ratio/region_mean")
    if share is None or share < 0.3:
        return None
    return f"{share:.0%} of the tokens are clipped in the last third"


def still(run: Run) -> str | None:
    moved = run.values("policy_kl")
    if (
        len(moved) < LEAST
        or max(map(abs, moved)) > 1e-5
        or run.option("num_iterations", 4) <= 1
        or not rewards_differ(run)
    ):
        return None
    return f"within its epochs the policy never moved by more than {max(map(abs, moved)):.1g} nats per token"


def unscored(run: Run) -> str | None:
    rows = run.values("rows_unscored") or run.values("grow/unscored")
    if not any(rows):
        return None
    return f"{sum(1 for row in rows if row)} of {len(rows)} batches have completions without any score, at most {max(rows):.0f}"


RULES = (
    Rule("hacking by length", length_buys_score, "Charge for length, lower max_completion_length, or balance the reward's pairs by length."),
    Rule("collapse", collapse, "Raise beta, lower the learning rate, or stop earlier; look at the completions below."),
    Rule("a critic that explains nothing", idle_critic, "Raise critic_learning_rate or critic_warmup_rollouts, or begin the value model as the reward model."),
    Rule("KL that runs away", runaway_kl, "Raise beta, lower the learning rate or num_iterations, or use adaptive_kl with a kl_target."),
    Rule("all scores alike", alike, "Look at the reward: it must tell completions of one prompt apart. Sample warmer, or with more variety of prompts."),
    Rule("no end", endless, "Raise max_completion_length, set missing_eos_penalty or stop_tokens, or teach the end by SFT."),
    Rule("a reward model at chance", guessing, "Check which column is chosen; more pairs, a higher learning rate, or a base that reads them."),
    Rule("clip fraction out of range", clipped, "Lower the learning rate or num_iterations: most of what is learned is thrown away."),
    Rule("a learning rate too small to move", still, "Raise learning_rate, ten times at first: 1e-5 with an adapter, 1e-6 in full are the defaults."),
    Rule("a reward that is got around", gamed, "Stop at the step where the held-out score was highest; look at what the reward pays for."),
    Rule("a score that is length", length_alone, "Cap what length earns (R3Reward(length_cap=…), LengthIncentive(cap=…)), charge for it, or pay for something else."),
    Rule("gold that falls while proxy rises", parted, "Stop where gold was highest, raise beta, or mend what the reward pays for beside it."),
    Rule("completions without a score", unscored, "A reward gave None: see for which rows, and whether a column is missing."),
)  # fmt: skip
