"""Signs that a reward is got around: what its score follows, and what falls while it rises."""

from math import hypot
from statistics import mean

from trl_ext.trainer_kit.curve_ends import LEAST, correlated, thirds
from trl_ext.trainer_kit.logged_run import Run
from trl_ext.trainer_kit.resampling import BEYOND_CHANCE
from trl_ext.trainer_kit.run_log import is_number

WATCHED = "diagnostics/"  # before the names of what RewardDiagnostics logs


def length_buys_score(run: Run) -> str | None:
    for score, length in (("score", "completions/mean_length"), ("grow/score", "grow/length")):
        pairs = run.pairs(score, length)
        lengths = thirds([length for _, length in pairs])
        if lengths is None or lengths[1] < 1.3 * lengths[0]:
            continue
        over_time, at_once = correlated(pairs), length_among_samples(run)
        if over_time > 0.8 and (at_once is None or at_once > 0.3):
            among = "" if at_once is None else f", {at_once:.2f} among completions of one step"
            return (
                f"score follows length (correlation {over_time:.2f} over time{among}), and completions grew from "
                f"{lengths[0]:.0f} to {lengths[1]:.0f} tokens"
            )
    return None


def length_among_samples(run: Run) -> float | None:
    """Correlation of score with length among the completions of each look, on average; None of too few of them.

    What grows longer while it becomes better shows none; what is paid for its length does.
    """
    looks: dict[int, list[tuple[float, float]]] = {}
    for sample in run.samples:
        if is_number(sample.get("score")):
            looks.setdefault(sample["step"], []).append((sample["score"], len(str(sample.get("completion", "")))))
    found = [correlated(pairs) for pairs in looks.values() if len(pairs) > LEAST]
    return mean(found) if found else None


def gamed(run: Run) -> str | None:
    paid, held = thirds(run.values("score") or run.values("grow/score")), thirds(run.values("eval_score"))
    if paid is None or held is None or paid[1] <= paid[0] or held[1] >= held[0]:
        return None
    return f"score rose from {paid[0]:.3g} to {paid[1]:.3g} while on held-out prompts it fell from {held[0]:.3g} to {held[1]:.3g}"


def length_alone(run: Run) -> str | None:
    """Of each look of RewardDiagnostics; one at a Grow is of many samples, so that few of them tell."""
    shares = run.values(f"{WATCHED}length_share")
    if len(shares) < (1 if run.values("grow/score") else LEAST):
        return None
    share = mean(shares[-max(1, len(shares) // 3) :])
    if share < 0.9:
        return None
    return f"length alone explains {share:.0%} of how the score ranks the completions of a prompt, in the last third"


def parted(run: Run) -> str | None:
    """Gold against its highest third, proxy since then; both by more than chance, so only where errors were logged."""
    names = [f"{WATCHED}{name}" for name in ("gold", "proxy", "gold_error", "proxy_error")]
    looks = [log for log in run.logs if all(is_number(log.get(name)) for name in names)]
    size = len(looks) // 3
    if not size:
        return None
    parts = [_averaged(part, names) for part in (looks[:size], looks[size:-size], looks[-size:])]
    best, end = max(parts), parts[-1]
    fell, rose = best[0] - end[0], end[1] - best[1]
    if fell <= BEYOND_CHANCE * hypot(best[2], end[2]) or rose <= BEYOND_CHANCE * hypot(best[3], end[3]):
        return None
    return (
        f"gold, which training does not see, fell from {best[0]:.3g} to {end[0]:.3g} while proxy rose from {best[1]:.3g} to "
        f"{end[1]:.3g}; it was highest until about step {best[4]:.0f}"
    )


def _averaged(looks: list[dict], names: list[str]) -> list[float]:
    """Means of gold and proxy, the standard errors of those means, and the last step."""
    gold, proxy, *errors = ([look[name] for look in looks] for name in names)
    return [mean(gold), mean(proxy), *(hypot(*error) / len(looks) for error in errors), looks[-1]["step"]]
