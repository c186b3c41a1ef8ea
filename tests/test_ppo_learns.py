"""PPO raises a known score well above the start: on the smallest model, over three seeds, in 8-bit and 4-bit too."""

import pytest
import torch
from peft import LoraConfig
from ppo_case import PROMPTS, logged, ppo_trainer
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

ALL_LINEAR = LoraConfig(r=8, target_modules="all-linear")
BITS = {8: BitsAndBytesConfig(load_in_8bit=True), 4: BitsAndBytesConfig(load_in_4bit=True)}


def quantised(folder, bits, **sizes):
    tiny_llama(byte_tokenizer(), **sizes).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=BITS[bits])


def first_and_last_score(folder, **options):
    trainer = ppo_trainer(
        folder,
        prompts=PROMPTS * 4,
        max_completion_length=8,
        num_iterations=2,
        max_steps=60,
        beta=0.01,
        **options,
    )
    trainer.train()
    scores = logged(trainer, "score")
    return sum(scores[:3]) / 3, sum(scores[-3:]) / 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_fine_tuning_learns(tmp_path, seed):
    start, end = first_and_last_score(tmp_path, per_device_train_batch_size=64, learning_rate=2e-2, seed=seed)
    assert start < 3 and end > 6  # of 8 characters


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_8_bit_learns(tmp_path, seed):
    start, end = first_and_last_score(
        tmp_path,
        model=quantised(tmp_path / "base", 8, hidden_size=64, initializer_range=0.3),
        peft_config=ALL_LINEAR,
        per_device_train_batch_size=32,
        seed=seed,
    )
    assert start < 3 and end > 5


def test_4_bit_trains(tmp_path):
    trainer = ppo_trainer(tmp_path, model=quantised(tmp_path / "base", 4, hidden_size=64), peft_config=ALL_LINEAR)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert logged(trainer, "kl")[0] == 0.0
    assert any(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_on_a_quantised_base_stay_in_fp32_and_move(tmp_path, bits):
    """At lr 1e-5 a step is below half a unit of bf16, in which TRL would keep A: most of it would never move."""
    trainer = ppo_trainer(
        tmp_path,
        model=quantised(tmp_path / "base", bits, hidden_size=64),
        peft_config=LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False),  # B ≠ 0: A has a gradient
        learning_rate=1e-5,
        max_steps=4,
        beta=0.0,
    )
    matrices = {n: p for n, p in trainer.model.named_parameters() if "lora_A" in n}
    assert {p.dtype for p in matrices.values()} == {torch.float32}
    before = {n: p.detach().clone() for n, p in matrices.items()}
    trainer.train()
    moved = torch.cat([(before[n] != p).flatten() for n, p in matrices.items()]).float().mean()
    assert moved > 0.95


def test_a_trained_adapter_on_a_quantised_base_keeps_every_digit(tmp_path):
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        quantised(tmp_path / "base", 8), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer = ppo_trainer(tmp_path, model=model, num_iterations=1)
    assert all(torch.equal(before[n], dict(trainer.model.named_parameters())[n]) for n in before)
    trainer.train()
    assert logged(trainer, "kl")[0] == 0.0
