"""ReST: a large sample each stage, learned from several times over rising thresholds (Gulcehre et al., 2023, arXiv:2308.08998).

    python examples/methods/rest.py --model_name_or_path my-sft --prompts prompts.jsonl --held_out held-out.jsonl \\
        --reward my-reward-model --score_map running --thresholds 0.5 0.7 0.8 0.9 --num_stages 2 --output_dir rest

Thresholds are of scores in [0, 1]; `--score_map running` maps a reward model's there. Measures of held-out prompts are
printed at the end, before and after. Flags are ReSTConfig's, those of TRL's ModelConfig, and the ones below; without a card
add --use_cpu --bf16 false.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from trl import ModelConfig, TrlParser, get_peft_config

from trl_ext import ReSTConfig, ReSTTrainer, evaluate


@dataclass
class Options:
    prompts: str = field(metadata={"help": "JSON lines with prompt"})
    held_out: str = field(metadata={"help": "the same, of prompts that are not trained on"})
    reward: str = field(metadata={"help": "a reward model"})


def main(options: Options, args: ReSTConfig, model: ModelConfig) -> None:
    files = {"train": options.prompts, "held_out": options.held_out}
    prompts = load_dataset("json", data_files=files)
    trainer = ReSTTrainer(
        model=model.model_name_or_path,
        reward_funcs=options.reward,
        args=args,
        train_dataset=prompts["train"],
        eval_dataset=prompts["held_out"],
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=True)  # begins, or goes on with what a killed run has left
    trainer.save_model()
    before, after = (
        evaluate(
            policy,
            prompts["held_out"],
            options.reward,
            reference=model.model_name_or_path,
            max_completion_length=args.max_completion_length,
        )
        for policy in (model.model_name_or_path, args.output_dir)
    )
    print(after)
    print(after.compare(before))


if __name__ == "__main__":
    main(*TrlParser((Options, ReSTConfig, ModelConfig)).parse_args_and_config())
