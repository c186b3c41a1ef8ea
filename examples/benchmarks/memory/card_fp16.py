"""A few steps in fp16 with a loss scaler, two of them spoiled: which are skipped, and does a skipped one move a weight?

    python -m examples.benchmarks.memory.card_fp16                # on a GPU
    python -m examples.benchmarks.memory.card_fp16 --device cpu   # a smoke test: a scaler on steps in float32

PPO with a value model, and a reward model with the imitation term, on random models of two layers.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback

from examples.benchmarks.common.made_models import config_of, word_tokenizer
from examples.benchmarks.memory.card_rows import Row
from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, PPOConfig, PPOTrainer

WORDS, STEPS, SPOILED = 512, 10, (4, 5)  # steps count from 0
PROMPTS = [f"w{i} w{i + 1} w{i + 2} " for i in range(4, 4 + 8 * STEPS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = []
    for name, make in {"PPO": ppo, "reward model": reward}.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of(name, make, folder, args.device))
        print(*rows[-1].values(), sep=" | ")
    if args.json:
        args.json.write_text(json.dumps(rows))


def row_of(name: str, make: Callable, folder: str, device: str) -> Row:
    """Steps skipped, beside those in which no weight moved, which must be as many; and the scale before and after."""
    trainer = make(folder, common(folder, device))
    if device == "cpu":
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scale = trainer.accelerator.scaler.get_scale()
    spoil(trainer)
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    skipped = int(sum(entry.get("skipped_steps", 0) for entry in trainer.state.log_history))
    still = STEPS - watch.moved
    scales = f"scale {scale:g} → {trainer.accelerator.scaler.get_scale():g}"
    good = skipped == still >= len(SPOILED) and watch.still_when_spoiled
    beside = f"{still} without a move, {len(SPOILED)} spoiled"
    return Row(
        f"fp16, {name}: of {STEPS} steps", f"{skipped} skipped", beside, f"{scales}; {'ok' if good else 'WRONG'}"
    )


def common(folder: str, device: str) -> dict:
    return {
        "output_dir": folder,
        "fp16": device == "cuda",
        "bf16": False,
        "use_cpu": device == "cpu",
        "per_device_train_batch_size": 8,
        "max_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def sizes():
    torch.manual_seed(0)
    return config_of("tiny", window=64)


def scorer() -> LlamaForSequenceClassification:
    config = sizes()
    config.num_labels, config.tie_word_embeddings = 1, True
    return LlamaForSequenceClassification(config)


def even_words(completions: list[str], **_) -> list[float]:
    return [float(sum(word[-1:] in "02468" for word in text.split())) for text in completions]


def ppo(folder: str, settings: dict) -> PPOTrainer:
    return PPOTrainer(
        LlamaForCausalLM(sizes()),
        even_words,
        PPOConfig(**settings, max_completion_length=8, num_iterations=2),
        Dataset.from_dict({"prompt": PROMPTS}),
        value_model=scorer(),
        processing_class=word_tokenizer(WORDS),
    )


def reward(folder: str, settings: dict) -> ImitationRewardTrainer:
    rows = [{"prompt": prompt, "chosen": "w8 w10 w12", "rejected": "w9 w11 w13"} for prompt in PROMPTS]
    return ImitationRewardTrainer(
        scorer(),
        ImitationRewardConfig(**settings, max_length=64),
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(WORDS),
    )


def spoil(trainer) -> None:
    """Let a weight's gradient be infinite in some steps, each of which has one backward pass."""
    passes = iter(range(10**6))
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
    weight.register_hook(lambda gradient: gradient * float("inf") if next(passes) in SPOILED else gradient)


class Watch(TrainerCallback):
    """Counts the steps in which a weight moved.

    Attributes:
        moved: How many.
        still_when_spoiled: Whether none of the spoiled steps was among them.
    """

    def __init__(self, trainer):
        self.trainer, self.moved, self.still_when_spoiled = trainer, 0, True
        self._before: list[torch.Tensor] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._before = self._weights()

    def on_step_end(self, args, state, control, **kwargs):
        pairs = zip(self._before, self._weights(), strict=True)
        moved = any(not torch.equal(before, after) for before, after in pairs)
        self.moved += moved
        self.still_when_spoiled &= not (moved and state.global_step - 1 in SPOILED)

    def _weights(self) -> list[torch.Tensor]:
        return [weight.detach().clone() for weight in self.trainer._parameters().values()]


if __name__ == "__main__":
    main()
