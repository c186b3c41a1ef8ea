"""The whole chain on your own files: preference pairs → reward model → PPO → a table of what each step did.

    python examples/rlhf_chain.py --model MODEL --pairs PAIRS.jsonl --prompts PROMPTS.jsonl --output-dir OUT

MODEL is a causal language model, a name or a path. Both files are JSON lines; their fields are named by

    --pair-fields prompt chosen rejected     a prompt and two completions of it, all text (the default)
    --pair-fields positive negative          two versions of one text, the preferred first: the prompt is the first
                                             sentence (of the version that a field `original` names, if there is one),
                                             the completions are what follows it in each
    --prompt-field prompt                    the prompt as it stands (the default)
    --prompt-field text --first-sentence     its first sentence

For each seed, which also decides what is held out:

1. Two reward models from the same start, by ranking alone and with imitation: their held-out accuracy, beside that of
   taking the longer (or the shorter) completion.
2. PPO with the second one as reward. The held-out prompts are answered before and after, and the first one, for which
   PPO does not optimise, scores the same answers: a gain that it does not share may be none.

OUT gets table.txt, results.json, and for each seed three models with the log of their training. The same command writes
over its own; what others have left there by those names is refused.
"""

import argparse
import json
import re
import statistics
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from preferences import length_accuracy, load_pairs, load_prompts, pair_accuracy, share_won, split
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, set_seed

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, LearnedReward, PPOConfig, PPOTrainer, wordpunct
from trl_ext.self_training import distinct
from trl_ext.sequences import model_window
from trl_ext.trainer_kit import check_seed, claim_folder, ends_in_one_line

PPO_EPOCHS = 4  # over each batch of rollouts
MARK, OWN = "rlhf_chain.json", re.compile(r"seed-\d+|table\.txt|results\.json")  # in OUT: whose it is; what is written
RANKING, IMITATION = "ranking alone", "ranking + imitation"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="policy, and trunk of the reward models")
    add("--pairs", type=Path, required=True)
    add("--pair-fields", nargs="+", default=["prompt", "chosen", "rejected"], metavar="FIELD")
    add("--prompts", type=Path, required=True)
    add("--prompt-field", default="prompt")
    add("--first-sentence", action="store_true")
    add("--output-dir", type=Path, required=True)
    add("--seeds", type=int, nargs="+", default=[0], help="one whole run each; the table has mean ± sd")
    add("--held-out", type=float, default=0.2, help="share of pairs and of prompts that nothing is trained on")
    add("--lora", action="store_true", help="train adapters; default: all weights")
    add("--max-length", type=int, help="longest pair in tokens; default: the model's window, at most 1024")
    add("--reward-epochs", type=float, default=1.0)
    add("--reward-batch", type=int, default=8, help="pairs per step")
    add("--reward-learning-rate", type=float, default=1e-4)
    add("--imitation-coef", type=float, default=0.1, help="weight of the imitation term")
    add("--rollouts", type=int, default=50, help="batches of completions that PPO samples and learns from")
    add("--ppo-batch", type=int, default=32, help="completions per rollout")
    add("--ppo-learning-rate", type=float, help="default: 1e-6, with --lora 1e-5")
    add("--max-completion-length", type=int, default=64, help="tokens per completion")
    add("--beta", type=float, default=0.05, help="price of a nat of KL, in deviations of the score")
    options = parser.parse_args(arguments)
    if len(options.pair_fields) not in (2, 3):
        parser.error(f"--pair-fields takes two or three names, got {options.pair_fields}")
    for name in ("reward_batch", "rollouts", "ppo_batch", "max_completion_length"):
        if getattr(options, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} takes a whole number of at least 1, got {getattr(options, name)}"
            )
    return options


# Training


def settings(options, folder: Path, seed: int) -> dict:
    """What both trainers are told, whatever machine this is."""
    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "seed": seed,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "use_cpu": not torch.accelerator.is_available(),
        "gradient_checkpointing": gpu,
        "save_strategy": "no",
        "report_to": "none",
    }


def adapter(options, task_type: str) -> LoraConfig | None:
    return LoraConfig(task_type=task_type, target_modules="all-linear") if options.lora else None


def train_and_save(trainer) -> None:
    trainer.train()
    trainer.save_model()
    trainer.save_state()  # trainer_state.json holds all that was logged


def train_reward_model(options, pairs: list[dict], max_length: int, *, coef: float, folder: Path, seed: int) -> None:
    args = ImitationRewardConfig(
        **settings(options, folder, seed),
        imitation_coef=coef,
        max_length=max_length,
        learning_rate=options.reward_learning_rate,
        num_train_epochs=options.reward_epochs,
        per_device_train_batch_size=options.reward_batch,
    )
    train_and_save(
        ImitationRewardTrainer(
            options.model, args, train_dataset=Dataset.from_list(pairs), peft_config=adapter(options, "SEQ_CLS")
        )
    )


def ppo_trainer(options, rewards: list, train: list[str], held_out: list[str], *, folder: Path, seed: int):
    args = PPOConfig(
        **settings(options, folder, seed),
        learning_rate=options.ppo_learning_rate,
        beta=options.beta,
        num_iterations=PPO_EPOCHS,
        max_steps=options.rollouts * PPO_EPOCHS,
        reward_weights=[1.0, 0.0],  # the second one only watches
        per_device_train_batch_size=options.ppo_batch,
        per_device_eval_batch_size=options.ppo_batch,
        max_completion_length=options.max_completion_length,
    )
    return PPOTrainer(
        options.model,
        rewards,
        args,
        train_dataset=Dataset.from_dict({"prompt": train}),
        eval_dataset=Dataset.from_dict({"prompt": held_out}),
        peft_config=adapter(options, "CAUSAL_LM"),
    )


class Recorded:
    """A reward function like any other: it passes a reward model's scores on, and keeps what it scored."""

    def __init__(self, reward: LearnedReward):
        self.reward, self.__name__ = reward, reward.__name__
        self.forget()

    def forget(self) -> None:
        self.completions, self.scores = [], []

    def __call__(self, *, completions: list[str], **columns) -> list[float]:
        scores = self.reward(completions=completions, **columns)
        self.completions += completions
        self.scores += scores
        return scores


# Measures


def distinct_2(texts: list[str]) -> float:
    """Share of pairs of neighbouring words that are distinct: near 0 where all texts say the same, 0 where none has two."""
    return distinct(texts, n=2) if any(len(wordpunct(text)) > 1 for text in texts) else 0.0


def answer_held_out(trainer: PPOTrainer, judges: dict[str, Recorded], seed: int, before: dict | None = None) -> dict:
    """What the policy, as it is now, makes of the held-out prompts: scores, texts and measures."""
    for judge in judges.values():
        judge.forget()
    set_seed(seed)
    logged = trainer.evaluate()
    scores = {name: list(judge.scores) for name, judge in judges.items()}
    texts = list(judges[IMITATION].completions)
    measures = {"(held-out prompts)": len(texts)}
    for name, now in scores.items():
        start = before["scores"][name] if before else now
        gain = statistics.mean(now) - statistics.mean(start)
        measures |= {
            f"reward by {name}: mean": statistics.mean(now),
            f"reward by {name}: gain in deviations": gain / (statistics.pstdev(start) or 1.0),
            f"reward by {name}: % of prompts won": share_won(now, start),
        }
    measures |= {
        "KL per token, nats": logged["eval_kl"],
        "KL per completion, nats": logged["eval_kl_per_completion"],
        "completion length, tokens": logged["eval_completions/mean_length"],
        "ended by themselves, %": 100 * logged["eval_completions/eos_ratio"],
        "distinct-2": distinct_2(texts),
        "perplexity of own samples": logged["eval_perplexity"],
    }
    return {"scores": scores, "texts": texts, "measures": measures}


# The chain


def halves(options, pairs: list[dict], prompts: list[str], seed: int) -> dict[str, tuple[list, list]]:
    """Pairs and prompts, each as those to learn from and those held out; a ValueError for fewer than training takes."""
    parts = {
        "pairs": split(pairs, lambda pair: pair["prompt"], seed=seed, share=options.held_out, name="pairs"),
        "prompts": split(prompts, str, seed=seed, share=options.held_out, name="prompts"),
    }
    left = len(parts["prompts"][0])
    if left < options.ppo_batch:
        raise ValueError(
            f"--ppo-batch {options.ppo_batch} with --held-out {options.held_out}: of {len(prompts)} prompts, {left} are "
            f"left to train on with seed {seed}, and each batch takes {options.ppo_batch}. Lower --ppo-batch or "
            "--held-out, or add prompts."
        )
    return parts


def learn_rewards(options, train: list[dict], held_out: list[dict], max_length: int, *, folder: Path, seed: int):
    """Both reward models; and in percent how often they, and what needs no model, are right of a held-out pair."""
    accuracy = {
        "(pairs to learn from)": len(train),
        "(held-out pairs)": len(held_out),
        "chance": 50.0,
        "length alone": length_accuracy(train, held_out),
    }
    models = {}
    for name, coef, path in (
        (RANKING, 0.0, folder / "reward-ranking"),
        (IMITATION, options.imitation_coef, folder / "reward-imitation"),
    ):
        train_reward_model(options, train, max_length, coef=coef, folder=path, seed=seed)
        models[name] = LearnedReward(str(path))
        accuracy[name] = pair_accuracy(models[name], held_out)
    return models, accuracy


def improve_policy(
    options, models: dict[str, LearnedReward], train: list[str], held_out: list[str], *, folder: Path, seed: int
) -> dict:
    """PPO with the second model, and what held-out prompts get before and after."""
    held_out = held_out[: len(held_out) // options.ppo_batch * options.ppo_batch or None]  # whole batches
    judges = {name: Recorded(models[name]) for name in (IMITATION, RANKING)}
    trainer = ppo_trainer(options, list(judges.values()), train, held_out, folder=folder / "policy", seed=seed)
    before = answer_held_out(trainer, judges, seed)
    train_and_save(trainer)
    after = answer_held_out(trainer, judges, seed, before)
    texts = zip(held_out, before["texts"], after["texts"], strict=True)
    samples = [dict(zip(("prompt", "before", "after"), row, strict=True)) for row in texts]
    return {"before": before["measures"], "after": after["measures"], "samples": samples}


def table(title: str, columns: dict[str, list[dict[str, float]]], console: Console) -> None:
    """One row per measure, one column per name: mean over seeds, ± their standard deviation."""
    grid = Table(title, *columns)
    for measure in next(iter(columns.values()))[0]:
        values = [[run[measure] for run in runs] for runs in columns.values()]
        spreads = [f" ± {statistics.stdev(column):.2f}" if len(column) > 1 else "" for column in values]
        grid.add_row(measure, *(f"{statistics.mean(c):.2f}{s}" for c, s in zip(values, spreads, strict=True)))
    console.print(grid)


def report(runs: list[dict], console: Console) -> None:
    table("reward model", {"held-out pairs ranked right, %": [run["accuracy"] for run in runs]}, console)
    table("held-out prompts", {f"{side} PPO": [run[side] for run in runs] for side in ("before", "after")}, console)
    for sample in runs[0]["samples"][:3]:
        for name, text in sample.items():
            console.print(f"{name + ':':8}{text.strip()}", markup=False, highlight=False)
        console.print()


def main(arguments: list[str] | None = None) -> list[dict]:
    options, console = parse(arguments), Console(record=True, width=100)
    for seed in options.seeds:
        check_seed(seed, call=f"--seeds {seed}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        window = model_window(AutoConfig.from_pretrained(options.model)) or 1024
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model {options.model}: it cannot be loaded ({str(error).splitlines()[0]}). Give a folder written by "
            "save_pretrained, or a hub id."
        ) from error
    max_length = options.max_length or min(window, 1024)
    room = window - options.max_completion_length
    pairs = load_pairs(options.pairs, options.pair_fields, tokenizer, max_length, console)
    prompts = load_prompts(options.prompts, options.prompt_field, tokenizer, room, console, cut=options.first_sentence)
    parts = {seed: halves(options, pairs, prompts, seed) for seed in options.seeds}
    run = json.loads(
        json.dumps({name: value for name, value in vars(options).items() if name != "output_dir"}, default=str)
    )
    claim_folder(options.output_dir, MARK, run, names=OWN, call=f"rlhf_chain.py --output-dir {options.output_dir}")
    runs = []
    for seed in options.seeds:
        folder = options.output_dir / f"seed-{seed}"
        models, accuracy = learn_rewards(options, *parts[seed]["pairs"], max_length, folder=folder, seed=seed)
        policy = improve_policy(options, models, *parts[seed]["prompts"], folder=folder, seed=seed)
        runs.append({"seed": seed, "accuracy": accuracy} | policy)
    report(runs, console)
    console.save_text(str(options.output_dir / "table.txt"))
    results = {"options": vars(options), "runs": runs}
    (options.output_dir / "results.json").write_text(json.dumps(results, default=str, indent=1), encoding="utf-8")
    return runs


if __name__ == "__main__":
    stopped = "The same command begins anew, over what it has written."
    with ends_in_one_line("rlhf_chain.py", when_stopped=stopped, folder=Path(__file__).parent):
        main()
