"""What TRL 1.12's own PPOTrainer computes, as numbers that `tests/test_parity_trl_1_12.py` compares ours with.

    pip install trl==1.12.0 requests  # in an environment of its own
    python tests/trl_1_12_numbers.py tests/fixtures/trl_1_12.json

Runs one update of its trainer per case, on models whose weights are a formula, and writes down the local variables of
its `train()` at two points: where it whitens advantages, and where it calls backward. Nothing of it is copied here.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import trl
from accelerate import Accelerator
from datasets import Dataset
from parity_models import causal_lm, scorer
from tiny import byte_tokenizer
from transformers import TrainingArguments, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

CASES = {
    "full_length": {},
    "ended": {"stop_token": "eos", "missing_eos_penalty": 1.0},
    "k3": {"stop_token": "eos", "kl_estimator": "k3", "kl_coef": 0.2, "gamma": 0.9, "lam": 0.8},
    "pad_is_eos": {"stop_token": "eos"},
}
PAD = 0
PROMPTS = [[3, 4, 5], [6, 7, 8], [9, 10, 11], [4, 8, 3], [5, 5, 6], [10, 3, 7]]
SETTINGS = {
    "per_device_train_batch_size": len(PROMPTS),
    "gradient_accumulation_steps": 1,
    "total_episodes": len(PROMPTS),
    "response_length": 6,
    "temperature": 1.0,
    "num_sample_generations": 0,
    "num_ppo_epochs": 4,
    "learning_rate": 0.1,
    "cliprange_value": 0.05,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
ROLLOUT = (
    "queries", "responses", "scores", "logprobs", "ref_logprobs", "values", "kl", "padding_mask", "padding_mask_p1",
    "rewards", "advantages", "whitened",
)  # fmt: skip
EPOCH = (
    "micro_batch_inds",
    "new_logprobs",
    "vpred",
    "mb_advantage",
    "mb_return",
    "ratio",
    "pg_loss",
    "vf_loss",
    "loss",
)


def numbers(values: dict, names: tuple[str, ...]) -> dict:
    return {name: rounded(torch.as_tensor(values[name]).tolist()) for name in names}


def rounded(value):
    """Nine digits, which are all that a float32 has."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else int(value)


def is_telling(case: str, seen: dict) -> bool:
    """Whether the samples show what the case is for, and TRL's padding is not a pad token that was sampled."""
    responses = torch.tensor(seen["rollout"]["responses"])
    eos = byte_tokenizer().eos_token_id
    if case == "full_length":
        return not ((responses == eos) | (responses == PAD)).any()
    lengths = [(row.index(eos) if eos in row else len(row)) for row in responses.tolist()]
    sampled_pad = any(PAD in row[:length] for row, length in zip(responses.tolist(), lengths, strict=True))
    return not sampled_pad and len(set(lengths)) >= 4 and max(lengths) == responses.size(1)


def telling_run(case: str) -> dict:
    """The run of the first seed whose samples show what the case is for."""
    runs = ({"seed": seed} | run(case, seed) for seed in range(500))
    return next(seen for seen in runs if is_telling(case, seen))


def run(case: str, seed: int) -> dict:
    """One update of TRL's trainer, and what it held."""
    set_seed(seed)  # TRL seeds torch, and shuffles with numpy
    seen = {"rollout": {}, "epochs": []}
    whiten, backward = ppo_trainer.masked_whiten, Accelerator.backward

    def seeing_whiten(values, mask, *args, **kwargs):
        whitened = whiten(values, mask, *args, **kwargs)
        seen["rollout"] = numbers(sys._getframe(1).f_locals | {"whitened": whitened}, ROLLOUT)
        return whitened

    def seeing_backward(accelerator, loss, **kwargs):
        seen["epochs"].append(numbers(sys._getframe(1).f_locals, EPOCH))
        return backward(accelerator, loss, **kwargs)

    ppo_trainer.masked_whiten, Accelerator.backward = seeing_whiten, seeing_backward
    try:
        trainer = make_trainer(case, seed)
        trainer.train()
    finally:
        ppo_trainer.masked_whiten, Accelerator.backward = whiten, backward
    options = {name: getattr(trainer.args, name) for name in ("kl_coef", "kl_estimator", "gamma", "lam", "cliprange")}
    options |= {name: getattr(trainer.args, name) for name in ("cliprange_value", "vf_coef", "missing_eos_penalty")}
    seen |= {"options": options, "learning_rate": trainer.args.learning_rate}
    if case == "full_length":
        for name, model in (("policy", trainer.policy_model), ("value", trainer.value_model)):
            weights = dict(model.named_parameters())
            seen[f"{name}_after"] = numbers(weights, tuple(weights))
    return seen


def make_trainer(case: str, seed: int) -> PPOTrainer:
    pad_is_eos = case == "pad_is_eos"
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(output_dir=folder, use_cpu=True, seed=seed, **SETTINGS | CASES[case])
        return PPOTrainer(
            args=args,
            processing_class=byte_tokenizer(pad_is_eos=pad_is_eos),
            model=causal_lm("policy", pad_is_eos=pad_is_eos),
            ref_model=causal_lm("reference", pad_is_eos=pad_is_eos),
            reward_model=scorer("reward", pad_is_eos=pad_is_eos),
            value_model=scorer("value", pad_is_eos=pad_is_eos),
            train_dataset=Dataset.from_dict({"input_ids": PROMPTS}),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    if not trl.__version__.startswith("1.12."):
        raise SystemExit(f"trl_1_12_numbers.py: expected trl 1.12, got {trl.__version__}. pip install trl==1.12.0")
    torch.set_num_threads(1)
    inherited = {field.name for field in fields(TrainingArguments)} - set(PPOConfig.__annotations__)
    options = sorted({field.name for field in fields(PPOConfig)} - inherited)
    result = {"versions": {"trl": trl.__version__, "torch": torch.__version__}, "options": options}
    result["cases"] = {case: telling_run(case) for case in CASES}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB, {len(options)} options")


if __name__ == "__main__":
    main()
