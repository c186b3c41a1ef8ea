"""What the PPO benchmarks train: made models of Qwen2's shape for speed, the demo's world for learning.

A folder holds `policy`, `reward`, `value` (models, the first with its tokenizer) and `prompts.json`. A task is a dict:
folder, output_dir, seed, threads, clock; batch, micro_batch, rollout_batch (rows that TRL 1.12 samples and evaluates at
once), rollouts, epochs, new_tokens; learning_rate, beta; lora (its rank, 0: none); critic ('head', 'model', or
'none': GRPO), sampler ('trl' or 'ours'), as_trl_1_12 (whether options that TRL 1.12 has not are off); save (a folder for
the policy, or None).
"""

import json
import random
import shutil
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config

from examples.benchmarks.common.made_models import BOS, EOS, PAD, random_text, word_tokenizer
from trl_ext import evaluate
from trl_ext.demo import stages
from trl_ext.demo.answers import sample_questions
from trl_ext.demo.world import load_world

SIZES = {  # hidden size, MLP's, layers, heads, those of keys and values; keys are millions of parameters
    "20M": (320, 1280, 6, 5, 1),
    "100M": (640, 2560, 13, 10, 2),
    "tiny": (32, 64, 2, 2, 1),
}
VOCABULARY = {"20M": 32000, "100M": 32000, "tiny": 64}
SPEED = {
    "seed": 0,
    "batch": 32,
    "micro_batch": 32,
    "rollout_batch": 32,
    "new_tokens": 64,
    "epochs": 4,
    "learning_rate": 1e-5,
    "beta": 0.05,
    "lora": 16,
    "as_trl_1_12": True,
    "sampler": "trl",
    "save": None,
}
CURVES = {
    "batch": 64,
    "micro_batch": 64,
    "rollout_batch": 64,
    "new_tokens": stages.COMPLETION_LENGTH,
    "epochs": 4,
    "learning_rate": 3e-4,
    "beta": 0.05,
    "lora": 0,
    "sampler": "trl",
}


def make_speed_work(folder: Path, size: str, *, prompt_tokens: int, prompts: int) -> Path:
    """Models with random weights, which seldom end a completion before its longest, and prompts of one length."""
    if (folder / "prompts.json").is_file():
        return folder
    hidden, mlp, layers, heads, key_heads = SIZES[size]
    config = Qwen2Config(
        vocab_size=VOCABULARY[size],
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        num_labels=1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "policy")
    word_tokenizer(config.vocab_size).save_pretrained(folder / "policy")
    for name in ("reward", "value"):
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / name)
    source = random.Random(0)
    texts = [random_text(source, tokens=prompt_tokens, vocab_size=config.vocab_size) for _ in range(prompts)]
    (folder / "prompts.json").write_text(json.dumps(texts))
    return folder


def make_curves_work(folder: Path, *, rollouts: int) -> Path:
    """The demo's policy after SFT, its reward model, which is the value model's start too, and questions."""
    if (folder / "prompts.json").is_file():
        return folder
    world, scale = load_world(), stages.QUICK
    policy = stages.supervised(world, folder / "policy", scale, seed=0)
    stages.reward_model(world, policy, folder / "reward", scale, imitation_coef=0.0, seed=0)
    shutil.copytree(folder / "reward", folder / "value")
    questions = sample_questions(world, held_out=False, count=rollouts * CURVES["batch"], seed=0)
    (folder / "prompts.json").write_text(json.dumps([question["prompt"] for question in questions]))
    return folder


def held_out(policy: Path, work: Path, *, questions: int = 256) -> dict[str, float]:
    """Mean score of a policy's answers to questions that were never trained on, KL to the start, length in tokens."""
    rows = sample_questions(load_world(), held_out=True, count=questions, seed=0)
    found = evaluate(
        policy,
        Dataset.from_list(rows),
        stages.learned(work / "reward"),
        reference=work / "policy",
        references_column=None,
        max_completion_length=stages.COMPLETION_LENGTH,
        batch_size=64,
    ).summary
    return {"score": found["reward/reward"], "kl": found["kl"], "length": found["length"]}
