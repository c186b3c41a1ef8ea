"""Value models and checkpoints that do not fit: what is refused, and what works although it looks as if it would not."""

import warnings

import pytest
import torch
from datasets import Dataset
from peft import TaskType, get_peft_model
from ppo_case import PROMPTS, even_letters, ppo_trainer, rollout_of
from shared_case import base_path, lora
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from trl import GRPOConfig, GRPOTrainer

from trl_ext import SharedBase
from trl_ext.trainer_kit.run_record import RECORD

QUIET = {"bf16": False, "report_to": "none", "disable_tqdm": True, "max_completion_length": 5}


def moved_by_training(trainer) -> list[str]:
    """Names of the critic's trained weights that two steps moved."""
    before = {name: weight.detach().clone() for name, weight in trainer.critic.own_model.named_parameters()}
    trainer.train()
    after = trainer.critic.own_model.named_parameters()
    return [name for name, weight in after if weight.requires_grad and not torch.equal(weight, before[name])]


# Devices and precision


def test_value_model_without_weights():
    with torch.device("meta"):
        model = tiny_reward_model(byte_tokenizer())
    with pytest.raises(ValueError, match=r"\d+ of its tensors, e.g. 'model.*', are on the meta device.*Load it with"):
        ppo_trainer("unused", value_model=model)


@pytest.mark.gpu
def test_value_model_on_another_device(tmp_path):
    """It is moved to where the policy is, whichever of the two was elsewhere."""
    trainer = ppo_trainer(tmp_path, value_model=tiny_reward_model(byte_tokenizer()).cpu(), bf16=False)
    assert next(trainer.critic.module.parameters()).device == trainer.accelerator.device
    assert moved_by_training(trainer)


def test_value_model_in_float16(tmp_path):
    with pytest.raises(
        ValueError, match=r"21 of its trained tensors, e.g. 'model.*', are in float16, in which.*adapter"
    ):
        ppo_trainer(tmp_path, value_model=tiny_reward_model(byte_tokenizer()).half())


def test_head_of_an_adapter_in_float16(tmp_path):
    """PEFT keeps adapters in float32, but leaves the head that it copies in the base's precision."""
    model = get_peft_model(tiny_reward_model(byte_tokenizer()).half(), lora(task_type=TaskType.SEQ_CLS))
    with pytest.raises(ValueError, match=r"1 of its trained tensors, e.g. '.*score.*', are in float16"):
        ppo_trainer(tmp_path, value_model=model)


@pytest.mark.parametrize(("policy", "value"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_one_in_bfloat16_beside_the_other_in_float32(tmp_path, policy, value):
    """Values are in float32 either way, and both learn; a value model trained in bfloat16 is warned of."""
    policy, value = getattr(torch, policy), getattr(torch, value)
    models = {
        "model": tiny_llama(byte_tokenizer()).to(policy),
        "value_model": tiny_reward_model(byte_tokenizer(), seed=5).to(value),
    }
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = ppo_trainer(tmp_path, critic_learning_rate=1e-2, **models)
    rounded = [str(warning.message) for warning in said if "which rounds away steps" in str(warning.message)]
    assert len(rounded) == (value == torch.bfloat16)
    assert rollout_of(trainer)["values"].dtype == torch.float32
    start = trainer.model.lm_head.weight.detach().clone()
    assert len(moved_by_training(trainer)) > 10
    assert not torch.equal(trainer.model.lm_head.weight, start)


@pytest.mark.filterwarnings("error:.*which rounds away steps.*")
def test_adapter_on_a_base_in_bfloat16_is_trained_in_float32(tmp_path):
    base = SharedBase.from_pretrained(base_path(tmp_path), dtype=torch.bfloat16)
    trainer = ppo_trainer(tmp_path, model=base.policy(lora()), value_model=base.value_model(lora()))
    assert {parameter.dtype for parameter in trainer.critic.parameters()} == {torch.float32}
    assert moved_by_training(trainer)


# Checkpoints


def test_resuming_from_a_checkpoint_of_grpo(tmp_path):
    args = GRPOConfig(
        str(tmp_path), max_steps=1, save_steps=1, per_device_train_batch_size=4, num_generations=2,
        gradient_checkpointing=False, **QUIET,
    )  # fmt: skip
    GRPOTrainer(
        tiny_llama(byte_tokenizer()), even_letters, args, Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=byte_tokenizer(),
    ).train()  # fmt: skip
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()
    with pytest.raises(ValueError, match=r"there is no ppo_state_0.json in it.*To start from its weights, load them"):
        ppo_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with pytest.raises(ValueError, match=r"holds no complete checkpoint\. Give the path of one, or start"):
        ppo_trainer(tmp_path).train(resume_from_checkpoint=True)


OTHERS = {
    "head": "23 differ, e.g. '.*', of shape .* there and .* here",
    "wider": "6 differ, e.g. '.*mlp.down_proj.weight', of shape [16, 32] there and [16, 64] here",
    "deeper": "9 differ, e.g. '.*layers.2.*', of shape none there and .* here",
    "adapter": "differ, e.g. '.*', of shape .* there and .* here",
}


@pytest.mark.parametrize("other", OTHERS)
def test_resuming_with_another_value_model(tmp_path, other):
    def critic(kind):
        sizes = {"wider": {"intermediate_size": 64}, "deeper": {"num_hidden_layers": 3}}.get(kind, {})
        model = tiny_reward_model(byte_tokenizer(), **sizes)
        model = get_peft_model(model, lora(task_type=TaskType.SEQ_CLS)) if kind == "adapter" else model
        return None if kind == "head" else model

    def run(kind):
        return ppo_trainer(tmp_path, value_model=critic(kind), max_steps=1, save_strategy="steps", save_steps=1)

    run("first").train()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):  # as of an older version, which kept none
        (folder / RECORD).unlink()
    message = f"critic has other weights: .*{OTHERS[other]}. Resume with the same `value_model`"
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        run(other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
