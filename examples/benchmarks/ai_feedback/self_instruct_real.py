"""Self-Instruct with a small real model: what of its answers is left out, by reason, and twenty instances, unselected.

    python -m examples.benchmarks.ai_feedback.self_instruct_real --model MODEL --seeds SEEDS.jsonl --output-dir OUT

SEEDS are rows with `instruction` …, as the paper's seed_tasks.jsonl, or with `query` (an instruction in its first line, an input in
what follows), `reference` and `is_classification`; others of the file, without the latter, are passed over.

What is asked first is the share of listed instructions that the filters accept; everything else describes. The paper has
no such share for a base model of this size, so there is nothing to compare it with, and no claim but the number.
The first twenty instances are shown as they come. The same command goes on after a kill; OUT gets report.md.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from trl_ext import SelfInstruct, SelfInstructConfig
from trl_ext.self_instruct import MadeTasks
from trl_ext.trainer_kit.row_files import json_rows

SHOWN = 20


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True)
    add("--seeds", type=Path, required=True)
    add("--output-dir", type=Path, required=True)
    add("--instructions", type=int, default=40)
    add(
        "--instruction-tokens",
        type=int,
        default=200,
        help="of each list; the paper's 1024 are mostly cut at its stop texts",
    )
    add("--instance-tokens", type=int, default=120)
    add("--repetition-penalty", type=float, default=1.0)
    add("--examples", type=int, default=6, help="seeds before each question")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def seeds_of(path: Path) -> list[dict]:
    """Rows of the paper's file as they are; of queries, those whose kind is known."""
    rows = list(json_rows(path))
    if rows and "instruction" in rows[0]:
        return rows
    return [seed_of(row) for row in rows if isinstance(row.get("is_classification"), bool) and row.get("reference")]


def seed_of(row: dict) -> dict:
    """
    >>> seed_of({"query": "Add.\\n1 + 1", "reference": "2", "is_classification": False})
    {'instruction': 'Add.', 'input': '1 + 1', 'output': '2', 'is_classification': False}
    """
    instruction, _, given = row["query"].partition("\n")
    kind = row["is_classification"]
    return {"instruction": instruction, "input": given, "output": row["reference"], "is_classification": kind}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    config = SelfInstructConfig(
        num_instructions=options.instructions,
        max_instruction_tokens=options.instruction_tokens,
        max_instance_tokens=options.instance_tokens,
        num_examples=options.examples,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    start = time.process_time()
    made = SelfInstruct(options.model, config=config).run(seeds_of(options.seeds), options.output_dir)
    made.print()
    (options.output_dir / "report.md").write_text(page(made, time.process_time() - start), encoding="utf-8")


def page(made: MadeTasks, seconds: float) -> str:
    """The acceptance, the reasons and the first instances, in Markdown."""
    left_out = made.left_out["instructions"]
    listed = made.instructions + left_out.total()
    instances = sum(len(task.instances) for task in made.tasks)
    lines = [
        f"Accepted: {made.instructions} of {listed} listed instructions ({made.instructions / listed:.0%}); {seconds:.0f} s of CPU "
        "in this call.",
        "",
        *reasons(made),
        "",
        f"The first {SHOWN} instances:" if instances > SHOWN else f"All instances, {instances}:",
        "",
        *shown(made),
    ]
    return "\n".join(lines) + "\n"


def reasons(made: MadeTasks) -> list[str]:
    rows = [
        f"| {step} | {reason} | {number} |"
        for step, counts in made.left_out.items()
        for reason, number in (+counts).most_common()
    ]
    counts = made.to_dict()
    kept = ("instructions", "classifications", "without_instance", "tasks", "instances")
    return ["| Step | Left out | |", "|---|---|---|", *rows, "", " · ".join(f"{name} {counts[name]}" for name in kept)]


def shown(made: MadeTasks) -> list[str]:
    rows = [(task.instruction, each.input, each.output) for task in made.tasks for each in task.instances]
    cells = [
        [json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|")[:160] for text in row] for row in rows[:SHOWN]
    ]
    return ["| Instruction | Input | Output |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in cells)]


if __name__ == "__main__":
    main()
