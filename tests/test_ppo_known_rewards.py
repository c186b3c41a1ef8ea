"""What users of TRL's PPO met, in rewards: one test for each thread of huggingface/trl by its number.

The docstring's first sentence is the symptom there. Each test fails with the defect put back.
"""

import pytest
import torch
from defects_case import weights_of, written
from peft import TaskType, get_peft_model
from ppo_case import PROMPTS, even_letters, ppo_trainer, scored_rollout_of
from shared_case import lora
from tiny import byte_tokenizer, reversed_tokenizer, tiny_llama, tiny_reward_model
from transformers import LlamaForSequenceClassification

from trl_ext import LearnedReward


def test_trl_2518_a_reward_backed_by_rules(tmp_path):
    """Only an `nn.Module` was accepted for scoring, where until 0.11 any score would do. Here a rule is a reward."""
    trainer = ppo_trainer(tmp_path, reward_funcs=even_letters, score_scaling=False)
    rollout, scores = scored_rollout_of(trainer)
    texts = trainer._tokenizer.batch_decode(written(rollout), skip_special_tokens=True)
    assert scores.tolist() == even_letters(texts)
    trainer.train()


def test_trl_2363_no_model_but_the_policy(tmp_path):
    """A rule on the text needs neither reward nor value model, and both were required. Here no second trunk is made."""
    trainer = ppo_trainer(tmp_path, reward_funcs=even_letters, beta=0.0)
    critic = sum(parameter.numel() for parameter in trainer.critic.parameters())
    assert critic == trainer.model.config.hidden_size + 1
    assert trainer.ref_model is None and not any(isinstance(f, torch.nn.Module) for f in trainer.reward_funcs)
    trainer.train()


def test_trl_3093_a_function_and_an_adapter_together(tmp_path):
    """The new trainer took adapters but no function, the old one a function but no `PeftModel`. Here it takes both."""
    policy = get_peft_model(tiny_llama(byte_tokenizer()), lora(r=2))
    before = weights_of(policy)
    trainer = ppo_trainer(tmp_path, model=policy, reward_funcs=even_letters)
    trainer.train()
    moved = {
        name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before.get(name, weight))
    }
    assert moved and all("lora_" in name for name in moved)


def test_trl_2451_a_reward_that_is_no_module_and_says_several_things(tmp_path):
    """A model with three answers, `{'type1': 1, 'type2': -1, 'type3': 0}`, was no `nn.Module`. Here it is three rewards."""

    class Judge:
        def __init__(self, aspect):
            self.aspect, self.__name__ = aspect, aspect

        def __call__(self, completions, **columns):
            return [{"type1": 1.0, "type2": -1.0, "type3": 0.5 * len(text)}[self.aspect] for text in completions]

    judges = [Judge(aspect) for aspect in ("type1", "type2", "type3")]
    trainer = ppo_trainer(tmp_path, reward_funcs=judges, reward_weights=[1.0, 2.0, 4.0], score_scaling=False)
    _, scores = scored_rollout_of(trainer)
    lengths = torch.tensor([trainer._metrics["train"]["rewards/type3/mean"][0] * 2])
    assert scores.mean().item() == pytest.approx(1.0 - 2.0 + 2.0 * lengths.item())


def test_trl_3595_a_token_that_the_reward_model_does_not_have(tmp_path):
    """Ids of the policy went into the reward model: "index out of range". Here they are decoded and tokenised anew."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<more>"])
    reward = tiny_reward_model(byte_tokenizer(), seed=3)
    beyond = tokenizer.convert_tokens_to_ids("<more>")
    assert beyond >= reward.config.vocab_size

    def rollout_func(prompts, trainer):
        ids = [[10, beyond, 1]] * len(prompts)
        return {"prompt_ids": [[5, 6]] * len(prompts), "completion_ids": ids, "logprobs": None}

    trainer = ppo_trainer(
        tmp_path, model=tiny_llama(tokenizer), processing_class=tokenizer, rollout_func=rollout_func,
        reward_funcs=reward, reward_processing_classes=byte_tokenizer(),
    )  # fmt: skip
    _, scores = scored_rollout_of(trainer)
    text = tokenizer.decode([10]) + "<more>"
    direct = LearnedReward(reward, byte_tokenizer())(prompts=[PROMPTS[0]], completions=[text])
    assert scores[0].item() == pytest.approx(direct[0], abs=1e-5)


def test_trl_1979_the_same_score_whatever_the_policys_tokenizer(tmp_path):
    """One tokenizer was assumed for policy and reward: with equally many tokens the scores were of other words."""
    reward, own = tiny_reward_model(byte_tokenizer(), seed=3), byte_tokenizer()
    for tokenizer in (own, reversed_tokenizer()):
        trainer = ppo_trainer(
            tmp_path, model=tiny_llama(tokenizer), processing_class=tokenizer, reward_funcs=reward,
            reward_processing_classes=own,
        )  # fmt: skip
        rollout, scores = scored_rollout_of(trainer)
        texts = tokenizer.batch_decode(written(rollout))
        direct = LearnedReward(reward, own)(prompts=PROMPTS[:4], completions=texts, completion_ended=[False] * 4)
        assert scores.tolist() == pytest.approx(direct, abs=1e-5)


def test_trl_1379_a_score_head_is_never_made_up(tmp_path):
    """A reward model came back with `score.weight` newly initialised, behind a warning. Here its scores are the same
    after saving, plain and as an adapter, and one without a head is refused."""
    tokenizer, texts = byte_tokenizer(), {"prompts": ["why? "] * 2, "completions": ["so", "no"]}
    plain = tiny_reward_model(tokenizer, seed=3)
    plain.save_pretrained(tmp_path / "plain")
    tiny_llama(tokenizer).save_pretrained(tmp_path / "base")
    adapter = LlamaForSequenceClassification.from_pretrained(tmp_path / "plain")
    adapter = get_peft_model(adapter, lora(task_type=TaskType.SEQ_CLS))
    with torch.no_grad():
        adapter.base_model.model.score.modules_to_save["default"].weight.mul_(3.0)
    adapter.save_pretrained(tmp_path / "adapter")
    for name, model in (("plain", plain), ("adapter", adapter), ("base", None)):
        tokenizer.save_pretrained(tmp_path / name)
        if model is None:
            with pytest.raises(ValueError, match=r"has no weights for score.weight, which would be random"):
                ppo_trainer(tmp_path, reward_funcs=str(tmp_path / name))
        else:
            trainer = ppo_trainer(tmp_path, reward_funcs=str(tmp_path / name))
            scores = trainer.reward_funcs[0](**texts, completion_ids=[[3, 1]] * 2, completion_ended=[True] * 2)
            assert scores == pytest.approx(LearnedReward(model, tokenizer)(**texts), abs=1e-6)
