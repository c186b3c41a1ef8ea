"""Does a run that is killed at random moments end like one that never was? Kills with SIGKILL, resumes, compares.

    python -m examples.benchmarks.self_training.kill_and_resume --kills 50
    python -m examples.benchmarks.self_training.kill_and_resume --kills 10 --method rest --bits 8

A run is RAFT or ReST on the demo's policy with LoRA (`--bits 8`: on an 8-bit base). It is killed after a random time,
resumed with `resume_from_checkpoint=True`, killed again, at most three times, and then left to finish. Prints where
the kills fell, and exits with 1 unless after every kill no finished part was sampled again and the run ended with the
weights and the parquet files, bit for bit, of a run that was left alone.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from examples.benchmarks.common.killed_runs import SAMPLED_LOG, LoggedGenerator, digest
from trl_ext import RAFTConfig, RAFTTrainer, ReSTConfig, ReSTTrainer
from trl_ext.demo.answers import sft_rows
from trl_ext.demo.world import ASSETS, load_world
from trl_ext.trainer_kit.whole_files import PARTIAL

KILLS_PER_RUN = 3


def vowel_share(completions, **columns) -> list[float]:
    """Something to learn."""
    return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in completions]


def run(folder: Path, method: str, bits: int | None) -> None:
    """The run from wherever it stands to its end."""
    trainer_class, config_class = (RAFTTrainer, RAFTConfig) if method == "raft" else (ReSTTrainer, ReSTConfig)
    options = {} if method == "raft" else {"thresholds": [0.2, 0.6], "score_map": "running", "eval_strategy": "steps"}
    options |= {"beta": 0.01} if method == "raft" else {"eval_steps": 2, "keep_best": True, "improve_patience": 2}
    path = str(ASSETS / "policy")
    quantization = BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else None
    rows = Dataset.from_list(sft_rows(load_world(), count=64, seed=0))
    trainer = trainer_class(
        AutoModelForCausalLM.from_pretrained(path, quantization_config=quantization),
        vowel_share,
        config_class(
            output_dir=str(folder / "run"),
            num_stages=3,
            stage_batch_size=32,
            num_generations=4,
            max_completion_length=24,
            prompts_per_part=8,
            per_device_train_batch_size=8,
            save_steps=3,
            logging_steps=100,
            learning_rate=1e-3,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            **options,
        ),
        rows,
        rows.select(range(16)) if method == "rest" else None,
        generator=LoggedGenerator(folder / SAMPLED_LOG),
        processing_class=AutoTokenizer.from_pretrained(path),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(folder / "final")


def in_child(call, *args) -> int:
    """Start a call in a forked process, which has all imports already; its process id."""
    process = os.fork()
    if process == 0:
        with open(os.devnull, "w") as silence:
            os.dup2(silence.fileno(), 1)
            os.dup2(silence.fileno(), 2)
        try:
            call(*args)
            os._exit(0)
        except BaseException:
            import traceback

            (args[0] / "error.txt").write_text(traceback.format_exc())
            os._exit(1)
    return process


def finished(process: int, *, within: float | None) -> bool:
    """Wait for a child; False if it still ran after `within` seconds and was killed."""
    deadline = None if within is None else time.monotonic() + within
    while deadline is None or time.monotonic() < deadline:
        done, status = os.waitpid(process, 0 if deadline is None else os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"a run failed by itself, see error.txt (status {status})")
            return True
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def where(folder: Path) -> str:
    """What the run was at when it was killed, by what lies on the disk."""
    output = folder / "run"
    if any(output.rglob(f"*{PARTIAL}")):
        return "while a file of a Grow was written"
    checkpoints = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if checkpoints and not (checkpoints[-1] / "trainer_state.json").exists():
        return "while a checkpoint was written"
    if any(output.glob("grow-*/sampled-*")):
        return "sampling or scoring, between parts"
    if any(path.is_dir() for path in output.glob("grow-*")):
        return "scoring or joining"
    if not any(output.glob("grow-*.parquet")):
        return "before the first part"
    return "Improve, or between stages"


def finished_parts(folder: Path) -> int:
    return len(list((folder / "run").glob("grow-*/*.parquet")))


def killed_run(folder: Path, args: argparse.Namespace, rng: random.Random, seconds: float, kills: int) -> list[str]:
    """Kill a run so many times, then let it finish; where the kills fell."""
    places: list[str] = []
    while len(places) < kills:
        process = in_child(run, folder, args.method, args.bits)
        if finished(process, within=rng.uniform(0.05, 0.9) * seconds):
            break
        places.append(where(folder))
    if not (folder / "final").exists():
        finished(in_child(run, folder, args.method, args.bits), within=None)
    return places


def sampled_twice(folder: Path, kills: int) -> int:
    """Parts that were sampled again after they were on disk: every kill may cost the one that it interrupted."""
    counts = Counter((folder / SAMPLED_LOG).read_text().splitlines())
    return max(0, sum(counts.values()) - len(counts) - kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--method", choices=("raft", "rest"), default="raft")
    parser.add_argument("--bits", type=int, choices=(8,), default=None)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # before any thread is there: children are forked
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    rng, places, wrong = random.Random(args.seed), Counter(), 0
    with tempfile.TemporaryDirectory() as root:
        alone = Path(root) / "alone"
        alone.mkdir()
        start = time.monotonic()
        finished(in_child(run, alone, args.method, args.bits), within=None)
        seconds, expected = time.monotonic() - start, digest(alone)
        print(f"left alone: {seconds:.1f} s, {len(expected)} files to compare", flush=True)
        while places.total() < args.kills:
            folder = Path(tempfile.mkdtemp(dir=root))
            kills = killed_run(folder, args, rng, seconds, min(KILLS_PER_RUN, args.kills - places.total()))
            same, again = digest(folder) == expected, sampled_twice(folder, len(kills))
            wrong += 0 if same and not again else len(kills)
            places.update(kills)
            print(
                f"{places.total():3} kills; this run {'identical' if same else 'DIFFERENT'}, {again} parts sampled again",
                flush=True,
            )
    for place, count in places.most_common():
        print(f"{count:3} {place}")
    print(f"{places.total() - wrong} of {places.total()} kills ended in identical weights and parquet files")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
