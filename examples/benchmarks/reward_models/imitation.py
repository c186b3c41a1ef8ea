"""Does the imitation term help a reward model? Few pairs, several coefficients, and what it then says of other people's pairs.

    python -m examples.benchmarks.reward_models.imitation --output-dir DEMO --learning-rate 1e-3
    python -m examples.benchmarks.reward_models.imitation --model stories260K --data DATA --tokens 256 --learning-rate 1e-3 \\
        --output-dir STORIES
    python -m examples.benchmarks.reward_models.imitation --model gemma-3-270m --data DATA --lower 12 --dtype bfloat16 \\
        --coefficients 0 0.1 --pairs 400 --output-dir GEMMA

The first is the demo's trunk on the demo's pairs. With DATA, pref_hh and pref_qafeedback are learned from, in equal numbers; a
fifth of their prompts, by hash, is held out. With --lower so many layers are frozen, their states computed once, and LoRA is on
the others. Models of all coefficients share pairs, their order, and the head's start.

Primary endpoint: accuracy on length-balanced pref_judge (half of the pairs chose the shorter completion, also within each
source), of the demo on such pairs of held-out questions: with imitation less without, mean over seeds and pairs. Its standard
error takes seeds and prompts as drawn, √(error over seeds² + error over prompts²), which counts what both share twice, on the
safe side; resolved from 2.8 of them on, more of few seeds. Beside it: held-out prompts of what was learned from, accuracy by
source with that of length alone, ECE, and the perplexity of held-out chosen completions.

What is in the output folder is not trained again. After each model, the CPU minutes that all others will take are printed.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.reward_models.imitation_data import World, cut, demo_pairs, drawn, real_pairs
from examples.benchmarks.reward_models.imitation_models import Trunk, chosen_nll, scores, train
from examples.benchmarks.reward_models.imitation_page import page
from trl_ext.demo.world import ASSETS

DEMO = "demo"
READ_OF_EACH = 50  # held-out pairs whose chosen completion's perplexity is taken


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=DEMO, help="a decoder; demo: the demo's trunk")
    add("--data", type=Path, help="folder with pref_judge, pref_hh and pref_qafeedback; default: the demo's pairs")
    add("--output-dir", type=Path, required=True)
    add(
        "--lower",
        type=int,
        default=0,
        help="layers that are frozen, with LoRA on the others; 0: all weights are trained",
    )
    add("--dtype", default="float32", help="of the weights; heads and adapters are in float32")
    add(
        "--coefficients",
        type=float,
        nargs="+",
        default=[0.0, 0.1, 1.0],
        help="the first is what others are compared with",
    )
    add("--pairs", type=int, nargs="+", default=[200, 400, 800], help="to learn from")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--tokens", type=int, default=160, help="of a sequence, at most")
    add("--learning-rate", type=float, default=3e-4)
    add("--judged", type=int, default=600, help="pairs of the primary endpoint")
    add("--held-out", type=int, default=100, help="pairs of each set that is learned from")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    quiet()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    check_setting(options)
    world = world_of(options)
    cells = list(itertools.product(options.seeds, options.pairs, options.coefficients))
    missing = [cell for cell in cells if not file_of(options, *cell).exists()]
    if missing:
        fill(options, world, missing)
    found = {cell: json.loads(file_of(options, *cell).read_text()) for cell in cells}
    text = page(world.asked, found)
    (options.output_dir / "tables.md").write_text(text)
    print(text)


def world_of(options: argparse.Namespace) -> World:
    if options.data is None:
        return demo_pairs(judged=options.judged)
    return real_pairs(options.data, judged=options.judged, held_out=options.held_out)


def check_setting(options: argparse.Namespace) -> None:
    """Runs of one folder differ in what their names say, and in nothing else."""
    named = ("output_dir", "coefficients", "pairs", "seeds")
    setting = {name: str(value) for name, value in vars(options).items() if name not in named}
    file = options.output_dir / "setting.json"
    if file.exists() and json.loads(file.read_text()) != setting:
        raise ValueError(
            f"imitation: {options.output_dir} has runs of another setting, {file.read_text()}. Take another."
        )
    file.write_text(json.dumps(setting))


def file_of(options: argparse.Namespace, seed: int, pairs: int, coefficient: float) -> Path:
    return options.output_dir / f"s{seed}-{pairs}-{coefficient:g}.json"


def fill(options: argparse.Namespace, world: World, cells: list[tuple]) -> None:
    """Train and ask the models that are missing."""
    began = time.process_time()
    trunk = Trunk(
        ASSETS / "policy" if options.model == DEMO else options.model, lower=options.lower, dtype=options.dtype
    )
    asked = {name: cut(rows, trunk.tokenizer, options.tokens) for name, rows in world.asked.items()}
    store(trunk, itertools.chain(*asked.values()))
    print(f"read: {time.process_time() - began:.0f} CPU s", flush=True)
    began = time.process_time()
    for done, cell in enumerate(cells, 1):
        found = run(options, trunk, world, asked, *cell)
        file_of(options, *cell).write_text(json.dumps(found))
        spent = (time.process_time() - began) / done
        print(
            f"seed {cell[0]}, {cell[1]} pairs, coefficient {cell[2]:g}: {found['seconds']:.0f} CPU s of training; {len(cells) - done} "
            f"to go, about {spent * (len(cells) - done) / 60:.0f} CPU min",
            flush=True,
        )


def run(
    options: argparse.Namespace,
    trunk: Trunk,
    world: World,
    asked: dict[str, list],
    seed: int,
    pairs: int,
    coefficient: float,
) -> dict:
    """One model: its scores of all that is asked, nats of held-out chosen completions, CPU seconds of its training."""
    rows = cut(drawn(world, pairs, seed), trunk.tokenizer, options.tokens)
    rows = [row for row in rows if row["chosen_ids"] != row["rejected_ids"]]  # by being cut
    store(trunk, rows)
    began = time.process_time()
    asked_for = {"coefficient": coefficient, "seed": seed, "learning_rate": options.learning_rate}
    with tempfile.TemporaryDirectory(dir=options.output_dir) as folder:  # a model that was stopped is trained anew
        trainer = train(trunk, rows, Path(folder), **asked_for)
    found = {"seconds": time.process_time() - began, "learned": len(rows)}
    found["scores"] = {name: scores(trainer.model, rows, trunk.pad) for name, rows in asked.items()}
    found["chosen_nll"] = chosen_nll(trainer.model, like_learned(asked), trunk.pad)
    return found


def like_learned(asked: dict[str, list]) -> list[dict]:
    """Held-out pairs like those that are learned from, READ_OF_EACH of each set: the primary one's if there is no other."""
    sets = list(asked.values())[1:] or list(asked.values())
    return [row for rows in sets for row in rows[:: max(1, len(rows) // READ_OF_EACH)]]


def store(trunk: Trunk, rows: Iterable[dict]) -> None:
    trunk.store(row[side] for row in rows for side in ("chosen_ids", "rejected_ids"))


if __name__ == "__main__":
    main()
