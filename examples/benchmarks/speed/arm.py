"""What the arms of `ppo_vs_trl_1_12.py` have in common, each in an environment of its own: nothing of trl_ext is imported."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import trl
from datasets import disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from examples.benchmarks.speed.meter import resident_bytes


def main(run: Callable[[dict, int], dict]) -> None:
    """Read a task, run it, write what it measured: the two files are the command's arguments."""
    imports = resident_bytes()
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task["threads"])
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    Path(sys.argv[2]).write_text(json.dumps(run(task, imports) | {"versions": versions}))


def prompts_of(task: dict) -> list[str]:
    return json.loads(Path(task["folder"], "prompts.json").read_text())


def scorer(task: dict, name: str) -> PreTrainedModel:
    """A reward or value model of the task's folder."""
    return AutoModelForSequenceClassification.from_pretrained(Path(task["folder"], name), num_labels=1)


def adapter(task: dict) -> LoraConfig | None:
    rank = task["lora"]
    if not rank:
        return None
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
