"""What does each method buy per nat? Gold and proxy against exact KL, from one policy and one proxy, at equal token passes.

    python -m examples.benchmarks.frontier.frontier --output-dir frontier           # ten arms, five seeds
    python -m examples.benchmarks.frontier.frontier --output-dir frontier --tune    # two rates of each method, one further seed
    python -m examples.benchmarks.frontier.frontier --output-dir quick --budget 2e4 --seeds 0 --samples 1      # does it run?

On the demo's world: one policy after SFT; a proxy, a reward model of 384 pairs about one half of the people, a quarter of
them with their sides exchanged; a gold, a reward model of 1600 pairs about the other half, which pays nobody. Every arm has
the same token passes (see passes.py), and is looked at on its way: all 107 questions about the proxy's half that no training
ever sees, exact KL to the policy after SFT, gold and proxy in deviations of that policy's samples, closed questions answered
right, perplexity of their reference answers. Best of n pays for each answer anew, all others once.

Primary endpoint, named before the table's seeds were run: gold where a run first reaches 1 nat (`--at-kl`), on a straight
line in √KL between the looks around it, PPO less each other arm, paired over seeds; resolved from 2.8 standard errors on (3.7
of five seeds). Beside it: the same at the end of the runs; RAFT's perplexity at one proxy score, by learning rate.

No setting was chosen on the table's seeds. RAFT and ReST learn at the rate of ../self_training; PPO, GRPO and RLOO at what
`ppo.vs_grpo_rloo --tune` chose of two rates and of 1 or 4 epochs; DPO at the better of the same two rates by `--tune`: by the
primary endpoint on seed 100, or by what a run ends with that never reaches those nats. All else is each method's own default.
Each arm and seed leaves a JSON; what is there is not run again.
"""

import argparse
import time
from pathlib import Path

from examples.benchmarks.common.kept_results import read_result, write_result
from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.frontier import arms
from examples.benchmarks.frontier.best_of import best_of_n_run
from examples.benchmarks.frontier.picture import draw
from examples.benchmarks.frontier.setting import Look, Setting, setting_of
from examples.benchmarks.frontier.table import centred, print_tables, tuning_value
from examples.benchmarks.ppo.runs import result_file

TUNING_SEED = 100
REAL_SECONDS = 5e-3  # of a token's pass through 270 million parameters and the head, on one CPU; sampling costs more


def run(method: str, rate: float, setting: Setting, folder: Path, args: argparse.Namespace) -> dict:
    """One arm of one seed."""
    if method != arms.BEST_OF_N:
        return arms.train(method, rate, setting, folder, budget=args.budget, samples=args.samples)
    look = Look(setting, samples=1)
    unchanged = {"perplexity": look(look.start)["perplexity"]}
    result = best_of_n_run(setting, args.budget)
    return result | {"points": [point | unchanged for point in result["points"]]}


def result_of(arm: str, method: str, rate: float, seed: int, args: argparse.Namespace) -> dict:
    """From its file, or run."""
    file = result_file(args.output_dir, arm, seed)
    decides = {"budget": str(args.budget), "samples": str(args.samples), "rate": str(rate)}
    if not file.is_file():
        setting = setting_of(args.output_dir / f"seed-{seed}", seed)
        folder, began = args.output_dir / f"seed-{seed}" / "runs" / f"{arm} {time.time_ns()}", time.process_time()
        result = run(method, rate, setting, folder, args) | {"arm": arm}
        result["cpu_seconds"] = time.process_time() - began
        write_result(file, result, decides)
        last = {name: round(value, 3) for name, value in result["points"][-1].items()}
        print(f"seed {seed}, {arm}: {last}; {result['cpu_seconds']:.0f} CPU s", flush=True)
    return read_result(file, decides)


def results(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Of each arm one result per seed, gold and proxy in deviations of the start's samples."""
    found: dict[str, list[dict]] = {arm: [] for arm in arms.ORDER}
    for number, seed in enumerate(args.seeds):
        of_seed = {}
        for arm in arms.ORDER:
            method, factor = arms.ARMS.get(arm, (arms.BEST_OF_N, 0.0))
            of_seed[arm] = result_of(arm, method, factor * arms.TUNED.get(method, 0.0), seed, args)
        for arm, result in of_seed.items():
            found[arm].append(centred(result, of_seed[arms.BEST_OF_N]))
        if number == 0:
            print_projection(of_seed, args)
    return found


def print_projection(of_seed: dict[str, dict], args: argparse.Namespace) -> None:
    spent = sum(result["cpu_seconds"] for result in of_seed.values())
    real = REAL_SECONDS * args.budget * len(of_seed) / 3600
    print(
        f"One seed: {spent:.0f} CPU seconds, models not counted; {len(args.seeds)} seeds about {len(args.seeds) * spent / 60:.0f} min."
    )
    print(f"One seed with a model of 270M parameters: at least {real:.1f} CPU hours.", flush=True)


def tune(args: argparse.Namespace) -> None:
    """Each method's rates on the tuning seed, and which is best."""
    start = result_of(arms.BEST_OF_N, arms.BEST_OF_N, 0.0, TUNING_SEED, args)
    for method in args.tune or arms.TUNED:
        values = {}
        for rate in arms.RATES:
            result = centred(result_of(f"{method} at {rate:g}", method, rate, TUNING_SEED, args), start)
            values[rate] = tuning_value(result["points"], args.at_kl)
        shown = ", ".join(f"{rate:g}: {gold:.2f} at {kl:.2f}" for rate, (gold, kl) in values.items())
        print(f"{method}: gold by rate, at nats: {shown}; best {max(values, key=values.get):g}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("frontier"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--budget", type=float, default=1.5e5, help="token passes per run")
    parser.add_argument("--samples", type=int, default=2, help="answers to each held-out question in a look")
    parser.add_argument("--at-kl", type=float, default=1.0, help="nats at which gold is compared")
    parser.add_argument(
        "--tune",
        nargs="*",
        choices=list(arms.TUNED),
        metavar="METHOD",
        help=f"compare learning rates on seed {TUNING_SEED}, of these methods or all",
    )
    args = parser.parse_args(arguments)
    quiet()
    if args.tune is not None:
        return tune(args)
    found = results(args)
    print_tables(found, args)
    draw(found, args.output_dir / "frontier.png", kl=args.at_kl)
    print(f"Picture: {args.output_dir / 'frontier.png'}")


if __name__ == "__main__":
    main()
