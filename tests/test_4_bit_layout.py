"""A 4-bit base that is trained stays one: a look in eval mode changes no gradient."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from ppo_case import ppo_trainer
from rollouts_case import grpo_trainer, rollout
from self_training_case import trainer as raft_trainer
from shared_case import PAIRS, quiet
from test_ppo_learns import quantised
from tiny import byte_tokenizer, tiny_reward_model
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, TransformersGenerator
from trl_ext.trainer_kit.passes import eval_mode

IDS = torch.tensor([byte_tokenizer()("hello world")["input_ids"]])
SIZES = {"hidden_size": 64, "intermediate_size": 64}  # blocks of 64


def lora(**changes) -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **changes)


def scorer(folder):
    tiny_reward_model(byte_tokenizer(), **SIZES).save_pretrained(folder)
    bits = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["score"])
    return AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=bits)


def ppo(folder):
    return ppo_trainer(folder, model=quantised(folder / "base", 4, **SIZES), peft_config=lora()).model


def ppos_value_model(folder):
    value = scorer(folder / "value")
    return ppo_trainer(folder, value_model=value).critic.module


def raft(folder):
    return raft_trainer(folder, model=quantised(folder / "base", 4, **SIZES), peft_config=lora()).model


def imitation(folder):
    return ImitationRewardTrainer(
        scorer(folder / "base"), ImitationRewardConfig(**quiet(folder / "run", imitation_coef=0.0)),
        train_dataset=PAIRS, processing_class=byte_tokenizer(), peft_config=lora(task_type="SEQ_CLS"),
    ).model  # fmt: skip


def grpo(folder):
    one = grpo_trainer(
        folder, TransformersGenerator(), model=quantised(folder / "base", 4, **SIZES), peft_config=lora()
    )
    rollout(one)
    return one.model


@pytest.mark.parametrize("make", [ppo, ppos_value_model, raft, imitation, grpo])
def test_a_look_in_eval_mode_changes_no_gradient(tmp_path, make):
    """On CPUs with AVX-512 for bf16, bitsandbytes would repack the weights; no gradient passes through those."""
    model = make(tmp_path).train()
    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):  # in which TRL trains reward models
            outputs = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
        (outputs if isinstance(outputs, torch.Tensor) else outputs.logits).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = gradients()
    with eval_mode(model), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    after = gradients()
    assert len(before) > 1 and all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
