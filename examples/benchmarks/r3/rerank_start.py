"""The policy of `rerank`: a base model after a short SFT with LoRA on short answers, merged.

    python -m examples.benchmarks.r3.rerank_start --model gemma-3-270m --data DATA --output-dir POOL --steps 2
    python -m examples.benchmarks.r3.rerank_start --model gemma-3-270m --data DATA --output-dir POOL

The first tells what a step costs, and what all would. POOL gets `start/`, the model, and `prompts.jsonl`, what is then
sampled by `trl-ext generate`; its README has the command.
"""

import argparse
import json
import time
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from examples.benchmarks.r3.rerank_data import load_prompts

LONGEST = 64  # tokens of a completion, its end included
BATCH = 8


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="path or hub id of a base model without a chat template")
    add("--data", type=Path, required=True, help="folder with instr_r3 and instr_misc")
    add("--output-dir", type=Path, required=True)
    add("--seed", type=int, default=0)
    add("--rows", type=int, default=200, help="of SFT, at most")
    add("--steps", type=int, default=-1, help="stop after so many, and save nothing; -1: one pass")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    quiet()
    prompts, tokenizer = load_prompts(options.data, options.seed), AutoTokenizer.from_pretrained(options.model)
    fitting = [
        {"prompt": row["prompt"], "completion": row["reference"]}
        for row in prompts.start
        if len(tokenizer(row["reference"])["input_ids"]) < LONGEST
    ]
    rows = fitting[: options.rows]
    trainer, seconds = train(options, rows)
    steps = trainer.state.global_step
    every = -(-len(rows) // BATCH)
    print(
        f"{len(rows)} rows, {steps} steps, {seconds / steps:.1f} CPU s each; {every} are one pass: {seconds / steps * every:.0f} s"
    )
    if options.steps > 0:
        return
    trainer.model.merge_and_unload().float().save_pretrained(options.output_dir / "start")
    tokenizer.save_pretrained(options.output_dir / "start")
    lines = [json.dumps(row, ensure_ascii=False) for row in prompts.pool]
    (options.output_dir / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def train(options: argparse.Namespace, rows: list[dict]) -> tuple[SFTTrainer, float]:
    """One pass over the rows, with LoRA on all linear layers; and its CPU seconds."""
    config = SFTConfig(
        **on_cpu(options.output_dir / "sft", options.seed),
        per_device_train_batch_size=BATCH,
        learning_rate=5e-4,
        lr_scheduler_type="cosine",
        num_train_epochs=1,
        max_steps=options.steps,
        max_length=256,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="bfloat16")
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), peft_config=lora)
    trainer.remove_callback(PrinterCallback)
    began = time.process_time()
    trainer.train()
    return trainer, time.process_time() - began


if __name__ == "__main__":
    main()
