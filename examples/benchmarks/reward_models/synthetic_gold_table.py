"""What the proxies with and without imitation came to, over seeds."""

from collections.abc import Callable
from math import inf
from statistics import mean

from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference

Measure = Callable[[dict], float]  # of one seed's proxies of one kind


def gold_at_last(name: str) -> Measure:
    """Gold of the best of all n, of single proxies their mean."""

    def measure(own: dict) -> float:
        curves = own[name] if isinstance(own[name], list) else [own[name]]
        return mean(curve["gold"][-1] for curve in curves)

    return measure


def fitted(name: str) -> Measure:
    """α or β of single proxies: the mean of the fits, which is the fit of their mean."""
    return lambda own: mean(curve["fit"][name] for curve in own["single"])


def peak(own: dict) -> float:
    """d* = α/2β of the single proxies' mean curve, wherever it is; inf where nothing is lost."""
    alpha, beta = fitted("alpha")(own), fitted("beta")(own)
    return alpha / (2 * beta) if beta > 0 else inf


def lost(own: dict) -> float:
    """Gold, from its highest to that at all n, of the single proxies' mean curve."""
    means = [mean(values) for values in zip(*(curve["gold"] for curve in own["single"]), strict=True)]
    return max(means) - means[-1]


def print_tables(found: list[dict], kinds: list[tuple[str, list[str]]], ensembles: list[str]) -> None:
    """One row per kind of proxy, then the differences that imitation makes.

    Args:
        found: Of each seed.
        kinds: Shares of flipped labels, each with its coefficients; the first one is without imitation.
        ensembles: Names of their curves.
    """
    sizes = next(iter(found[0]["proxies"].values()))["single"][0]["n"]
    measures = {
        "people's labels": lambda own: mean(own["people"]),
        "agrees with gold": lambda own: mean(own["agreement"]),
        f"gold, n = {sizes[-1]}": gold_at_last("single"),
        "lost from the highest": lost,
        "α": fitted("alpha"),
        "β": fitted("beta"),
        **{f"{name}: gold, n = {sizes[-1]}": gold_at_last(name) for name in ensembles},
        "correlation of members": lambda own: own["correlation"],
    }
    print(f"\n| labels exchanged | imitation | {' | '.join(measures)} | d* (largest d {sizes_root(found):.2f}) |")
    print("|" + "---|" * (len(measures) + 3))
    for flipped, coefs in kinds:
        for coef in coefs:
            own = [seed["proxies"][f"{flipped} {coef}"] for seed in found]
            cells = [mean_and_deviation(list(map(measure, own)), digits=3) for measure in measures.values()]
            print(f"| {float(flipped):.0%} | {coef} | {' | '.join(cells)} | {peaks(own, sizes_root(found))} |")
    for flipped, (without, *coefs) in kinds:
        for coef in coefs:
            print(f"\n{float(flipped):.0%} exchanged, imitation of {coef} less {without}:")
            pairs = [[seed["proxies"][f"{flipped} {one}"] for seed in found] for one in (coef, without)]
            for name, measure in {**measures, "d*": peak}.items():
                values, others = (list(map(measure, own)) for own in pairs)
                if inf not in (*values, *others):
                    print(f"  {name}: {paired_difference(values, others)}")


def sizes_root(found: list[dict]) -> float:
    """The largest d."""
    return next(iter(found[0]["proxies"].values()))["single"][0]["kl"][-1] ** 0.5


def peaks(own: list[dict], largest: float) -> str:
    """Where gold turns, and in how many seeds within what was seen."""
    found = sorted(map(peak, own))
    reached = sum(value <= largest for value in found)
    ends = ["never" if value == inf else f"{value:.2f}" for value in (found[0], found[-1])]
    return f"{' to '.join(ends)}, reached in {reached} of {len(found)}"
