"""What users of TRL's PPO met, in memory: one test for each thread of huggingface/trl (or peft) by its number.

The docstring's first sentence is the symptom there. Each test fails with the defect put back.
"""

import pytest
import torch
from defects_case import weights_of
from peft import PeftModel, TaskType, get_peft_model
from ppo_case import ppo_trainer, rollout_of
from shared_case import base_path, lora, outputs
from tiny import byte_tokenizer, tiny_reward_model
from transformers import AutoModelForCausalLM

from trl_ext import SharedBase
from trl_ext.shared_base.merge import unquantised_copy


def test_trl_3331_one_base_for_policy_reference_reward_and_value(tmp_path):
    """Adapters of one SFT model for all roles, possible in 0.11, were not in 0.16. Here roles share the base's tensors,
    which a run leaves as they were."""
    base = SharedBase.from_pretrained(base_path(tmp_path))
    policy, reward, value = base.policy(lora()), base.reward_model(lora()), base.value_model(lora())
    before = weights_of(base.model)
    trainer = ppo_trainer(tmp_path, model=policy, reward_funcs=reward, value_model=value)
    trainer.train()
    assert trainer.ref_model is None
    assert all(torch.equal(weight, before[name]) for name, weight in base.model.named_parameters())
    trunk = {weight.data_ptr() for weight in base.model.model.parameters()}
    for role in (trainer.model, reward.module, trainer.critic.own_model):
        assert trunk <= {weight.data_ptr() for weight in role.parameters()}


def test_the_value_model_beside_an_adapter_is_not_trained_in_full(tmp_path):
    """TRL's optimizer held all of the value model's weights beside a LoRA policy: more state than the policy itself."""
    value = get_peft_model(tiny_reward_model(byte_tokenizer()), lora(task_type=TaskType.SEQ_CLS))
    for critic, largest in ((None, 17), (value, sum(p.numel() for p in value.parameters() if p.requires_grad))):
        trainer = ppo_trainer(tmp_path, peft_config=lora(), value_model=critic)
        trainer.create_optimizer()
        trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        policy = {id(p) for p in trainer.model.parameters() if p.requires_grad}
        of_critic = [p for p in trainer.critic.module.parameters() if id(p) in trained]
        assert sum(p.numel() for p in of_critic) == largest
        assert len(trained) == len(policy) + len(of_critic)


@pytest.mark.parametrize("given", ["model", "path"])
def test_a_value_model_in_full_beside_an_adapter_is_said(tmp_path, given):
    value = tiny_reward_model(byte_tokenizer())
    if given == "path":
        value.save_pretrained(tmp_path / "value")
        byte_tokenizer().save_pretrained(tmp_path / "value")
    size = sum(parameter.numel() for parameter in value.parameters())
    with pytest.warns(UserWarning, match=rf"all of its {size:,} weights are trained beside an adapter"):
        ppo_trainer(tmp_path, peft_config=lora(), value_model=value if given == "model" else str(tmp_path / "value"))


def test_no_logits_are_kept_while_sampling(tmp_path):
    """TRL kept each step's logits over the vocabulary, stacked: 16 × 512 × 152k in fp32 are 4.6 GiB."""
    trainer = ppo_trainer(tmp_path)
    generate, made = trainer.model.generate, []

    def watched(*args, **kwargs):
        made.append(generate(*args, **kwargs))
        return made[-1]

    trainer.model.generate = watched
    rollout_of(trainer)
    assert len(made) == 1 and isinstance(made[0], torch.Tensor)  # ids alone, no output with scores or logits
    assert made[0].dtype == torch.long and made[0].ndim == 2


def test_peft_1043_merging_into_an_8_bit_base_keeps_the_adapter(tmp_path):
    """Merged into int8 weights, the adapter's answers worsened a lot: what is below a step of int8 was rounded away."""
    base = SharedBase.from_pretrained(base_path(tmp_path), bits=8)
    policy = base.policy(lora())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1e-2)
    policy.save_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(base.merge(tmp_path / "adapter", tmp_path / "merged").path)
    without, whole = (unquantised_copy(base.model, torch.float32, torch.device("cpu")).eval() for _ in range(2))
    moved = outputs(PeftModel.from_pretrained(whole, tmp_path / "adapter")) - outputs(without)
    torch.testing.assert_close(outputs(merged) - outputs(without), moved, atol=1e-2 * moved.abs().max().item(), rtol=0)
