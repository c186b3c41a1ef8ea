"""A critic that is a head, as a model of its own: the trainer's own values at every token, by whoever reads it."""

import json

import pytest
import torch
from checkpoint_case import local_base, pairs
from peft import LoraConfig, PeftModel
from ppo_case import ppo_trainer
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_llama
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, LearnedReward, SharedBase
from trl_ext.ppo.value_function import values_beside
from trl_ext.rewards.reward_models import load_scorer
from trl_ext.trainer_kit.card_files import CARD

IDS = torch.tensor([[0, 0, 7, 8, 9, 30], [5, 6, 7, 8, 9, 10]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
SIZES = {"vocab_size": 259, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def lora(**options) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)


def trained(folder, **options):
    """A PPO run of three steps, whose head is not zero any more."""
    one = ppo_trainer(folder / "run", max_steps=3, learning_rate=1e-2, **options)
    one.train()
    assert one.critic.head.bias.abs() > 1e-3 and one.critic.head.weight.abs().max() > 1e-3
    return one


@torch.no_grad()
def own_values(one) -> torch.Tensor:
    """The trainer's, at every token but the last."""
    rows = {"prompt_ids": IDS[:, :1], "prompt_mask": INPUTS["attention_mask"][:, :1]}
    rows |= {"completion_ids": IDS[:, 1:], "completion_mask": INPUTS["attention_mask"][:, 1:]}
    one.model.eval()
    with values_beside(one.critic, one.model, detach=True) as values_of:
        one.model(**INPUTS)
        return values_of(INPUTS, IDS.size(1) - 1)


@torch.no_grad()
def read_values(model) -> torch.Tensor:
    """What `score` says at every token but the last."""
    said = []
    score = next(module for name, module in model.named_modules() if name.split(".")[-1] == "score")
    handle = score.register_forward_hook(lambda module, args, output: said.append(output))
    model.eval()(**INPUTS, use_cache=False)
    handle.remove()
    return said[0][:, :-1, 0].float()


@pytest.mark.parametrize("options", [{}, {"peft_config": lora()}, {"peft_config": lora(modules_to_save=["lm_head"])}])
def test_every_reader_has_the_trainers_values(options, tmp_path):
    model = local_base(tmp_path / "sft-base", "ppo")
    one = trained(tmp_path, model=model, **options)
    one.save_value_model(tmp_path / "value")
    values, bias = own_values(one), one.critic.head.bias.item()
    path = str(tmp_path / "value")
    torch.testing.assert_close(read_values(load_scorer(path)), values)
    torch.testing.assert_close(read_values(load_scorer(path, new_head=True, trainable=True)), values)
    again = ppo_trainer(tmp_path / "again", model=local_base(tmp_path / "sft-base", "ppo"), value_model=path)
    torch.testing.assert_close(read_values(again.critic.own_model), values)
    again.train()
    again.save_value_model(tmp_path / "trained")  # and its bias is trained on and kept
    torch.testing.assert_close(
        read_values(load_scorer(str(tmp_path / "trained"))), read_values(again.critic.own_model)
    )
    asked = {"prompts": ["why?"], "completions": [" so"]}
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert LearnedReward(path)(**asked) == LearnedReward(load_scorer(path), tokenizer)(**asked)
    plain = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "sft-base" if options else path, num_labels=1
    )
    plain = PeftModel.from_pretrained(plain, path) if options else plain
    torch.testing.assert_close(read_values(plain), values - bias)
    if not options:
        torch.testing.assert_close(read_values(AutoModelForTokenClassification.from_pretrained(path)), values)
    card = (tmp_path / "value" / CARD).read_text()
    assert (
        str(tmp_path) not in card
        and f"less {bias:.6g}, the head's bias" in card
        and "`sft-base` (a local model)" in card
    )


@pytest.mark.parametrize(
    "model",
    [
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, **SIZES)),
        lambda: OPTForCausalLM(
            OPTConfig(
                hidden_size=16,
                ffn_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                word_embed_proj_dim=16,
                max_position_embeddings=64,
                **SIZES,
            )
        ),
    ],
)
def test_other_architectures(model, tmp_path):
    one = trained(tmp_path, model=model())
    one.save_value_model(tmp_path / "value")
    torch.testing.assert_close(read_values(load_scorer(str(tmp_path / "value"))), own_values(one))


def test_policy_and_critic_are_apart(tmp_path):
    """Neither has a key of the other, in a saved model and in checkpoints."""
    one = trained(tmp_path, save_strategy="steps", save_steps=3)
    one.save_model(str(tmp_path / "policy"))
    one.save_value_model(tmp_path / "value")
    for folder in (tmp_path / "policy", tmp_path / "run" / "checkpoint-3"):
        keys = load_file(folder / "model.safetensors").keys()
        assert not [key for key in keys if "score" in key or "linear" in key.split(".")] and keys
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    keys = load_file(tmp_path / "value" / "model.safetensors").keys()
    assert {"score.weight", "score.bias"} <= keys and "lm_head.weight" not in keys
    assert json.loads((tmp_path / "value" / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]
    assert set(load_file(tmp_path / "run" / "checkpoint-3" / "ppo_critic.safetensors")) == {
        "linear.weight",
        "linear.bias",
    }
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(policy(IDS[1:]).logits, one.model(IDS[1:]).logits)  # saving has changed neither
    assert isinstance(one.model, type(policy))


def test_a_reward_can_begin_with_it(tmp_path):
    one = trained(tmp_path)
    one.save_value_model(tmp_path / "value")
    args = ImitationRewardConfig(
        str(tmp_path / "rm"),
        max_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=64,
        imitation_coef=0.0,
    )
    reward = ImitationRewardTrainer(str(tmp_path / "value"), args, train_dataset=pairs())
    torch.testing.assert_close(reward.model.score.weight, one.critic.head.weight)


def test_a_role_of_a_shared_base_goes_on_with_it(tmp_path):
    local_base(tmp_path / "sft-base", "ppo")
    byte_tokenizer().save_pretrained(tmp_path / "sft-base")
    base = SharedBase.from_pretrained(str(tmp_path / "sft-base"), bits=None)
    one = trained(tmp_path, model=base.policy(lora()))
    one.save_value_model(tmp_path / "value")
    torch.testing.assert_close(read_values(base.value_model(init_from=str(tmp_path / "value"))), own_values(one))


def test_where_another_model_is_it_is_not_written(tmp_path):
    one = ppo_trainer(tmp_path / "run")
    one.save_model(str(tmp_path / "policy"))
    with pytest.raises(
        ValueError, match=r"save_value_model\('.*policy'\): '.*' holds '.*', which this run did not write"
    ):
        one.save_value_model(tmp_path / "policy")
    one.save_value_model(tmp_path / "value")
    one.save_value_model(tmp_path / "value")  # its own is replaced


def test_what_cannot_be_written_is_refused_by_name(tmp_path, monkeypatch):
    one = ppo_trainer(tmp_path / "run", model=tiny_llama(byte_tokenizer()), peft_config=lora())
    with pytest.raises(ValueError, match=r"an adapter on a base without a name.*Save the base with"):
        one.save_value_model(tmp_path / "value")
    monkeypatch.setattr("trl_ext.ppo.value_checkpoint.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", {})
    with pytest.raises(ValueError, match=r"no sequence classifier of LlamaForCausalLM.*Train with value_model=…"):
        one.save_value_model(tmp_path / "value")
    assert not (tmp_path / "value").exists()
