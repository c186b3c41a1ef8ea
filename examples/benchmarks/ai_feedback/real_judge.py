"""A small real model as labeler, on people's pairs: zero-shot, and fine-tuned on some labelled pairs; length alone beside it.

    python -m examples.benchmarks.ai_feedback.real_judge --model gemma-3-270m --data pref_hh/helpful.jsonl pref_judge/pairs.jsonl
    … --tune 300                                    # beside it, an adapter trained on 300 other pairs, in either order

Of each file `--pairs` pairs are drawn, none longer than `--longest` characters, so that no window is passed. Said before the run,
the primary endpoint: agreement with the given labels, of both orders together, with its 95 % interval (Wilson). Beside it the share
of pairs that go by place, the mass on the answers, and how often the longer completion is the chosen one.
"""

import argparse
import json
import random
import time
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_ext import PreferenceLabeler
from trl_ext.ai_feedback.preference_pairs import preference_pairs
from trl_ext.reward_evaluation.pair_statistics import wilson_interval


def drawn(file: Path, *, count: int, longest: int, seed: int) -> list[dict]:
    """Pairs in a drawn order, of those that are short enough."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sides = ("prompt", "chosen", "rejected")
    short = [{name: row[name] for name in sides} for row in rows if sum(len(row[name]) for name in sides) <= longest]
    return random.Random(seed).sample(short, min(count, len(short)))


def by_length(rows: list[dict]) -> tuple[float, tuple[float, float]]:
    """How often the longer one is chosen, ½ for a tie."""
    gaps = [len(row["chosen"]) - len(row["rejected"]) for row in rows]
    share = sum(0.5 + 0.5 * (gap > 0) - 0.5 * (gap < 0) for gap in gaps) / len(gaps)
    return share, wilson_interval(share, len(gaps))


def lessons(rows: list[dict], labeler: PreferenceLabeler, *, seed: int) -> list[dict]:
    """What the labeler asks of each pair, in an order drawn by the seed, and the right answer."""
    rng, found, chat = random.Random(seed), [], labeler._judge.chat
    for pair in preference_pairs(Dataset.from_list(rows), call="lessons"):
        order = rng.randrange(2)
        asked, answer = labeler.wording.context(pair.question, order, chat), labeler.wording.options(chat)[order]
        found.append({"prompt": asked, "completion": [{"role": "assistant", "content": answer}] if chat else answer})
    return found


def tuned(model, tokenizer, rows: list[dict], folder: Path):
    """The model under an adapter that has read each lesson once."""
    args = SFTConfig(
        str(folder), num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=4, learning_rate=2e-4,
        max_length=1024, bf16=False, use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no", logging_steps=5,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    trainer = SFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora
    )
    trainer.train()
    return trainer.model.eval()


def row_of(name: str, rows: list[dict], labeler: PreferenceLabeler) -> str:
    began = time.process_time()
    labeler.label(Dataset.from_list(rows))
    found = labeler.report
    low, high = found.agreement_interval
    return (
        f"| {name} | {found.pairs} | {found.agreement:.3f} [{low:.3f}, {high:.3f}] | {found.position_bias:.2f} | "
        f"{found.first_place:.2f} | {found.mass:.3f} | {found.calibration_error:.3f} | {time.process_time() - began:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="path of a causal language model")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="JSON lines with prompt, chosen and rejected"
    )
    parser.add_argument("--pairs", type=int, default=60, help="of each file")
    parser.add_argument("--longest", type=int, default=1500, help="characters of a pair")
    parser.add_argument(
        "--tune", type=int, default=0, help="pairs of all files that an adapter learns from; 0: zero-shot alone"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("real_judge"))
    parser.add_argument("--dtype", default="float32", help="of the weights; an adapter's are in float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="PreferenceLabeler.label: the labeler gives")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    each = -(-args.tune // len(args.data))
    asked, taught = {}, []
    for file in args.data:
        rows = drawn(file, count=args.pairs + each, longest=args.longest, seed=args.seed)
        asked[file.parent.name], taught = rows[: args.pairs], [*taught, *rows[args.pairs :]]
    labeler = PreferenceLabeler(model, tokenizer, batch_size=8)
    print("| labeler | pairs | agreement [95 %] | same place after the swap | first place | mass | ECE | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rows in asked.items():
        share, (low, high) = by_length(rows)
        print(f"| {name}, length only | {len(rows)} | {share:.3f} [{low:.3f}, {high:.3f}] | – | – | – | – | – |")
        print(row_of(f"{name}, zero-shot", rows, labeler), flush=True)
    if args.tune:
        learned = tuned(
            model,
            tokenizer,
            lessons(taught[: args.tune], labeler, seed=args.seed),
            args.output_dir,
        )
        labeler = PreferenceLabeler(learned, tokenizer, batch_size=8)
        for name, rows in asked.items():
            print(row_of(f"{name}, tuned on {len(taught[: args.tune])} pairs", rows, labeler), flush=True)


if __name__ == "__main__":
    main()
