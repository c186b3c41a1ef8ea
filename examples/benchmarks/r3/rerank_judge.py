"""A judge for `rerank` that length does not buy: a reward model from pairs of which half chose the shorter answer.

    python -m examples.benchmarks.r3.rerank_judge --model gemma-3-270m --data DATA --output-dir JUDGE --steps 3
    python -m examples.benchmarks.r3.rerank_judge --model gemma-3-270m --data DATA --output-dir JUDGE

The first tells what a step costs, and what all would. Pairs are those of DATA's pref_judge and pref_hh (one turn) whose
answers are short. JUDGE gets the reward model and `accuracy.json`: on held-out prompts, half of whose pairs chose the
shorter answer, all together, and both halves alone.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import mean

import numpy as np
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback

from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from examples.benchmarks.r3.rerank_data import TEMPLATE
from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, LearnedReward, score
from trl_ext.trainer_kit.row_files import json_rows

FILES = ("pref_judge/pairs.jsonl", "pref_hh/helpful.jsonl")
LONGEST_PROMPT, LONGEST_ANSWER = 60, 60  # words
HELD_OUT = 120  # pairs
BATCH = 8
MUST_RANK = 0.6  # of held-out pairs, or what it says is not shown
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": LINEAR, "task_type": "SEQ_CLS"}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True)
    add("--data", type=Path, required=True, help="folder with pref_judge and pref_hh")
    add("--output-dir", type=Path, required=True)
    add("--pairs", type=int, default=400, help="to train on, at most")
    add("--steps", type=int, default=-1, help="stop after so many, and save nothing; -1: one pass")
    add("--learning-rate", type=float, default=3e-4)
    add("--dtype", default="bfloat16", help="of the frozen weights: half the time on a CPU that has it")
    add("--whole", action="store_true", help="train all weights instead of LoRA on the upper half: for tiny models")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    quiet()
    pairs = balanced([pair for path in FILES for pair in short_pairs(options.data / path)], options.seed)
    held_out, kept = pairs[:HELD_OUT], pairs[HELD_OUT:][: options.pairs]
    began = time.process_time()
    trainer = train(options, kept)
    seconds, steps = time.process_time() - began, trainer.state.global_step
    print(f"{len(kept)} pairs, {steps} steps, {seconds / steps:.1f} CPU s each; {-(-len(kept) // BATCH)} are one pass")
    if options.steps > 0:
        return
    trainer.save_model()
    found = accuracy(LearnedReward(trainer.model.eval(), trainer.processing_class), held_out)
    (options.output_dir / "accuracy.json").write_text(json.dumps(found, indent=2))
    print(found)


def short_pairs(path: Path) -> list[dict]:
    """The file's pairs of one turn and short answers, in the policy's template."""
    pairs = []
    for row in json_rows(path):
        query = row["prompt"].removesuffix("\n\nAssistant:").strip().removeprefix("Human:").strip()
        lengths = [len(row[side].split()) for side in ("chosen", "rejected")]
        if "Human:" not in query and len(query.split()) <= LONGEST_PROMPT and max(lengths) <= LONGEST_ANSWER:
            answers = {side: row[side].strip() for side in ("chosen", "rejected")}
            pairs.append({"prompt": TEMPLATE.format(query=query)} | answers)
    return pairs


def balanced(pairs: list[dict], seed: int) -> list[dict]:
    """As many pairs that chose the shorter answer as such that chose the longer one, by turns; equal lengths go.

    Those of one prompt stay together, as far as the turns let them: a prompt's later pairs are dropped.

    >>> a, b = {"prompt": "p", "chosen": "one", "rejected": "two words"}, {"prompt": "q", "chosen": "x y", "rejected": "z"}
    >>> balanced([a, b, a | {"prompt": "r"}], 0) in ([a, b], [a | {"prompt": "r"}, b])
    True
    """
    drawn = random.Random(seed).sample(pairs, len(pairs))
    drawn = list({pair["prompt"]: pair for pair in drawn}.values())
    shorter = [pair for pair in drawn if longer_by(pair) < 0]
    longer = [pair for pair in drawn if longer_by(pair) > 0]
    return [pair for both in zip(shorter, longer, strict=False) for pair in both]


def longer_by(pair: dict) -> int:
    """Words of the chosen answer less those of the rejected one."""
    return len(pair["chosen"].split()) - len(pair["rejected"].split())


def train(options: argparse.Namespace, pairs: list[dict]) -> ImitationRewardTrainer:
    config = ImitationRewardConfig(
        **on_cpu(options.output_dir, options.seed),
        per_device_train_batch_size=BATCH,
        learning_rate=options.learning_rate,
        num_train_epochs=1,
        max_steps=options.steps,
        max_length=256,
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, dtype=options.dtype)
    layers = AutoConfig.from_pretrained(options.model).num_hidden_layers
    lora = None if options.whole else LoraConfig(**LORA, layers_to_transform=list(range(layers // 2, layers)))
    model.config.pad_token_id = model.config.pad_token_id or tokenizer.pad_token_id or tokenizer.eos_token_id
    rows = Dataset.from_list(pairs)
    trainer = ImitationRewardTrainer(model, config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def accuracy(judge: LearnedReward, pairs: list[dict]) -> dict[str, float]:
    """How often the chosen answer scores higher; equal scores count half."""
    prompts = [pair["prompt"] for pair in pairs]
    ours, theirs = (
        score(judge, prompts, [pair[side] for pair in pairs])[judge.__name__] for side in ("chosen", "rejected")
    )
    right = [(a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True)]
    short = [r for r, pair in zip(right, pairs, strict=True) if longer_by(pair) < 0]
    long = [r for r, pair in zip(right, pairs, strict=True) if longer_by(pair) > 0]
    return {"all": mean(right), "where the shorter is chosen": mean(short), "where the longer is chosen": mean(long)}


def judged(judge: Path, rows: list[dict]) -> np.ndarray:
    """The judge's score of each sample, `(P, N)`."""
    reward = LearnedReward(judge)
    flat = [(row["prompt"], text) for row in rows for text in row["completions"]]
    scores = score(reward, [prompt for prompt, _ in flat], [text for _, text in flat])[reward.__name__]
    return np.array(scores).reshape(len(rows), -1)


if __name__ == "__main__":
    main()
