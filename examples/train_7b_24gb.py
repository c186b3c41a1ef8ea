"""Align a 7B model on one card of 24 GB: SFT → reward model → PPO or RAFT, all on one frozen base.

    python examples/train_7b_24gb.py --model meta-llama/Llama-2-7b-hf --bits 8 --method ppo \\
        --sft-data trl-lib/tldr --pairs trl-lib/tldr-preference --prompts trl-lib/tldr --output-dir out

Data are hub names (`NAME` or `NAME:SPLIT`) or local files (.jsonl, .json, .parquet, .csv), in TRL's formats:

    --sft-data   prompt and completion; or text, or messages
    --pairs      prompt, chosen, rejected
    --prompts    prompt; other columns are left out

The memory plan comes first: a run that it says does not fit is refused, unless you --force it. Sequences per pass are
the most that it has room for. With --card 24GB it is made for such a card on any machine, with --plan-only nothing else is.
Prompts longer than --prompt-length, and pairs longer than both lengths together, are left out, and counted.

A killed run goes on with the same command: finished stages are reused, the last one from its newest checkpoint. OUT gets
a folder per stage, each with its adapter (in PEFT's format) and `stage.json`, and `evidence.json`: one line with card,
versions, settings, peak of memory per stage and curves, and nothing of your data but its names. No 7B model has been
trained with this recipe by its authors: please send yours.
"""

import argparse
import gc
import json
import re
import time
from importlib.metadata import version
from pathlib import Path

import torch
from train_7b_stages import STAGES, on_gpu
from transformers import PreTrainedTokenizerBase, set_seed

from trl_ext import SharedBase
from trl_ext.memory_planning import Advice, MemoryPlan, card_bytes, memory_plan
from trl_ext.trainer_kit import check_seed, claim_folder, ends_in_one_line, newest_complete_checkpoint

GIB = 2**30
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "trl-ext")
CURVES = {  # what is kept of each stage's log
    "sft": ("loss", "mean_token_accuracy"),
    "reward": ("ranking_loss", "accuracy", "margin", "eval_accuracy"),
    "ppo": ("score", "kl", "completions/mean_length", "perplexity"),
    "raft": ("grow/score", "grow/score_kept", "grow/length", "grow/truncated", "loss"),
}
# Settings that a finished stage must have in common with the run that reuses it.
SAME = {
    "sft": ("model", "bits", "sft_data", "rank", "sft_epochs", "sft_learning_rate", "seed"),
    "reward": ("model", "bits", "pairs", "rank", "reward_epochs", "reward_learning_rate", "imitation_coef", "seed"),
}
BEGUN, CHECKPOINT = "begun.json", re.compile(r"checkpoint-\d+")  # of a stage that is not finished


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="hub name or folder of a causal LM")
    add("--bits", type=int, choices=[4, 8, 16], default=8, help="of the frozen base; 16: not quantised")
    add("--int8-threshold", type=float, default=6.0, help="of LLM.int8(); 0 is faster and less exact")
    for name in ("sft-data", "pairs", "prompts"):
        add(f"--{name}", required=True, metavar="DATA")
    add("--method", choices=["ppo", "raft"], default="ppo")
    add("--output-dir", type=Path, required=True)
    add("--card", type=gib_of, metavar="SIZE", help="to plan for: 24GB as sold, or GiB; default: the GPU at hand")
    add("--plan-only", action="store_true", help="print the plan and end; needs no GPU")
    add("--force", action="store_true", help="begin whatever the plan says")
    add("--batch", type=int, default=16, help="sequences (pairs, completions) per step")
    add("--prompt-length", type=int, default=512, help="tokens, at most")
    add("--completion-length", type=int, default=512, help="tokens, at most")
    add("--rank", type=int, default=16, help="of the LoRA adapters")
    add("--sft-epochs", type=float, default=1.0)
    add("--sft-learning-rate", type=float, default=1e-4)
    add("--reward-epochs", type=float, default=1.0)
    add("--reward-learning-rate", type=float, default=1e-4)
    add("--imitation-coef", type=float, default=0.1, help="of the reward model's imitation term")
    add("--rollouts", type=int, default=200, help="PPO: batches of completions")
    add("--epochs", type=int, default=4, help="PPO: over each batch of completions")
    add("--beta", type=float, default=0.05, help="PPO: price of a nat of KL, in deviations of the score")
    add("--stages", type=int, default=10, help="RAFT")
    add("--stage-prompts", type=int, default=2048, help="RAFT: prompts per stage")
    add("--samples", type=int, default=8, help="RAFT: completions per prompt")
    add("--learning-rate", type=float, help="default: PPO 1e-5, RAFT 2e-4")
    add("--save-steps", type=int, default=50)
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


# The plan


def gib_of(size: str) -> float:
    """GiB of a card, as `trl-ext plan --gpu` reads it; a plain number is GiB.

    >>> gib_of("23.5"), round(gib_of("24GB"), 2)
    (23.5, 23.52)
    """
    try:
        return float(size)
    except ValueError:
        pass
    try:
        return card_bytes(size) / GIB
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{size!r}: expected e.g. 24GB as sold, or 23.5, in GiB") from error


def plans(options) -> dict[str, MemoryPlan]:
    """What each stage needs, in the largest micro-batches that fit; none for a model that nothing can be planned for.

    Raises:
        ValueError: For such a model, where a plan is all that is asked for.
    """
    try:
        return {stage: plan_of(stage, options) for stage in ("sft", "reward", options.method)}
    except ValueError as reason:
        if options.plan_only:
            raise
        print(f"no memory plan: {reason}")
        return {}


def plan_of(stage: str, options) -> MemoryPlan:
    tried, card = [], on_gpu() or options.card is not None  # planned for a card, wherever the plan is made
    for micro_batch in halves(options.batch):
        plan = memory_plan(
            options.model,
            stage,
            bits=options.bits,
            dtype="bfloat16" if card else "float32",
            lora=options.rank,
            batch=options.batch,
            micro_batch=micro_batch,
            prompt_length=options.prompt_length,
            completion_length=options.completion_length,
            gradient_checkpointing=card,
            reentrant=options.bits == 8,
            value_model=True,
            imitation=options.imitation_coef > 0,
            num_generations=options.samples if stage == "raft" else 1,
            device="cuda" if card else "cpu",
        )
        tried.append(plan)
        if options.card is None or plan.verdict(options.card * GIB) == "fits":
            return plan
    return tried[-1]


def halves(number: int) -> list[int]:
    """A number and its divisors by halving.

    >>> halves(12), halves(0)
    ([12, 6, 3], [0])
    """
    return [number, *halves(number // 2)] if number and number % 2 == 0 else [number]


def check_plans(found: dict[str, MemoryPlan], options) -> None:
    """Print what each stage needs, and end here if one does not fit."""
    for stage, plan in found.items():
        verdict = "" if options.card is None else f" – {plan.verdict(options.card * GIB)} {options.card:.1f} GiB"
        print(f"{stage}: micro-batch {plan.settings.micro_batch}, {plan.line()}{verdict}".replace("fits", "fits into"))
    if found and options.card is not None and not on_gpu():
        print("there is no GPU here: this is the plan for a card; what is trained here is trained on the CPU")
    if options.card is None or options.force:
        return
    bad = [stage for stage, plan in found.items() if plan.verdict(options.card * GIB) == "does not fit"]
    if bad:
        largest = max((found[stage] for stage in bad), key=lambda plan: plan.peak)
        changes = "; ".join(
            f"{advice.change}, {remedy(advice)} ({advice.cost})" for advice in largest.advice(options.card * GIB)
        )
        raise SystemExit(
            f"train_7b_24gb.py --card {options.card:.1f}: expected stages that fit, and by the plan {', '.join(bad)} "
            f"does not. What would help: {changes or 'nothing known'}. Or --force it."
        )


def remedy(advice: Advice) -> str:
    """An option of this program, whose checkpoints are reentrant in 8 bits, or where it has none the line of a script."""
    option, *value = advice.flag.removesuffix(" --reentrant").split()
    return " ".join([option, *value]) if option in ("--bits", "--batch", "--completion-length") else advice.config


# Running them


def run_stage(name: str, base: SharedBase, options, plan: MemoryPlan | None) -> dict:
    """Train a stage and save its adapter, or take what an earlier run has finished.

    Returns:
        Its record, which is in its `stage.json`.
    """
    folder = options.output_dir / name
    path = folder / "stage.json"
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        check_same(name, record["settings"], settings_of(options))
        print(f"{name}: finished before, {folder} is used as it is")
        return record
    if name in SAME:  # PPO and RAFT look after their folders themselves
        run = {key: settings_of(options)[key] for key in SAME[name]}
        claim_folder(folder, BEGUN, run, names=CHECKPOINT, call=f"train_7b_24gb.py, stage {name!r}")
    print(f"{name}: begins", flush=True)
    set_seed(options.seed)  # of new adapters; trainers seed themselves
    trainer, start = STAGES[name](base, options, folder, plan), time.perf_counter()
    if plan is not None and hasattr(trainer, "memory"):
        trainer.memory.says_plan = False  # it was said before the first stage
    begin_measuring()
    trainer.train(resume_from_checkpoint=resumed_from(name, folder))
    if name == "reward":
        trainer.evaluate()
    trainer.save_model()
    record = {
        "settings": settings_of(options),
        "hours": round((time.perf_counter() - start) / 3600, 4),
        "micro_batch": trainer.args.per_device_train_batch_size,
        "planned_gib": None if plan is None else gib(plan.peak),
        "peak_gib": peak_of(name, trainer),
        "curve": curve(trainer.state.log_history, CURVES[name]),
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    return record


def resumed_from(name: str, folder: Path) -> str | bool | None:
    """What a stage's trainer is told to go on from; trl_ext's own find it themselves."""
    return newest_complete_checkpoint(folder) if name == "sft" else True


def settings_of(options) -> dict:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def check_same(name: str, then: dict, now: dict) -> None:
    """Raise a ValueError if a finished stage was trained otherwise than is asked for now."""
    for key in SAME.get(
        name, [key for key in now if key not in ("card", "force", "plan_only", "save_steps", "output_dir")]
    ):
        if then[key] != now[key]:
            option = f"--{key.replace('_', '-')}"
            raise ValueError(
                f"train_7b_24gb.py: stage {name!r} in {now['output_dir']!r} was finished with {option} {then[key]}, and "
                f"now it is {now[key]}. Give the former, another --output-dir, or delete the stage's folder and those "
                "after it."
            )


def begin_measuring() -> None:
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()


def peak_of(name: str, trainer) -> dict | str:
    """Highest allocated and reserved memory: of SFT as a whole, of trl_ext's trainers in each phase."""
    if not on_gpu():
        return "not measured on a CPU"
    if name == "sft":
        measured = {"train": (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())}
    else:
        measured = trainer.memory.measured
    return {phase: {"allocated": gib(a), "reserved": gib(r)} for phase, (a, r) in measured.items()}


def gib(size: int) -> float:
    return round(size / GIB, 3)


def curve(log: list[dict], names: tuple[str, ...]) -> dict[str, list]:
    """Of each measure its points (step, value)."""
    points = {name: [(entry["step"], round(entry[name], 5)) for entry in log if name in entry] for name in names}
    return {name: values for name, values in points.items() if values}


def evidence(options, records: dict[str, dict]) -> dict:
    """All that a reader needs to believe a run."""
    card = "CPU"
    if on_gpu():
        properties = torch.cuda.get_device_properties(0)
        card = f"{properties.name}, {gib(properties.total_memory)} GiB"
    return {
        "card": card,
        "versions": {name: version(name) for name in PACKAGES},
        "settings": settings_of(options),
        "stages": {name: {k: v for k, v in record.items() if k != "settings"} for name, record in records.items()},
    }


def padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer without pad token one that it has already."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def main(arguments: list[str] | None = None) -> dict:
    options = parse(arguments)
    check_seed(options.seed, call=f"--seed {options.seed}")
    if options.card is None and on_gpu():
        options.card = torch.cuda.mem_get_info()[1] / GIB
    found = plans(options)
    check_plans(found, options)
    if options.plan_only:
        return {}
    base = SharedBase.from_pretrained(
        options.model,
        bits=None if options.bits == 16 else options.bits,
        llm_int8_threshold=options.int8_threshold,
    )
    padded(base.tokenizer)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    records = {}
    for name in ("sft", "reward", options.method):
        records[name] = run_stage(name, base, options, found.get(name))
        gc.collect()  # the stage's roles and optimiser
        if on_gpu():
            torch.cuda.empty_cache()
    row = evidence(options, records)
    (options.output_dir / "evidence.json").write_text(json.dumps(row) + "\n", encoding="utf-8")
    print(f"one line of evidence, to send: {options.output_dir / 'evidence.json'}")
    return row


if __name__ == "__main__":
    stopped = "The same command goes on: finished stages are kept, the last one from its newest checkpoint."
    with ends_in_one_line("train_7b_24gb.py", when_stopped=stopped, folder=Path(__file__).parent):
        main()
