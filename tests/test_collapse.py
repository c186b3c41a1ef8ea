"""Signs of collapse: seen where a reward pays for length alone, and not in a run that stays what it was."""

import warnings

import pytest
from ppo_case import ppo_trainer, several_end_tokens

from trl_ext.ppo.collapse import CollapseWatch


def filled(*rollouts) -> CollapseWatch:
    watch = CollapseWatch()
    for length, perplexity, kl in rollouts:
        watch.update(length=length, perplexity=perplexity, kl=kl)
    return watch


def test_all_three_signs_are_needed():
    start = [(10.0, 4.0, 0.1)] * 5
    assert filled(*start, *[(12.5, 3.0, 0.16)] * 5).collapsed
    assert not filled(*start, *[(12.4, 3.0, 0.16)] * 5).collapsed
    assert not filled(*start, *[(12.5, 3.1, 0.16)] * 5).collapsed
    assert not filled(*start, *[(12.5, 3.0, 0.14)] * 5).collapsed
    assert not filled(*start, *[(12.5, 3.0, 0.16)] * 4).collapsed  # too early to tell


def test_the_last_window_is_compared_with_the_first():
    rollouts = [(10.0, 4.0, 0.1)] * 5 + [(99.0, 1.0, 9.0)] * 20 + [(10.0, 4.0, 0.1)] * 5
    assert not filled(*rollouts).collapsed
    assert len(filled(*rollouts).history) == 10
    assert "length 10.0 → 20.0 tokens" in filled(*[(10.0, 4.0, 0.1)] * 5, *[(20.0, 2.0, 1.0)] * 5).signs()


def length_alone(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def run(folder, reward, **options):
    """A third of all tokens end a completion at the start, so that there is length to gain."""
    trainer = ppo_trainer(
        folder,
        reward_funcs=reward,
        stop_tokens=[chr(code) for code in range(ord("!"), ord("z"))],
        per_device_train_batch_size=16,
        max_completion_length=24,
        num_iterations=1,
        max_steps=60,
        beta=1e-4,
        **options,
    )
    trainer.train()
    return trainer


@several_end_tokens
def test_a_reward_for_length_collapses_and_says_so_once(tmp_path):
    with pytest.warns(
        UserWarning, match=r"length .* → .* tokens, perplexity .* Read its samples; raise beta"
    ) as caught:
        trainer = run(tmp_path / "warn", length_alone)
    assert sum("found a way around the reward" in str(w.message) for w in caught) == 1
    assert trainer.state.global_step == 60


@several_end_tokens
def test_a_run_that_learns_nothing_does_not(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*way around the reward.*")
        run(tmp_path, lambda completions, **columns: [0.0] * len(completions))


def test_what_was_seen_is_resumed(tmp_path):
    options = {"max_steps": 4, "num_iterations": 1, "save_strategy": "steps", "save_steps": 2}
    whole = ppo_trainer(tmp_path, **options)
    whole.train()
    resumed = ppo_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.rollouts.collapse == whole.rollouts.collapse and len(whole.rollouts.collapse.history) == 4
