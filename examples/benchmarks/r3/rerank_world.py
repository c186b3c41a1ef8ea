"""`rerank` on the demo's small world, where what is true is known, over seeds; and PPO on two of the arms.

    python -m examples.benchmarks.r3.rerank_world --seeds 0 1 2 3 4 --output-dir OUT
    … --train     then trains PPO on R³ and on LI·RP too, as the demo does, and sets both beside the pool

Of each seed: SFT as in `trl-ext demo`, 32 answers of at most 48 tokens to each of 128 held-out questions, half of them
closed, re-ranked by each arm. Primary endpoint: the share of closed questions answered right at n = 32, R³ with given
types against LI·RP, paired over seeds. For open questions: the share of the facts about the subject that an answer
tells, and the share of its sentences that are true of it. A seed that is in OUT already is not run again.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference
from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.r3 import rerank_arms as arms
from examples.benchmarks.r3.rerank_columns import columns, factors
from examples.benchmarks.r3.rerank_page import PAIRS, by_twos
from examples.benchmarks.r3.rerank_table import markdown, sizes
from examples.benchmarks.r3.word_overlap import check_library
from trl_ext import evaluate
from trl_ext.demo import stages
from trl_ext.demo.answers import sample_questions
from trl_ext.demo.evaluation import look
from trl_ext.demo.world import ASSETS, Entity, answered_right, load_world
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.rewards.relevance import RelevanceReward

SAMPLES, QUESTIONS = 32, 128
RIGHT, TOLD, TRUE = "closed questions answered right", "facts told (open)", "sentences that are true (open)"
LENGTHS = ("tokens (open)", "tokens (closed)")
TRAINED = {arms.R3: stages.r3, arms.PLAIN: stages.control}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--output-dir", type=Path, required=True)
    add("--train", action="store_true")
    add("--quick", action="store_true", help="the demo's quick setting, for SFT and PPO")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    quiet()
    check_library("rerank_world")
    world = load_world()
    pools = {seed: once(options, seed, "pool", lambda s: reranked(world, s, options)) for seed in options.seeds}
    print(pool_tables(list(pools.values())), flush=True)
    if options.train:
        runs = [once(options, seed, "trained", lambda s: trained(world, s, options)) for seed in options.seeds]
        print(trained_tables(runs))


def once(options: argparse.Namespace, seed: int, name: str, make) -> dict:
    """What a seed's file holds, made if it is not there."""
    path = options.output_dir / f"seed-{seed}" / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make(seed)))
    return json.loads(path.read_text())


def reranked(world: list[Entity], seed: int, options: argparse.Namespace) -> dict:
    """By n, arm and column, the mean over prompts."""
    scale, folder = _scale(options), options.output_dir / f"seed-{seed}"
    policy = stages.supervised(world, folder / "sft", scale, seed=seed)
    rows = sampled(policy, sample_questions(world, held_out=True, count=QUESTIONS, seed=seed), seed)
    encoder = RelevanceReward(str(ASSETS / "encoder"), device="cpu")
    pool = arms.Pool(factors(rows, encoder), {"given": [row["query_type"] for row in rows]})
    pool.columns.update(truth(rows, world))
    pool.columns.update(_split_lengths(columns(rows), rows))
    return {str(n): _means(arms.chosen(pool, n), pool.columns) for n in sizes(SAMPLES)}


def sampled(policy: Path, questions: list[dict], seed: int) -> list[dict]:
    """The questions with what the policy answers at temperature 1."""
    model = Policy(AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy))
    prompts, settings = tuple(row["prompt"] for row in questions), {"max_completion_length": stages.COMPLETION_LENGTH}
    part = Part(0, tuple(range(len(prompts))), prompts)
    generator = TransformersGenerator(batch_size=256)
    ((_, samples),) = generator.generate([part], Sampling(num_generations=SAMPLES, seed=seed, **settings), model)
    names = {"completions": "completion", "completion_ids": "completion_ids", "ended": "ended"}
    rows = [row | {"query": row["prompt"], "task": "", **{name: [] for name in names}} for row in questions]
    for sample in samples:
        for ours, theirs in names.items():
            rows[sample["row"]][ours].append(sample[theirs])
    return rows


def truth(rows: list[dict], world: list[Entity]) -> dict[str, np.ndarray]:
    """Whether closed answers are right; what open ones tell, and how much of it is true; NaN elsewhere."""
    by_name = {entity.subject: entity for entity in world}
    values = {name: np.full((len(rows), len(rows[0]["completions"])), np.nan) for name in (RIGHT, TOLD, TRUE)}
    for p, row in enumerate(rows):
        for n, answer in enumerate(row["completions"]):
            if row["query_type"] == "closed":
                values[RIGHT][p, n] = answered_right(answer, attribute=row["attribute"], answer=row["answer"])
            else:
                values[TOLD][p, n], values[TRUE][p, n] = told_and_true(answer, by_name[row["subject"]])
    return values


def told_and_true(answer: str, entity: Entity) -> tuple[float, float]:
    """Share of an entity's facts that an answer tells, and share of its sentences that are true of it; 0 of none."""
    said = [sentence.strip() + "." for sentence in answer.split(".") if sentence.strip()]
    facts = {entity.sentence(name, form): name for name in entity.facts for form in (0, 1)}
    right = [facts[sentence] for sentence in said if sentence in facts]
    return len(set(right)) / len(entity.facts), len(right) / max(len(said), 1)


def _split_lengths(found: dict[str, np.ndarray], rows: list[dict]) -> dict[str, np.ndarray]:
    """Length by query type, and relevance and repetition as they are."""
    opened = np.array([row["query_type"] == "open" for row in rows])[:, None]
    lengths = (np.where(kept, found["tokens"], np.nan) for kept in (opened, ~opened))
    others = {name: found[name] for name in ("own prompt among 50 (BM25)", "repeated 4-grams")}
    return dict(zip(LENGTHS, lengths, strict=True)) | others


def _means(chances: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {
        arm: {name: float(np.nanmean(arms.per_prompt(own, column))) for name, column in values.items()}
        for arm, own in chances.items()
    }


def trained(world: list[Entity], seed: int, options: argparse.Namespace) -> dict:
    """By arm, `before` included, what one answer to each held-out question is worth."""
    scale, folder = _scale(options), options.output_dir / f"seed-{seed}"
    policy = folder / "sft"
    judge = stages.reward_model(world, policy, folder / "reward", scale, imitation_coef=0.1, seed=seed)
    for arm, product in TRAINED.items():
        stages.ppo(world, policy, judge, folder / _name(arm), scale, product=product(), seed=seed)
    questions = sample_questions(world, held_out=True, count=scale.held_out, seed=seed)
    folders = {"before": policy} | {arm: folder / _name(arm) for arm in TRAINED}
    return {arm: _looked(path, policy, questions, judge, world, seed) for arm, path in folders.items()}


def _looked(path: Path, start: Path, questions: list[dict], judge: Path, world: list[Entity], seed: int) -> dict:
    looked = look(path, start, questions, judge, seed=seed)
    rows = [row | {"completions": [text]} for row, text in zip(questions, looked.samples["completion"], strict=True)]
    found = {name: float(np.nanmean(values)) for name, values in truth(rows, world).items()}
    return found | {
        "R³": looked.summary["reward/R3Reward"],
        "KL, nats": looked.summary["kl"],
        **_perplexity(path, questions),
    }


def _perplexity(path: Path, questions: list[dict]) -> dict[str, float]:
    """Of the held-out reference answers: what training took from the policy (the alignment tax)."""
    rows = Dataset.from_list([row | {"reference": " " + row["reference"]} for row in questions])
    found = evaluate(str(path), rows, None, max_completion_length=1, references_column="reference", batch_size=64)
    return {"perplexity of references": found.summary["perplexity"]}


def _scale(options: argparse.Namespace) -> stages.Scale:
    return stages.QUICK if options.quick else stages.FULL


def _name(arm: str) -> str:
    return "ppo-r3" if arm == arms.R3 else "ppo-li-rp"


def pool_tables(seeds: list[dict]) -> str:
    """Mean ± deviation over seeds at the largest n, the primary endpoint by n, and paired differences."""
    counts, last = list(seeds[0]), list(seeds[0])[-1]
    lines = [[f"n = {last}, {len(seeds)} seeds", *(names := list(seeds[0][last][arms.R3]))]]
    for arm in seeds[0][last]:
        lines.append([arm, *(mean_and_deviation([one[last][arm][name] for one in seeds]) for name in names)])
    by_n = [[RIGHT, *(f"n = {n}" for n in counts)]]
    by_n += [[arm, *(f"{mean(one[n][arm][RIGHT] for one in seeds):.3f}" for n in counts)] for arm in seeds[0][last]]
    return "\n\n".join([markdown(by_n), markdown(lines), *(_paired(seeds, last, some) for some in by_twos(names))])


def _paired(seeds: list[dict], n: str, names: list[str]) -> str:
    """Differences within seeds."""
    values = {(arm, name): [one[n][arm][name] for one in seeds] for arm in seeds[0][n] for name in names}
    lines = [
        [f"{a} − {b}", *(paired_difference(values[a, name], values[b, name]) for name in names)] for a, b in PAIRS
    ]
    return markdown([[f"n = {n}, {len(seeds)} seeds", *names], *lines])


def trained_tables(seeds: list[dict]) -> str:
    """Mean ± deviation over seeds, and R³ less LI·RP, paired over seeds."""
    names, runs = list(seeds[0]["before"]), list(seeds[0])
    lines = [["", *runs, f"{arms.R3} − {arms.PLAIN}"]]
    for name in names:
        values = {run: [one[run][name] for one in seeds] for run in runs}
        lines.append(
            [
                name,
                *(mean_and_deviation(values[run]) for run in runs),
                paired_difference(values[arms.R3], values[arms.PLAIN]),
            ]
        )
    return markdown(lines)


if __name__ == "__main__":
    main()
