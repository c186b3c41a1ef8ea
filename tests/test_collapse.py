"""Signs of collapse: seen where a reward pays for length alone, and not in a run that stays what it was."""

import warnings

import pytest
from ppo_case import logged, ppo_trainer, several_end_tokens
from tiny import byte_tokenizer, never_ending, tiny_llama

from trl_ext.ppo.collapse import CollapseWatch, EndWatch


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


NEVER = r"no completion of the first 3 batches of rollouts has ended.*max_completion_length.*missing_eos_penalty.*stop_tokens"


def said_of_ends(*eos_ratios) -> list[int]:
    """After which batches of rollouts it was said."""
    watch, said = EndWatch(), []
    for number, ratio in enumerate(eos_ratios, start=1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.update(ratio)
        said += [number] * len(caught)
    return said


def test_that_nothing_ends_is_said_once():
    assert said_of_ends(0.0, 0.0, 0.0, 0.0, 0.0) == [3]
    assert said_of_ends(0.0, 0.1, 0.0, 0.0, 0.0) == []
    assert said_of_ends(0.0, 0.0) == []


def test_a_policy_that_never_ends_is_warned_of(tmp_path):
    options = {"num_iterations": 1, "save_strategy": "steps", "save_steps": 2}
    trainer = ppo_trainer(tmp_path, model=never_ending(tiny_llama(byte_tokenizer())), max_steps=4, **options)
    with pytest.warns(UserWarning, match=NEVER) as caught:
        trainer.train()
    assert sum("has ended" in str(w.message) for w in caught) == 1
    resumed = ppo_trainer(tmp_path, model=never_ending(tiny_llama(byte_tokenizer())), max_steps=6, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has ended.*")
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.rollouts.ending == EndWatch(rollouts=6, any_ended=False)


def short(*rollouts) -> CollapseWatch:
    watch = CollapseWatch(limit=24)
    for length, perplexity, kl in rollouts:
        watch.update(length=length, perplexity=perplexity, kl=kl)
    return watch


def test_at_the_limit_perplexity_and_kl_tell():
    """What cannot grow is measured against the first batch: the starting policy's own, before a fast run's first window ends."""
    start = [(24.0, 4.0, 0.0), *[(24.0, 2.9, 10.0)] * 4]
    assert short(*start, *[(23.0, 3.0, 23.0)] * 5).collapsed
    assert not short(*start, *[(22.7, 3.0, 23.0)] * 5).collapsed  # below .95 · 24 = 22.8
    assert not short(*start, *[(23.0, 3.1, 23.0)] * 5).collapsed
    assert not short(*start, *[(23.0, 3.0, 22.9)] * 5).collapsed
    assert not filled(*start, *[(23.0, 3.0, 23.0)] * 5).collapsed  # no limit is known
    assert (
        "length 24.0 → 23.0 of 24 tokens, perplexity of own samples 4.00 → 3.00"
        in short(*start, *[(23.0, 3.0, 23.0)] * 5).signs()
    )


def word_count(completions, **columns):
    return [float(len(text.split())) for text in completions]


def run_short(folder, reward, **options):
    """Every completion is cut from the start on, so that there is no length to gain."""
    model = never_ending(tiny_llama(byte_tokenizer()))
    settings = {"per_device_train_batch_size": 16, "max_completion_length": 8, "beta": 1e-3}
    trainer = ppo_trainer(folder, model=model, reward_funcs=reward, max_steps=120, **settings | options)
    trainer.train()
    return trainer


def test_counting_words_in_short_completions_is_seen(tmp_path):
    with pytest.warns(
        UserWarning, match=r"length 8.0 → 8.0 of 8 tokens, perplexity .* Longer or at the limit"
    ) as caught:
        trainer = run_short(tmp_path, word_count)
    assert sum("found a way around the reward" in str(w.message) for w in caught) == 1
    assert logged(trainer, "kl_per_completion")[-1] > 8


def test_short_completions_that_hold_to_the_start_are_not(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*way around the reward.*")
        run_short(tmp_path, word_count, beta=1.0)
