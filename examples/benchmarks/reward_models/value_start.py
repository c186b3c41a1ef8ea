"""Does imitation make a reward model a better start of PPO's value model? Short runs on the demo's world.

    python -m examples.benchmarks.reward_models.value_start --output-dir value_start

Two reward models learn from the same 400 pairs, from the policy after SFT, with imitation and without. PPO begins with that policy,
and is paid by the mean of both, standardised on its answers before training, so that neither is nearer to what is foretold. Its
value model starts as one of them, or as the policy with a fresh head; all else is the demo's, and no rollout warms the
critic up. What is in the folder is not made again.

Primary endpoint, named before the run: explained variance of the returns, mean of the first five rollouts, of each before it is
learned from; with imitation of 0.1 less without, paired over seeds. Beside it: of the first rollout alone, whose values
nobody has trained, and the score of the last three.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean

from datasets import Dataset

from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference
from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from examples.benchmarks.reward_models.synthetic_gold_models import is_made, sampled
from trl_ext import EnsembleReward, PPOConfig, PPOTrainer
from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows, sample_questions
from trl_ext.demo.evaluation import pair_accuracy
from trl_ext.demo.world import load_world

WITHOUT, WITH, FRESH = (
    "reward model without imitation",
    "reward model with imitation of 0.1",
    "policy with a fresh head",
)
COEFS = {WITHOUT: 0.0, WITH: 0.1}
ARMS = (WITHOUT, WITH, FRESH)
PAIRS = 400
REFERENCES = 128  # questions whose answers the reward is standardised on
BATCH = 64
FIRST, LAST = 5, 3  # rollouts
MEASURES = {
    f"explained variance, first {FIRST} rollouts": lambda one: mean(one["explained_variance"][:FIRST]),
    "of the first": lambda one: one["explained_variance"][0],
    "of the last": lambda one: one["explained_variance"][-1],
    f"score, last {LAST} rollouts": lambda one: mean(one["score"][-LAST:]),
}


def run(folder: Path, *, rollouts: int, seed: int) -> dict[str, dict]:
    """One seed: of each arm what it logged at every rollout; and of each reward model how often it is right."""
    policy, models = made(folder, seed=seed)
    reward = paid_by(policy, list(models.values()), seed=seed)
    held_out = preference_rows(load_world(), held_out=True, count=400, seed=seed)
    kept = {arm: {"accuracy": pair_accuracy(path, held_out)} for arm, path in models.items()}
    for arm, start in (models | {FRESH: policy}).items():
        began = time.process_time()
        logged = ppo(policy, start, reward, folder / "ppo", rollouts=rollouts, seed=seed)
        kept[arm] = kept.get(arm, {}) | logged | {"seconds": time.process_time() - began}
    return kept


def made(folder: Path, *, seed: int) -> tuple[Path, dict[str, Path]]:
    """The policy after SFT, and the reward model of each arm that starts as one."""
    policy, world = folder / "sft", load_world()
    if not is_made(policy):
        stages.supervised(world, policy, stages.FULL, seed=seed)
    pairs = preference_rows(world, held_out=False, count=PAIRS, seed=seed)
    models = {arm: folder / f"reward-{coef:g}" for arm, coef in COEFS.items()}
    for arm, path in models.items():
        if not is_made(path):
            stages.reward_model_of(pairs, policy, path, imitation_coef=COEFS[arm], seed=seed)
    return policy, models


def paid_by(policy: Path, models: list[Path], *, seed: int) -> EnsembleReward:
    """The mean of the reward models, in deviations over the policy's answers."""
    questions = sample_questions(load_world(), held_out=False, count=REFERENCES, seed=seed + 1)
    samples = sampled(policy, models[0], questions, n=2, seed=seed).samples
    columns = [samples[name][:] for name in ("prompt", "completion")]
    ensemble = EnsembleReward([stages.learned(path) for path in models])
    return ensemble.standardised_on(*columns, completion_ended=samples["ended"][:])


def ppo(
    policy: Path, start: Path, reward: EnsembleReward, folder: Path, *, rollouts: int, seed: int
) -> dict[str, list[float]]:
    """Score and explained variance of every rollout, of which the first is the start's."""
    args = PPOConfig(
        **on_cpu(folder, seed) | {"logging_strategy": "steps", "logging_steps": 4},
        per_device_train_batch_size=BATCH,
        max_steps=4 * rollouts,
        max_completion_length=stages.COMPLETION_LENGTH,
        lr_scheduler_type="constant",
        learning_rate=3e-4,
        beta=0.02,
    )
    questions = sample_questions(load_world(), held_out=False, count=rollouts * BATCH, seed=seed)
    trainer = PPOTrainer(str(policy), reward, args, Dataset.from_list(questions), value_model=str(start))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "explained_variance" in log]
    return {name: [log[name] for log in logs] for name in ("score", "explained_variance")}


def print_table(found: list[dict[str, dict]]) -> None:
    print(f"\n| value model starts as | {' | '.join(MEASURES)} | accuracy on held-out pairs | CPU s |")
    print("|" + "---|" * (len(MEASURES) + 3))
    for arm in ARMS:
        runs = [seed[arm] for seed in found]
        cells = [mean_and_deviation(list(map(measure, runs)), digits=3) for measure in MEASURES.values()]
        cells += [mean_and_deviation([one.get("accuracy", float("nan")) for one in runs], digits=3)]
        print(f"| {arm} | {' | '.join(cells)} | {mean(one['seconds'] for one in runs):.0f} |")
    for arm, other in ((WITH, WITHOUT), (WITHOUT, FRESH), (WITH, FRESH)):
        print(f"\n{arm} less {other}:")
        for name, measure in MEASURES.items():
            values, others = ([measure(seed[one]) for seed in found] for one in (arm, other))
            print(f"  {name}: {paired_difference(values, others)}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("value_start"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rollouts", type=int, default=6)
    args = parser.parse_args(arguments)
    quiet()
    found = []
    for seed in args.seeds:
        folder, began = args.output_dir / f"s{seed}", time.process_time()
        file = folder / f"found-{args.rollouts}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(run(folder, rollouts=args.rollouts, seed=seed)))
            spent = time.process_time() - began
            whole = len(args.seeds) * spent / 60
            print(
                f"seed {seed}: {spent:.0f} CPU seconds; all {len(args.seeds)} seeds about {whole:.0f} min", flush=True
            )
        found.append(json.loads(file.read_text()))
    print_table(found)


if __name__ == "__main__":
    main()
