"""The prompts of `rerank`: what the policy is started with, the pool, and closed tasks that neither has seen."""

import random
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from trl_ext.trainer_kit.row_files import json_rows

TEMPLATE = "### Instruction:\n{query}\n\n### Response:\n"
LONGEST_QUERY = 60  # words
TYPES = {"OPENENDED": "open", "CONSTRAINED": "closed"}  # of the authors
OF_EVAL, OF_CLOSED, OF_START = 40, 40, {"val": 300, "misc": 80, "closed": 120}
NAMES = {
    "eval": "instr_r3/alpaca_eval.jsonl",
    "val": "instr_r3/alpacafarm_val.jsonl",
    "misc": "instr_misc/instructions.jsonl",
    "closed": "instr_misc/closed_tasks.jsonl",
}
OURS = {  # query types of the rows of instr_misc that are in the pool, by hand: is there one right answer?
    "open": "user_oriented_task_117 user_oriented_task_46 user_oriented_task_23 seed_task_33-0 user_oriented_task_223 "
    "seed_task_46-0 seed_task_127-0 seed_task_118-0 user_oriented_task_73 seed_task_142-0 seed_task_5-0 seed_task_77-0",
    "closed": "seed_task_37-0 seed_task_151-0 user_oriented_task_229 user_oriented_task_242 "
    "seed_task_42-0 seed_task_25-0 user_oriented_task_142 seed_task_97-0",
}


@dataclass(frozen=True)
class Prompts:
    """Rows of `id`, `query`, `prompt`, `reference`, `query_type` and `task` (of the closed tasks, else '').

    Args:
        start: What SFT learns from.
        pool: What is sampled, and re-ranked.
        unseen: Closed tasks, and questions of alpaca_eval, that are in neither: for policies that were trained on the pool.
    """

    start: list[dict]
    pool: list[dict]
    unseen: list[dict]


def load_prompts(data: Path, seed: int = 0) -> Prompts:
    """Cut the files of `data` into the three; the same for the same seed."""
    rng = random.Random(f"rerank {seed}")
    rows = {name: _shuffled(data / path, rng) for name, path in NAMES.items()}
    kinds = {name: kind for kind, names in OURS.items() for name in names.split()}
    misc = [row for row in rows["misc"] if row["id"] in kinds]
    tasks = round_robin(rows["closed"], "task")
    closed, rest = tasks[:OF_CLOSED], tasks[OF_CLOSED:]
    pool = [_row(row, TYPES[row["qtype"]]) for row in rows["eval"][:OF_EVAL]]
    pool += [_row(row, kinds[row["id"]]) for row in misc] + [_row(row, "closed") for row in closed]
    known = {row["query"] for row in pool}
    taught = {"val": rows["val"], "misc": [r for r in rows["misc"] if r["id"] not in kinds], "closed": rest}
    start = chain.from_iterable(taught[name][:count] for name, count in OF_START.items())
    start = [_row(row, "") for row in start if row["query"] not in known]
    rng.shuffle(start)
    unseen = [_row(row, "closed") for row in rest[OF_START["closed"] :] if row["query"] not in known]
    unseen += [_row(row, TYPES[row["qtype"]]) for row in rows["eval"][OF_EVAL : 2 * OF_EVAL]]
    return Prompts(start, pool, unseen)


def round_robin(rows: list[dict], column: str) -> list[dict]:
    """One row of each value of a column, then a second of each, and so on.

    >>> [r["n"] for r in round_robin([{"t": "a", "n": 1}, {"t": "a", "n": 2}, {"t": "b", "n": 3}], "t")]
    [1, 3, 2]
    """
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return [row for row in chain.from_iterable(zip_longest(*groups.values())) if row]


def _shuffled(path: Path, rng: random.Random) -> list[dict]:
    if not path.is_file():
        raise ValueError(
            f"--data: expected {path}, and it is not there. Give the folder that holds {sorted(NAMES.values())}."
        )
    rows = [row for row in json_rows(path) if (row["reference"] or "").strip()]
    rng.shuffle(rows)
    return [row for row in rows if len(row["query"].split()) <= LONGEST_QUERY]


def _row(row: dict, query_type: str) -> dict:
    return {
        "id": row["id"],
        "query": row["query"],
        "prompt": TEMPLATE.format(query=row["query"]),
        "reference": row["reference"].strip(),
        "query_type": query_type,
        "task": row.get("task", ""),
    }
