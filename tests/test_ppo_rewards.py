"""Scores inside PPO: functions, models, several of them, and rows without any."""

import asyncio

import numpy as np
import pytest
import torch
from datasets import Dataset
from ppo_case import PROMPTS, even_letters, logged, ppo_trainer, rollout_of, scored_rollout_of
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from trl import RewardConfig

from trl_ext import ImitationRewardTrainer, LearnedReward, LengthIncentive


async def slow_even_letters(completions, **columns):
    await asyncio.sleep(0)
    return even_letters(completions)


def test_async_and_sync_functions_with_weights(tmp_path):
    trainer = ppo_trainer(
        tmp_path, reward_funcs=[even_letters, slow_even_letters, LengthIncentive()], reward_weights=[1.0, 0.5, 0.0]
    )
    trainer.train()
    assert logged(trainer, "rewards/even_letters/mean") == logged(trainer, "rewards/slow_even_letters/mean")
    expected = 1.5 * logged(trainer, "rewards/even_letters/mean")[0]
    assert logged(trainer, "score")[0] == pytest.approx(expected)
    assert "rewards/LengthIncentive/mean" in trainer.state.log_history[0]


def test_rewards_of_one_name_are_logged_apart(tmp_path):
    """As in RAFT: a number of its own for each."""

    def judge(score):
        def judge(completions, **columns):
            return np.full((len(completions), 1), score)

        return judge

    trainer = ppo_trainer(tmp_path, reward_funcs=[judge(1.0), judge(3.0)], max_steps=1)
    trainer.train()
    assert (logged(trainer, "rewards/judge_0/mean"), logged(trainer, "rewards/judge_1/mean")) == ([1.0], [3.0])


@pytest.mark.parametrize("weights", [[float("nan")], [0.0], [1.0, 1.0]])
def test_weights_are_checked_before_the_run(tmp_path, weights):
    with pytest.raises(ValueError, match=r"PPO(Trainer, |Config\()reward_weights=\["):
        ppo_trainer(tmp_path, reward_weights=weights)


def test_columns_reach_the_reward(tmp_path):
    seen = []

    def reward(prompts, completions, difficulty, completion_ended, **columns):
        seen.append((len(prompts), difficulty, completion_ended))
        return [0.0] * len(prompts)

    ppo_trainer(tmp_path, reward_funcs=reward, columns={"difficulty": [3] * len(PROMPTS)}, max_steps=1).train()
    assert seen[0][:2] == (4, [3, 3, 3, 3]) and all(ended in (True, False) for ended in seen[0][2])


def test_a_reward_model_scores_what_it_was_trained_on(tmp_path):
    """The score inside PPO is the one that the reward trainer gives the same pair: same tokens, same position."""
    for options in ({}, {"bos": True}, {"pad_is_eos": True}):
        tokenizer = byte_tokenizer(**options)
        reward_model = tiny_reward_model(tokenizer, seed=3)
        policy = tiny_llama(tokenizer)
        policy.generation_config.eos_token_id = [1, *range(3, 60)]  # some completions end, some are cut
        trainer = ppo_trainer(
            tmp_path, model=policy, reward_funcs=reward_model, reward_processing_classes=tokenizer,
            processing_class=tokenizer, score_scaling=False,
        )  # fmt: skip
        seen = {}
        trainer.reward_funcs = [recording(trainer.reward_funcs[0], seen)]
        _, scores = scored_rollout_of(trainer, [{"prompt": prompt} for prompt in PROMPTS])
        assert len(set(seen["completion_ended"])) == 2
        expected = scores_in_reward_trainer(reward_model, tokenizer, seen, tmp_path)
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def recording(reward, seen):
    def recorded(**columns):
        seen.update(columns)
        return reward(**columns)

    return recorded


def scores_in_reward_trainer(model, tokenizer, rollout, folder):
    """Mean rewards that RewardTrainer logs, pair by pair; a completion that was cut has no EOS, so it is tokenised here."""
    scores = []
    for prompt, completion, ended in zip(
        rollout["prompts"], rollout["completions"], rollout["completion_ended"], strict=True
    ):
        ids = tokenizer(prompt + completion)["input_ids"]
        if not ended:
            with torch.no_grad():
                scores.append(model(torch.tensor([ids])).logits.item())
            continue
        pair = {"prompt": [prompt], "chosen": [completion], "rejected": [completion]}
        args = RewardConfig(str(folder), bf16=False, report_to="none", per_device_train_batch_size=1)
        trainer = ImitationRewardTrainer(
            model, args, train_dataset=Dataset.from_dict(pair), processing_class=tokenizer
        )
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            scores.append(trainer.compute_loss(model.eval(), batch, return_outputs=True)[1].logits[0].item())
    return scores


def test_reward_model_by_path_with_its_own_tokenizer(tmp_path):
    """Another vocabulary than the policy's: decoded and tokenised anew (trl #3595)."""
    tokenizer = byte_tokenizer(bos=True, pad_is_eos=True)
    reward_model = tiny_reward_model(tokenizer, seed=3)
    reward_model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    trainer = ppo_trainer(tmp_path, reward_funcs=[str(tmp_path / "rm"), even_letters])
    seen = {}
    trainer.reward_funcs[0] = recording(trainer.reward_funcs[0], seen)
    trainer.train()
    assert "rewards/rm/mean" in trainer.state.log_history[0]
    texts = {"prompts": seen["prompts"], "completions": seen["completions"]}
    direct = LearnedReward(reward_model, tokenizer)(**texts, completion_ended=seen["completion_ended"])
    assert logged(trainer, "rewards/rm/mean")[-1] == pytest.approx(sum(direct) / len(direct), abs=1e-5)


def test_a_row_without_a_score_is_left_out(tmp_path):
    """It has no part in whitening, losses or the statistics of scores, and is counted."""

    def some(prompts, completions, **columns):
        return [
            None if prompt == "why?" else score
            for prompt, score in zip(prompts, even_letters(completions), strict=True)
        ]

    trainer = ppo_trainer(tmp_path, reward_funcs=some)
    trainer.current_gradient_accumulation_steps = 1
    rollout = rollout_of(trainer)
    left_out = 1  # PROMPTS[1] is "why?"
    assert trainer._metrics["train"]["rows_unscored"] == [1]
    assert trainer.rollouts.score_moments.count == 3
    assert rollout["tool_mask"].any(1).tolist() == [True, False, True, True]
    assert rollout["num_items_in_batch"] == rollout["completion_mask"][[0, 2, 3]].sum()
    own = rollout["tool_mask"].bool()
    assert rollout["advantages"][own].mean().abs() < 1e-6
    loss = trainer._compute_loss(trainer.model, rollout)
    for name in ("advantages", "values", "returns", "old_per_token_logps"):
        rollout[name] = rollout[name].clone()
        rollout[name][left_out] = 50.0
    torch.testing.assert_close(trainer._compute_loss(trainer.model, rollout), loss)


def test_scores_are_scaled_by_the_run_so_far(tmp_path):
    def thousands(completions, **columns):
        return [1000.0 + 100 * score for score in even_letters(completions)]

    trainer = ppo_trainer(tmp_path, reward_funcs=thousands, beta=0.0, lam=1.0, score_clip=1.5)
    for _ in range(3):
        rollout, scores = scored_rollout_of(trainer)
    assert trainer.rollouts.score_moments.count == 12
    scaled = rollout["returns"][:, 0]  # V = 0, γ = λ = 1: the score itself
    moments = trainer.rollouts.score_moments
    expected = ((scores - moments.mean) / moments.deviation).clamp(-1.5, 1.5)
    torch.testing.assert_close(scaled, expected)


def test_evaluation_does_not_move_the_statistics(tmp_path):
    trainer = ppo_trainer(tmp_path, eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}))
    rollout_of(trainer)
    before = (trainer.rollouts.score_moments.count, trainer.rollouts.score_moments.mean)
    metrics = trainer.evaluate()
    assert (trainer.rollouts.score_moments.count, trainer.rollouts.score_moments.mean) == before
    assert {"eval_score", "eval_kl", "eval_value_loss"} <= metrics.keys() | trainer.state.log_history[-1].keys()


def test_missing_eos_penalty(tmp_path):
    policy = tiny_llama(byte_tokenizer())
    policy.generation_config.eos_token_id = [1, *range(3, 60)]
    trainer = ppo_trainer(
        tmp_path, model=policy, missing_eos_penalty=7.0, reward_funcs=lambda completions, **_: [1.0] * 16
    )
    _, scores = scored_rollout_of(trainer, [{"prompt": prompt} for prompt in PROMPTS])
    share = trainer._metrics["train"]["completions/eos_ratio"][0]
    assert 0 < share < 1
    assert sorted(set(scores.tolist())) == [-6.0, 1.0]
    assert (scores == 1.0).float().mean() == share


def test_masked_tokens_inside_a_completion(tmp_path):
    """What another program wrote (`env_mask` 0) has no reward, value or loss, and carries the rest over."""

    def rollout_func(prompts, trainer):
        ids = [[10, 11, 12, 13]] * len(prompts)
        return {"prompt_ids": [[5, 6]] * len(prompts), "completion_ids": ids,
                "logprobs": None, "env_mask": [[1, 0, 0, 1]] * len(prompts)}  # fmt: skip

    trainer = ppo_trainer(tmp_path, rollout_func=rollout_func, beta=0.0, score_scaling=False, lam=1.0)
    rollout, scores = scored_rollout_of(trainer)
    assert rollout["tool_mask"].tolist() == [[1, 0, 0, 1]] * 4
    score = scores[0].item()
    assert rollout["returns"][0].tolist() == [score, 0.0, 0.0, score]
    trainer.train()
