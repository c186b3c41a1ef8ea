"""A small real model as labeler, on people's pairs: zero-shot, and fine-tuned on some labelled pairs; length alone beside it.

    python -m examples.benchmarks.ai_feedback.real_judge --model gemma-3-270m --data pref_hh/helpful.jsonl pref_judge/pairs.jsonl
    … --tune 300                                    # beside it, an adapter trained on 300 other pairs, in either order

Of each file `--pairs` pairs are drawn, none longer than `--longest` characters, so that no window is passed. Said before the run,
the primary endpoint: agreement with the given labels over the pairs of all files, of the tuned labeler and of both orders together,
with its 95 % interval (Wilson); within it ½ is not resolved. Beside it the share of pairs that go by place, the mass on the
answers, the calibration, how often the longer completion is the chosen one, and what the labeler is right about more often
than that, within pairs. The first row's time gives a projection of all. Answers and the adapter are kept as they come; the same
command goes on after a kill.
"""

import argparse
import json
import random
import re
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.benchmarks.common.over_seeds import paired_difference
from trl_ext import PreferenceLabeler
from trl_ext.ai_feedback.preference_pairs import preference_pairs
from trl_ext.reward_evaluation.pair_statistics import wilson_interval
from trl_ext.sequences.option_log_probs import option_ids
from trl_ext.trainer_kit.own_folders import claim_folder
from trl_ext.trainer_kit.passes import states_as_one_matrix

BATCH = 8  # lessons of a step
MARK, ADAPTER = "real_judge.json", "adapter"
OWN = re.compile(rf"{ADAPTER}(\.partial)?|.*\.jsonl")
PASSES = 3  # that a lesson's backward pass and its forward pass are like

Lesson = tuple[list[int], tuple[int, ...]]  # what is read, and the answer


def drawn(file: Path, *, count: int, longest: int, seed: int) -> list[dict]:
    """Pairs in a drawn order, of those that are short enough."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sides = ("prompt", "chosen", "rejected")
    short = [{name: row[name] for name in sides} for row in rows if sum(len(row[name]) for name in sides) <= longest]
    return random.Random(seed).sample(short, min(count, len(short)))


def by_length(rows: list[dict]) -> list[float]:
    """Of each pair whether the longer one is chosen, ½ for a tie.

    >>> by_length([{"chosen": "long", "rejected": "no"}, {"chosen": "as", "rejected": "it"}])
    [1.0, 0.5]
    """
    return [right(len(row["chosen"]) - len(row["rejected"])) for row in rows]


def right(margin: float) -> float:
    return 0.5 + 0.5 * (margin > 0) - 0.5 * (margin < 0)


def lessons(rows: list[dict], labeler: PreferenceLabeler, tokenizer, *, seed: int) -> list[Lesson]:
    """What the labeler asks of each pair, in an order drawn by the seed, and the right answer."""
    rng, chat, found = random.Random(seed), tokenizer.chat_template is not None, []
    for pair in preference_pairs(Dataset.from_list(rows), call="lessons"):
        order = rng.randrange(2)
        asked = labeler.wording.context(pair.question, order, chat)
        choice = option_ids(asked, labeler.wording.options(chat), tokenizer)
        found.append((choice.context, choice.options[order]))
    return found


def tuned(model, taught: list[Lesson], *, learning_rate: float, seed: int) -> PeftModel:
    """The model under an adapter that has read each lesson once; only the answer's logits are computed."""
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    with states_as_one_matrix(model):
        for start in range(0, len(taught), BATCH):
            batch = taught[start : start + BATCH]
            for lesson in batch:
                (answer_loss(model, *lesson) / len(batch)).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def answer_loss(model, context: list[int], answer: tuple[int, ...]) -> torch.Tensor:
    """−log p(answer | context), mean over its tokens."""
    ids = torch.tensor([[*context, *answer]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
    return cross_entropy(logits.float(), ids[0, -len(answer) :])


def row_of(name: str, labeler: PreferenceLabeler, rows: list[dict], keep: Path) -> tuple[str, list[float]]:
    """A line of the table, and of each pair whether the labeler is right. Of answers that were kept, the time is not known."""
    began, fresh = time.process_time(), not keep.exists()
    judged = labeler.judge(Dataset.from_list(rows), keep=keep)
    found = labeler.report
    low, high = found.agreement_interval
    seconds = f"{time.process_time() - began:.0f}" if fresh else "kept"
    line = (
        f"| {name} | {found.pairs} | {found.agreement:.3f} [{low:.3f}, {high:.3f}] | {found.position_bias:.2f} | "
        f"{found.first_place:.2f} | {found.mass:.3f} | {found.calibration_error:.3f} | {seconds} |"
    )
    return line, [right(each.probability - 0.5) for each in judged]


def share_of(hits: list[float]) -> str:
    share = statistics.mean(hits)
    low, high = wilson_interval(share, len(hits))
    return f"{share:.3f} [{low:.3f}, {high:.3f}]"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="path of a causal language model")
    add("--data", type=Path, nargs="+", required=True, help="JSON lines with prompt, chosen and rejected")
    add("--pairs", type=int, default=150, help="of each file")
    add("--longest", type=int, default=800, help="characters of a pair")
    add("--tune", type=int, default=0, help="pairs of all files that an adapter learns from; 0: zero-shot alone")
    add("--learning-rate", type=float, default=5e-4, help="of the adapter")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights; an adapter has float32")
    add("--output-dir", type=Path, default=Path("real_judge"))
    add("--seed", type=int, default=0)
    return parser.parse_args()


def settings(args: argparse.Namespace) -> dict:
    """All that the answers and the adapter follow from."""
    given = vars(args) | {"data": [str(file) for file in args.data], "model": str(args.model)}
    return {name: value for name, value in given.items() if name != "output_dir"}


def split(args: argparse.Namespace) -> tuple[dict[str, list[dict]], list[dict]]:
    """Of each file the pairs that are asked, and of all together those that are taught: none with a prompt that is asked."""
    each, asked, taught = -(-args.tune // len(args.data)), {}, []
    for file in args.data:
        rows = drawn(file, count=sys.maxsize, longest=args.longest, seed=args.seed)
        asked[file.parent.name] = rows[: args.pairs]
        known = {row["prompt"] for row in rows[: args.pairs]}
        taught += [row for row in rows[args.pairs :] if row["prompt"] not in known][:each]
    return asked, taught[: args.tune]


def table(
    kind: str, labeler: PreferenceLabeler, asked: dict[str, list[dict]], folder: Path, *, taught: int | None = None
) -> list[float]:
    """Print a row a file, and with `taught` what all will take, but of kept answers; of each pair whether the labeler is right."""
    hits, began = [], time.process_time()
    for name, rows in asked.items():
        keep = folder / f"{name}-{kind.split()[0]}.jsonl"
        projects = taught is not None and not hits and not keep.exists()
        line, each = row_of(f"{name}, {kind}", labeler, rows, keep)
        print(line, flush=True)
        if projects:
            minutes = projected(time.process_time() - began, asked, taught)
            print(f"projected: {minutes:.1f} CPU minutes of all", file=sys.stderr, flush=True)
        hits += each
    return hits


def projected(seconds: float, asked: dict[str, list[dict]], taught: int) -> float:
    """CPU minutes of all, from the seconds of the first file: a pair is read in two orders, a lesson in one."""
    first, *_ = map(len, asked.values())
    pairs = sum(map(len, asked.values()))
    return seconds / first * (pairs * (2 if taught else 1) + PASSES * taught / 2) / 60


def learned(model, labeler: PreferenceLabeler, tokenizer, taught: list[dict], args: argparse.Namespace) -> PeftModel:
    """The model under the folder's adapter, which is trained if it is not there."""
    place = args.output_dir / ADAPTER
    if place.exists():
        return PeftModel.from_pretrained(model, place).eval()
    rows = lessons(taught, labeler, tokenizer, seed=args.seed)
    made = tuned(model, rows, learning_rate=args.learning_rate, seed=args.seed)
    made.save_pretrained(place.with_suffix(".partial"))
    place.with_suffix(".partial").rename(place)
    return made


def main() -> None:
    args = parse()
    warnings.filterwarnings("ignore", message="PreferenceLabeler.label: the labeler gives")
    claim_folder(args.output_dir, MARK, settings(args), names=OWN, call=f"real_judge(--output-dir {args.output_dir})")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    asked, taught = split(args)
    print("| labeler | pairs | agreement [95 %] | same place after the swap | first place | mass | ECE | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rows in asked.items():
        print(f"| {name}, length only | {len(rows)} | {share_of(by_length(rows))} | – | – | – | – | – |")
    longer = [each for rows in asked.values() for each in by_length(rows)]
    labeler = PreferenceLabeler(model, tokenizer, batch_size=8)
    hits = table("zero-shot", labeler, asked, args.output_dir, taught=len(taught))
    if taught:
        labeler = PreferenceLabeler(learned(model, labeler, tokenizer, taught, args), tokenizer, batch_size=8)
        first, hits = hits, table(f"tuned on {len(taught)} pairs", labeler, asked, args.output_dir)
        print(f"\nPRIMARY, tuned, pairs of all files: {share_of(hits)}")
        print(f"less zero-shot: {paired_difference(hits, first)}")
    print(f"less length only: {paired_difference(hits, longer)}")


if __name__ == "__main__":
    main()
