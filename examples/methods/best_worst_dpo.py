"""Best-and-worst pairs of one's own samples, into TRL's own `DPOTrainer`.

    python examples/methods/best_worst_dpo.py --model_name_or_path my-sft --prompts prompts.jsonl --reward my-reward-model \\
        --output_dir dpo --samples 8 --max_completion_length 128 --use_peft --lora_target_modules all-linear

Each prompt is answered several times, a reward scores the answers, and the best and the worst become a pair, which
`pairs.jsonl` in the output folder keeps. Prompts all of whose answers score alike make none. Flags are DPOConfig's, those
of TRL's ModelConfig, and the ones below; without a card add --use_cpu --bf16 false.
"""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from datasets import Dataset, load_dataset
from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser, get_peft_config

from trl_ext import best_of_n


@dataclass
class Options:
    prompts: str = field(metadata={"help": "JSON lines with prompt"})
    reward: str = field(metadata={"help": "a reward model"})
    samples: int = field(default=8, metadata={"help": "of each prompt"})
    max_completion_length: int = field(default=256, metadata={"help": "in tokens"})


def best_worst(samples: Dataset) -> Dataset:
    """A pair of each prompt, by the column `proxy`: what the reward gave."""
    pairs = []
    for _, rows in groupby(samples, key=lambda row: row["row"]):
        ranked = sorted(rows, key=lambda row: row["proxy"])
        worst, best = ranked[0], ranked[-1]
        if best["proxy"] > worst["proxy"]:
            pairs.append({"prompt": best["prompt"], "chosen": best["completion"], "rejected": worst["completion"]})
    return Dataset.from_list(pairs)


def main(options: Options, args: DPOConfig, model: ModelConfig) -> None:
    prompts = load_dataset("json", data_files=options.prompts, split="train")
    length = options.max_completion_length
    found = best_of_n(
        model.model_name_or_path,
        options.reward,
        prompts,
        n=options.samples,
        max_completion_length=length,
        seed=args.seed,
    )
    pairs = best_worst(found.samples)
    print(f"{len(pairs)} pairs of {len(prompts)} prompts")
    if not len(pairs):
        raise SystemExit(
            "All answers to each prompt score alike, so there is no pair. Give more --samples, or another --reward."
        )
    pairs.to_json(Path(args.output_dir) / "pairs.jsonl")
    trainer = DPOTrainer(
        model=model.model_name_or_path, args=args, train_dataset=pairs, peft_config=get_peft_config(model)
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((Options, DPOConfig, ModelConfig)).parse_args_and_config())
