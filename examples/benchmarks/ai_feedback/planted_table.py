"""What planted_labels prints."""

from examples.benchmarks.ai_feedback.label_ways import BOTH_HARD, BOTH_SOFT, ERRORS, ONE_HARD, ONE_SOFT
from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference

PRIMARY = (0.3, 2.0)


def print_tables(judged: dict[str, dict], found: list[dict]) -> None:
    print(
        "\n| planted error | measured | bias 0 measured | bias 1, 2 measured | same place preferred at 1, 2 | mean confidence |\n|---|---|---|---|---|---|"
    )
    for error, row in judged.items():
        print(f"| {error} | {row['error']:.3f} | {row['own bias']:+.2f} | {row['bias 1']:.3f}, {row['bias 2']:.3f} | "
              f"{row['same place at 1']:.2f}, {row['same place at 2']:.2f} | {row['sure']:.2f} |")  # fmt: skip
    print(
        "\n| error | bias | labels | agree with the truth | −log p of the truth | reward model right |\n|---|---|---|---|---|---|"
    )
    for name in found[0]["labels"]:
        cells = [
            mean_and_deviation([seed["labels"][name][key] for seed in found], digits=3)
            for key in ("agreement", "log_loss")
        ]
        cells[1] = cells[1] if "soft" in name else "–"
        trained = [seed["rewards"].get(name, float("nan")) for seed in found]
        print(f"| {name} | {' | '.join(cells)} | {mean_and_deviation(trained, digits=3)} |")
    print(
        f"| – | – | true labels | 1 | – | {mean_and_deviation([seed['rewards']['true labels'] for seed in found], digits=3)} |"
    )
    for name in found[0]["rewards"]:
        if "direct" in name:
            print(
                f"| {name.replace(' | ', ' | – | ')} | – | – | {mean_and_deviation([seed['rewards'][name] for seed in found], digits=3)} |"
            )
    print("\n| best of eight by | closed questions right |\n|---|---|")
    for name in found[0]["chosen"]:
        print(f"| {name} | {mean_and_deviation([seed['chosen'][name] for seed in found], digits=3)} |")
    print()
    for said, one, other in comparisons():
        if not all(name in found[0][kind] for kind, name in (one, other)):
            continue
        values = [[seed[kind][name] for seed in found] for kind, name in (one, other)]
        print(f"{said}: {paired_difference(*values)}")


def comparisons() -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """What is compared within seeds, the primary endpoint first."""

    def reward(error: float, bias: float, how: str) -> tuple[str, str]:
        return "rewards", f"{error:g} | {bias:g} | {how}"

    named = "error 0.3, bias 2, reward models"
    rows = [
        (f"PRIMARY, {named}: both orders soft less one order hard", reward(*PRIMARY, BOTH_SOFT), reward(*PRIMARY, ONE_HARD)),
        (f"{named}: both orders less one, hard", reward(*PRIMARY, BOTH_HARD), reward(*PRIMARY, ONE_HARD)),
        (f"{named}: both orders less one, soft", reward(*PRIMARY, BOTH_SOFT), reward(*PRIMARY, ONE_SOFT)),
        (f"{named}: soft less hard, both orders", reward(*PRIMARY, BOTH_SOFT), reward(*PRIMARY, BOTH_HARD)),
        (f"{named}: soft less hard, one order", reward(*PRIMARY, ONE_SOFT), reward(*PRIMARY, ONE_HARD)),
        ("error 0.1, bias 2, reward models: both orders soft less one order hard", reward(0.1, 2, BOTH_SOFT), reward(0.1, 2, ONE_HARD)),
    ]  # fmt: skip
    for error in ERRORS:
        direct, distilled = (("chosen", f"{error:g} | {how}") for how in ("direct, by grade", "distilled"))
        truth = ("rewards", "true labels")
        rows += [
            (f"error {error:g}, bias 0, reward models: AI labels, both orders soft, less true ones", reward(error, 0, BOTH_SOFT), truth),
            (f"error {error:g}, held-out pairs: direct less distilled", ("rewards", direct[1]), reward(error, 0, BOTH_SOFT)),
            (f"error {error:g}, best of eight: direct less distilled", direct, distilled),
        ]  # fmt: skip
    return rows
