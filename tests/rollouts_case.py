"""Generators for tests of rollouts, and a GRPO run small enough to look at each of its seeds.

As a script, one of two processes: a rollout of its own rows, written beside the other's.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from ppo_case import even_letters
from tiny import ON_CPU, byte_tokenizer, tiny_llama
from trl import GRPOConfig, GRPOTrainer

from trl_ext.generation.rollouts import vllm_rollouts
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.sequences.samples import Sample
from trl_ext.trainer_kit.seeds import stable_seed

ROWS = ["say it", "say it", "why?", "why?"]


class Replaying:
    """Gives the same tokens to the same seed and row, whatever the policy is, and remembers what it was asked."""

    name = "replaying"

    def __init__(self, **changes):
        self.changes, self.asked, self.policies = changes, [], []

    def settings(self):
        return {"generator": self.name}

    def generate(self, parts, sampling, policy):
        self.policies.append(policy)
        for part in parts:
            self.asked.append((sampling, part))
            rows = zip(part.rows, part.prompts, strict=True)
            yield part, [self.sample(row, prompt, sampling, policy) for row, prompt in rows]

    def sample(self, row, prompt, sampling, policy) -> Sample:
        seed = stable_seed(sampling.seed, row)
        stream = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 50, (sampling.max_completion_length,), generator=stream).tolist()
        text = policy.completion_texts([prompt], [ids])[0]
        sample = Sample(
            row=row, sample=0, prompt=prompt, completion=text, prompt_ids=policy.prompt_ids(prompt),
            completion_ids=ids, ended=False, generator=self.name, seed=seed,
        )  # fmt: skip
        return sample | self.changes

    def seeds(self) -> list[int]:
        return [sampling.seed for sampling, _ in self.asked]


def grpo_trainer(folder, generator, *, prompts=("say it", "why?") * 8, model=None, **options) -> GRPOTrainer:
    """Two samples of each of two prompts per rollout, each of which is one step."""
    settings = ON_CPU | {"output_dir": str(folder), "num_generations": 2, "max_completion_length": 5, "max_steps": 3}
    others = {name: options.pop(name) for name in ("eval_dataset", "callbacks", "peft_config") if name in options}
    return GRPOTrainer(
        model=tiny_llama(byte_tokenizer()) if model is None else model,
        reward_funcs=even_letters,
        args=GRPOConfig(**settings | options),
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=byte_tokenizer(),
        rollout_func=None if generator is None else vllm_rollouts(generator),
        **others,
    )


def rollout(trainer, prompts=ROWS) -> dict:
    trainer.model.train()
    return trainer.rollout_func(list(prompts), trainer)


if __name__ == "__main__":
    from two_processes import leave

    folder = Path(sys.argv[1])
    trainer = grpo_trainer(folder / "run", TransformersGenerator(), per_device_train_batch_size=2)
    process = trainer.accelerator.process_index
    mine = rollout(trainer, ROWS[2 * process :][:2])["completion_ids"]
    (folder / f"{process}.json").write_text(json.dumps(mine))
    fails = vllm_rollouts(Replaying(**({} if process else {"completion_ids": []})))
    error = None
    try:
        fails(["a"], trainer)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    (folder / f"{process}.error").write_text(str(error))
    leave()
