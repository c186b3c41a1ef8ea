"""RAFT on film-review sentiment, the first task of its paper: against SFT on positive text and random selection.

    python -m examples.benchmarks.self_training.sentiment --model MODEL --pairs PAIRS.jsonl --output-dir OUT --seeds 0 1 2
    … --snippets SNIPPETS.jsonl     the judge learns from these, too

PAIRS has two versions of each review, `positive` and `negative`, one a person's rewrite of the other, and an `id`.
Sentences that stand at the same place in both and differ become pairs: the words they begin with are the prompt,
whose sentiment is still open, and what follows in each version are the preferred and the other completion.
SNIPPETS (optional) has rows of `text` and `label`, `pos` or `neg`: more to learn from for the judge.

The script was written for stories260K, a model of 260 thousand weights that knows children's stories and nothing
else. Given the beginning of a review it goes on with a story, and within 48 tokens one sample in a thousand
ends: a reward for reviews would choose among stories, and `drop_truncated=False` would be needed. So the *start* of
all arms is this model after some passes over the arms' review sentences, of both sentiments alike. It writes
sentences about films, of a kind, and most of them end, so that RAFT's default, to drop those that do not, is kept.
The table has the model as it came, too.

Reviews are divided by a hash, anew for each seed: the arms' (prompts, positive text, pairs of the reward model),
the judge's (a reward model that no arm is paid by, on reviews that no arm has read, and the snippets), and held-out
ones, on which everything is measured. From the same start, and for the same number of steps of the same size:

    SFT on positive   the positive completions of the arms' reviews, the paper's baseline
    random            own samples, one of each prompt as in RAFT, whatever its score: the control
    RAFT              own samples, the best of K of each prompt

OUT gets table.txt and results.json. A seed that is in results.json is not run again.
"""

import argparse
import difflib
import hashlib
import json
import os
import random
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from examples.benchmarks.common.over_seeds import mean_and_deviation
from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    LearnedReward,
    RAFTConfig,
    RAFTTrainer,
    evaluate,
    score,
)
from trl_ext.sequences.token_ids import prompt_ids
from trl_ext.trainer_kit.row_files import json_rows

UNTOUCHED, START = "model as it came", "start"
JUDGED = "judge's score"
PARTS = {"arms": 0.4, "judge": 0.8, "held-out": 1.0}  # of the reviews, up to here
LEAST_WORDS = 3  # of a prompt
LONGEST_PROMPT, LONGEST_PAIR = 40, 96  # tokens
BATCH = 32
SAMPLES = 3  # prompts whose completions are shown


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="a small causal LM: policy, and trunk of reward model and judge")
    add("--pairs", type=Path, required=True)
    add("--snippets", type=Path)
    add("--output-dir", type=Path, required=True)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--k", type=int, default=8, help="completions per prompt")
    add("--stages", type=int, default=5)
    add("--prompts", type=int, default=96, help="prompts per stage")
    add("--tokens", type=int, default=48, help="longest completion")
    add("--learning-rate", type=float, default=1e-3, help="of the three arms")
    add("--start-epochs", type=float, default=4.0, help="passes over review sentences that make the start")
    add("--start-learning-rate", type=float, default=1e-3)
    add("--reward-epochs", type=float, default=2.0)
    add("--reward-learning-rate", type=float, default=1e-3)
    return parser.parse_args(arguments)


# Data


def rows_of(path: Path, fields: list[str]) -> list[dict]:
    rows = list(json_rows(path))
    for number, row in enumerate(rows, start=1):
        bad = [field for field in fields if not isinstance(row.get(field), str)]
        if bad:
            raise ValueError(f"{path}, line {number}: expected text in the field {bad[0]!r}, got {row.get(bad[0])!r}.")
    return rows


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", " ".join(text.replace("<br />", " ").split()))


def changed_sentences(positive: str, negative: str) -> list[tuple[str, str]]:
    """The sentences that stand at the same place in both versions, and differ."""
    ours, theirs = sentences(positive), sentences(negative)
    blocks = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    same_count = [(i, j, i2 - i) for kind, i, i2, j, j2 in blocks if kind == "replace" and i2 - i == j2 - j]
    return [(ours[i + n], theirs[j + n]) for i, j, count in same_count for n in range(count)]


def as_pair(positive: str, negative: str) -> dict[str, str] | None:
    """The words that both begin with, and what follows in each; None where one of the three is too short."""
    ours, theirs = positive.split(), negative.split()
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    if same < LEAST_WORDS or same == min(len(ours), len(theirs)):
        return None
    prompt, chosen, rejected = (" ".join(words) for words in (ours[:same], ours[same:], theirs[same:]))
    return {"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected}


def load_pairs(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """All pairs of sentences that are not too long, with the review they are from."""
    pairs = []
    for row in rows_of(path, ["id", "positive", "negative"]):
        found = (as_pair(*both) for both in changed_sentences(row["positive"], row["negative"]))
        pairs += [pair | {"review": row["id"]} for pair in found if pair]

    def fits(text: str, longest: int) -> bool:
        return len(prompt_ids(text, tokenizer)) <= longest

    return [
        pair
        for pair in pairs
        if fits(pair["prompt"], LONGEST_PROMPT)
        and all(fits(pair["prompt"] + pair[side], LONGEST_PAIR - 1) for side in ("chosen", "rejected"))
    ]


def divided(pairs: list[dict], seed: int) -> dict[str, list[dict]]:
    """Arms', judge's and held-out pairs: by review, and no held-out prompt is also in another part."""
    parts: dict[str, list[dict]] = {name: [] for name in PARTS}
    for pair in pairs:
        digest = hashlib.blake2b(f"{seed}:{pair['review']}".encode(), digest_size=8).digest()
        point = int.from_bytes(digest, "big") / 2**64
        parts[next(name for name, end in PARTS.items() if point < end)].append(pair)
    known = {pair["prompt"] for name in ("arms", "judge") for pair in parts[name]}
    held_out = {pair["prompt"]: pair for pair in parts["held-out"] if pair["prompt"] not in known}
    parts["held-out"] = list(held_out.values())
    for name, part in parts.items():
        if not part:
            raise ValueError(f"--pairs: none of {len(pairs)} sentence pairs is {name!r} with seed {seed}. Give more.")
    return parts


def snippet_pairs(path: Path | None, seed: int) -> list[dict]:
    """A positive and a negative snippet each, drawn at random; they share no words, so the prompt is empty."""
    texts: dict[str, list[str]] = {"pos": [], "neg": []}
    for row in rows_of(path, ["text", "label"]) if path else []:
        if row["label"] not in texts:
            raise ValueError(f"{path}: expected the label 'pos' or 'neg', got {row['label']!r}.")
        texts[row["label"]].append(row["text"])
    for side in texts.values():
        random.Random(seed).shuffle(side)
    return [{"prompt": "", "chosen": a, "rejected": b} for a, b in zip(texts["pos"], texts["neg"], strict=False)]


# Training


@dataclass
class Setting:
    """What all arms of one seed share.

    Args:
        start: Path of the model that all arms begin with.
        reward, judge: What the arms are paid by, and what they are not.
        parts: The pairs, divided.
        folder: Of this run of the seed.
        options: The command's.
        seed: The seed.
    """

    start: Path
    reward: LearnedReward
    judge: LearnedReward
    parts: dict[str, list[dict]]
    folder: Path
    options: argparse.Namespace
    seed: int


def fine_tuned(model: str, rows: list[dict], folder: Path, seed: int, **length):
    """SFT on prompts and completions, the loss on the completions; saved in the folder."""
    config = SFTConfig(
        **on_cpu(folder, seed),
        per_device_train_batch_size=BATCH,
        **length,
        lr_scheduler_type="linear",
        max_length=None,
    )
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list(rows))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    trainer.save_model()
    return trainer.model


def completions(pairs: list[dict], *sides: str) -> list[dict]:
    return [{"prompt": pair["prompt"], "completion": pair[side]} for pair in pairs for side in sides]


def learned_reward(options, pairs: list[dict], folder: Path, seed: int) -> LearnedReward:
    config = ImitationRewardConfig(
        **on_cpu(folder, seed),
        per_device_train_batch_size=BATCH,
        num_train_epochs=options.reward_epochs,
        learning_rate=options.reward_learning_rate,
        max_length=LONGEST_PAIR,
    )
    rows = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]
    trainer = ImitationRewardTrainer(options.model, config, train_dataset=Dataset.from_list(rows))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    trainer.save_model()
    return LearnedReward(folder, batch_size=64)


def prepare(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, seed: int) -> Setting:
    """The start, the reward model and the judge of one seed."""
    folder = options.output_dir / f"seed-{seed}" / str(time.time_ns())
    parts = divided(load_pairs(options.pairs, tokenizer), seed)
    reward = learned_reward(options, parts["arms"], folder / "reward", seed)
    judges = parts["judge"] + snippet_pairs(options.snippets, seed)
    judge = learned_reward(options, judges, folder / "judge", seed + 1)
    rows, length = completions(parts["arms"], "chosen", "rejected"), {"num_train_epochs": options.start_epochs}
    fine_tuned(options.model, rows, folder / "start", seed, learning_rate=options.start_learning_rate, **length)
    return Setting(folder / "start", reward, judge, parts, folder, options, seed)


def raft(setting: Setting, *, random_selection: bool):
    """RAFT as a user calls it, or its control: a random one of 2 is no other than one of K, and costs less to sample."""
    options = setting.options
    config = RAFTConfig(
        **on_cpu(setting.folder / ("random" if random_selection else "raft"), setting.seed),
        per_device_train_batch_size=BATCH,
        learning_rate=options.learning_rate,
        num_stages=options.stages,
        stage_batch_size=options.prompts,
        num_generations=min(options.k, 2) if random_selection else options.k,
        max_completion_length=options.tokens,
        level_stages=0,  # all arms take equally many steps
        random_selection=random_selection,
    )
    prompts = list(dict.fromkeys(pair["prompt"] for pair in setting.parts["arms"]))
    trainer = RAFTTrainer(str(setting.start), setting.reward, config, Dataset.from_dict({"prompt": prompts}))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer.model, trainer.state.global_step


def arms(setting: Setting) -> dict[str, torch.nn.Module]:
    """The model after each arm, and before."""
    options = setting.options
    rows = completions(setting.parts["arms"], "chosen")
    chance, _ = raft(setting, random_selection=True)
    best, steps = raft(setting, random_selection=False)
    length = {"max_steps": steps, "learning_rate": options.learning_rate}
    return {
        UNTOUCHED: AutoModelForCausalLM.from_pretrained(options.model),
        START: AutoModelForCausalLM.from_pretrained(setting.start),
        "SFT on positive": fine_tuned(str(setting.start), rows, setting.folder / "sft", setting.seed, **length),
        "random": chance,
        "RAFT": best,
    }


# Measures


def look(model, setting: Setting, tokenizer: PreTrainedTokenizerBase) -> dict:
    """What a model makes of the held-out prompts: both scores of each sample, the texts, and measures."""
    options = {"tokenizer": tokenizer, "batch_size": 64, "seed": setting.seed}
    rows, longest = Dataset.from_list(setting.parts["held-out"]), setting.options.tokens
    rewards = [setting.judge, setting.reward]
    looked = evaluate(model, rows, rewards, max_completion_length=longest, references_column="chosen", **options)
    negative = evaluate(model, rows, None, max_completion_length=1, references_column="rejected", **options)
    found, samples = looked.summary, looked.samples
    measures = {
        JUDGED: found["reward/judge"],
        "score it was trained on": found["reward/reward"],
        "perplexity of people's positive text": found["perplexity"],
        "perplexity of people's negative text": negative.summary["perplexity"],
        "distinct-2": found["distinct_2"],
        "tokens per sample": found["length"],
        "ended by themselves, %": 100 * found["ended_share"],
    }
    scores = {name: samples[f"reward/{name}"][:] for name in ("judge", "reward")}
    return {"scores": scores, "texts": samples["completion"][:], "measures": measures}


def gains(scores: dict[str, list[float]], before: dict[str, list[float]]) -> dict[str, float]:
    """How far each mean score is above the start's, in deviations of the start's samples."""
    return {
        f"gain by the {name}, deviations": (statistics.mean(scores[name]) - statistics.mean(before[name]))
        / (statistics.pstdev(before[name]) or 1.0)
        for name in scores
    }


def accuracy(reward: LearnedReward, pairs: list[dict]) -> float:
    """How often people's positive text scores higher than their negative text, in percent; equal scores count half."""
    prompts = [pair["prompt"] for pair in pairs]
    ours, theirs = (
        score(reward, prompts, [pair[side] for pair in pairs])[reward.__name__] for side in ("chosen", "rejected")
    )
    return 100 * statistics.mean((a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True))


def run(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict:
    """All arms of a seed: measures and samples."""
    begin, setting = time.perf_counter(), prepare(options, tokenizer, seed)
    looks = {arm: look(model, setting, tokenizer) for arm, model in arms(setting).items()}
    held_out, before = setting.parts["held-out"], looks[START]["scores"]
    return {
        "pairs": {name: len(part) for name, part in setting.parts.items()},
        "accuracy": {name: accuracy(getattr(setting, name), held_out) for name in ("reward", "judge")},
        "arms": {arm: gains(found["scores"], before) | found["measures"] for arm, found in looks.items()},
        "samples": [
            {"prompt": pair["prompt"]} | {arm: found["texts"][i] for arm, found in looks.items()}
            for i, pair in enumerate(held_out[:SAMPLES])
        ],
        "seconds": time.perf_counter() - begin,
    }


# Results


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    return {name: str(value) for name, value in vars(options).items() if name not in ("seeds", "output_dir")}


def results(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict]:
    """One per seed, run where it is not in the folder."""
    file = options.output_dir / "results.json"
    settings = settings_of(options)
    found = json.loads(file.read_text()) if file.is_file() else {"settings": settings, "runs": {}}
    other = [name for name, value in settings.items() if found["settings"].get(name) != value]
    if other:
        raise ValueError(
            f"--output-dir {options.output_dir} holds runs with {other[0]} = {found['settings'].get(other[0])}, not "
            f"{settings[other[0]]}. Choose another folder, or the same settings."
        )
    for seed in map(str, options.seeds):
        if seed not in found["runs"]:
            found["runs"][seed] = run(options, tokenizer, int(seed))
            file.write_text(json.dumps(found, indent=1))
            print(f"seed {seed}: {summary(found['runs'][seed])}", flush=True)
    return {seed: found["runs"][seed] for seed in map(str, options.seeds)}


def summary(result: dict) -> str:
    judged = ", ".join(f"{arm} {one[JUDGED]:.2f}" for arm, one in result["arms"].items())
    return f"{JUDGED}: {judged}; {result['seconds']:.0f} s"


def report(runs: list[dict], console: Console) -> None:
    columns = runs[0]["arms"]
    table = Table(title=f"Held-out prompts, {len(runs)} seeds", title_justify="left")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for measure in columns[START]:
        table.add_row(measure, *(mean_and_deviation([one["arms"][arm][measure] for one in runs]) for arm in columns))
    console.print(table)
    for name in runs[0]["accuracy"]:
        right = mean_and_deviation([one["accuracy"][name] for one in runs])
        console.print(f"held-out pairs of people's text that the {name} ranks right, %: {right}", highlight=False)
    for sample in runs[0]["samples"]:
        console.print()
        for name, text in sample.items():
            console.print(f"{name + ':':18}{text.strip()}", markup=False, highlight=False)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    quiet()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    console = Console(record=True, width=130)
    report(list(results(options, AutoTokenizer.from_pretrained(options.model)).values()), console)
    console.save_text(str(options.output_dir / "table.txt"))


if __name__ == "__main__":
    main()
