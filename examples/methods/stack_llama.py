"""StackLLaMA's recipe, SFT → reward model → PPO, on one frozen base: each stage trains an adapter, and the base is loaded once.

    python examples/methods/stack_llama.py --model meta-llama/Llama-2-7b-hf --bits 8 --answers sft.jsonl --pairs pairs.jsonl \\
        --prompts prompts.jsonl --output-dir stack-llama --prompt-length 512 --completion-length 128

`answers` has prompt and completion, `pairs` prompt, chosen and rejected, `prompts` prompt. What is there already is not trained
again. Whether it fits: `trl-ext plan llama-2-7b --method ppo --bits 8 --gpu 24GB`.
"""

from argparse import ArgumentParser
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, PPOConfig, PPOTrainer, SharedBase


def parse(arguments: list[str] | None = None):
    parser = ArgumentParser()
    add = parser.add_argument
    add("--model", required=True)
    add("--bits", type=int, choices=[4, 8], help="of the base; default: as it is")
    for name in ("--answers", "--pairs", "--prompts"):
        add(name, required=True, help="JSON lines")
    add("--output-dir", type=Path, required=True)
    add("--prompt-length", type=int, default=512)
    add("--completion-length", type=int, default=128)
    add("--batch", type=int, default=32, help="rows per step, and completions per rollout")
    add("--micro-batch", type=int, default=2)
    add("--max-steps", type=int, default=-1, help="of each stage; default: one pass over its data")
    return parser.parse_args(arguments)


def rows(path: str) -> Dataset:
    return load_dataset("json", data_files=path, split="train")


def main(options) -> None:
    base, gpu = SharedBase.from_pretrained(options.model, bits=options.bits), torch.cuda.is_available()
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    sft, reward, ppo = (options.output_dir / name for name in ("sft", "reward", "ppo"))
    length = options.prompt_length + options.completion_length
    common = {
        "per_device_train_batch_size": options.micro_batch,
        "gradient_accumulation_steps": options.batch // options.micro_batch,
        "gradient_checkpointing": gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "use_cpu": not gpu,
        "max_steps": options.max_steps,
        "num_train_epochs": 1,
        "report_to": "none",
    }
    if not (sft / "adapter_config.json").is_file():
        args = SFTConfig(sft, learning_rate=1e-4, max_length=length, **common)
        fit(SFTTrainer(base.policy(lora), args, train_dataset=rows(options.answers), processing_class=base.tokenizer))
    if not (reward / "adapter_config.json").is_file():
        args = ImitationRewardConfig(reward, learning_rate=2e-5, max_length=length, **common)
        fit(ImitationRewardTrainer(base.reward_model(lora).module, args, train_dataset=rows(options.pairs)))
    args = PPOConfig(ppo, learning_rate=1.4e-5, max_completion_length=options.completion_length, **common)
    policy, critic = base.policy(init_from=sft), base.value_model(init_from=reward)
    fit(PPOTrainer(policy, base.reward_model(reward), args, rows(options.prompts), value_model=critic))


def fit(trainer) -> None:
    trainer.train()
    trainer.save_model()  # an ordinary adapter


if __name__ == "__main__":
    main(parse())
