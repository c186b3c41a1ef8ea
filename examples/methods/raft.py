"""RAFT: sample, keep the best, fine-tune on it, again (Dong et al., 2023, arXiv:2304.06767).

    python examples/methods/raft.py --model_name_or_path my-sft --prompts prompts.jsonl --reward my-reward-model \\
        --output_dir raft --num_stages 4 --num_generations 8 --max_completion_length 128

Detoxification: the reward is how sure a classifier is of one of its labels, and each prompt is the beginning of a text

    python examples/methods/raft.py --model_name_or_path my-model --prompts allenai/real-toxicity-prompts --prompt_field text \\
        --reward facebook/roberta-hate-speech-dynabench-r4-target --label nothate --output_dir detoxified

Flags are RAFTConfig's, those of TRL's ModelConfig, and the ones below; without a card add --use_cpu --bf16 false. Begun again with
the same command it goes on where it was.
"""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import pipeline
from trl import ModelConfig, TrlParser, get_peft_config

from trl_ext import RAFTConfig, RAFTTrainer


@dataclass
class Options:
    prompts: str = field(metadata={"help": "JSON lines, or the id of a data set of the hub"})
    reward: str = field(metadata={"help": "a reward model, or with --label a classifier"})
    prompt_field: str | None = field(
        default=None, metadata={"help": "where `prompt` is a record: which of its fields"}
    )
    label: str | None = field(default=None, metadata={"help": "the classifier's label that is paid for"})


def load_prompts(name: str, prompt_field: str | None) -> Dataset:
    data = {"path": "json", "data_files": name} if Path(name).is_file() else {"path": name}
    rows = load_dataset(**data, split="train")
    return rows.map(lambda row: {"prompt": row["prompt"][prompt_field]}) if prompt_field else rows


def sure_of(label: str, classifier: str, *, device: str | None):
    """A reward function: the probability that a classifier gives a label, of the completion alone."""
    classify = pipeline("text-classification", model=classifier, top_k=None, device=device)
    if label not in classify.model.config.label2id:
        raise ValueError(f"--label: expected one of {list(classify.model.config.label2id)}, got {label!r}.")

    def reward(*, completions: list[str], **columns) -> list[float]:
        found = classify(completions, truncation=True, batch_size=32)
        return [next(one["score"] for one in each if one["label"] == label) for each in found]

    reward.__name__ = label
    return reward


def main(options: Options, args: RAFTConfig, model: ModelConfig) -> None:
    device = "cpu" if args.use_cpu else None
    trainer = RAFTTrainer(
        model=model.model_name_or_path,
        reward_funcs=sure_of(options.label, options.reward, device=device) if options.label else options.reward,
        args=args,
        train_dataset=load_prompts(options.prompts, options.prompt_field),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=True)  # begins, or goes on with what a killed run has left
    trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((Options, RAFTConfig, ModelConfig)).parse_args_and_config())
