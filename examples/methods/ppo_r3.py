"""R³ in PPO: a reward without a reward model (Kim and Seo, 2024, arXiv:2402.03469).

    python examples/methods/ppo_r3.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --prompts prompts.jsonl \\
        --output_dir r3 --max_completion_length 256 --use_peft --lora_target_modules all-linear

Rows have `prompt`, those with one right answer also `reference`, and perhaps `query_type` ('open' or 'closed'), which the
classifier that ships writes where it is missing. Flags are PPOConfig's, those of TRL's ModelConfig, and the ones below;
without a card add --use_cpu --bf16 false.
"""

from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from trl import ModelConfig, TrlParser, get_peft_config

from trl_ext import PPOConfig, PPOTrainer, RewardDiagnostics, calibrate_relevance, label_query_types


@dataclass
class Options:
    prompts: str = field(metadata={"help": "JSON lines with prompt, reference, perhaps query_type"})
    encoder: str = field(default="facebook/contriever", metadata={"help": "facebook/mcontriever beyond English"})


def typed_prompts(path: str) -> Dataset:
    """Rows whose type is known; R³ has no route for the others, and none for a closed question without its answer."""
    rows = load_dataset("json", data_files=path, split="train")
    if "reference" not in rows.column_names:
        raise SystemExit(
            f"{path}: no row has a `reference`; R³ is fitted to at least 50. Add right answers to such questions."
        )
    if "query_type" not in rows.column_names:
        rows = label_query_types(rows)
    usable = rows.filter(
        lambda row: row["query_type"] == "open" or (row["query_type"] == "closed" and row["reference"])
    )
    print(f"{len(usable)} of {len(rows)} prompts have a type and, where they are closed, a reference")
    return usable


def main(options: Options, args: PPOConfig, model: ModelConfig) -> None:
    prompts = typed_prompts(options.prompts)
    # which constants fit this encoder, and whether it tells relevant from irrelevant in this language at all
    calibration = calibrate_relevance(options.encoder, prompts.filter(lambda row: bool(row["reference"])))
    trainer = PPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=calibration.reward(),
        args=args,
        train_dataset=prompts,
        peft_config=get_peft_config(model),
    )
    trainer.add_callback(RewardDiagnostics(trainer))  # is it length that is being paid?
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((Options, PPOConfig, ModelConfig)).parse_args_and_config())
