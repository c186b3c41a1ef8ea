"""A run stopped at any step, inside a rollout's epochs too, ends in the same weights as one that never stopped."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ppo_case import even_letters, ppo_trainer
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import TrainerCallback

from trl_ext import PPOTrainer
from trl_ext.trainer_kit.run_record import RECORD

STEPS = 12  # three rollouts of two epochs × two steps each; one pass over the prompts is two rollouts


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def trainer(folder, *, value_model=None, lora=False, stop_at=STEPS, **changes):
    tokenizer = byte_tokenizer()
    policy = tiny_llama(tokenizer)
    if lora:
        torch.manual_seed(1)
        policy = get_peft_model(policy, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    return ppo_trainer(
        folder,
        model=policy,
        reward_funcs=even_letters,
        prompts=[f"say {i}" for i in range(16)],
        eval_dataset=Dataset.from_dict({"prompt": ["a", "bc"]}),
        value_model=value_model and tiny_reward_model(tokenizer, seed=3),
        callbacks=[StopAt(stop_at)],
        **settings | changes,
    )


def on_a_stream(folder, *, prompts=16, repeats=1, stop_at=STEPS):
    """The same run, whose prompts come from a stream that is shuffled."""
    made = trainer(folder)
    rows = Dataset.from_dict({"prompt": [f"say {i}" for i in range(prompts)]}).to_iterable_dataset().repeat(repeats)
    return PPOTrainer(
        made.model,
        even_letters,
        made.args,
        rows.shuffle(seed=3, buffer_size=4),
        processing_class=made.processing_class,
        callbacks=[StopAt(stop_at)],
    )


def state_of(trainer):
    weights = {f"policy.{name}": p for name, p in trainer.model.named_parameters() if p.requires_grad}
    weights |= {f"critic.{i}": p for i, p in enumerate(trainer.critic.parameters())}
    moments = trainer.optimizer.state_dict()["state"]
    return weights | {f"optimizer.{i}.{k}": v for i, state in moments.items() for k, v in state.items()}


def assert_same_state(one, other):
    one, other = state_of(one), state_of(other)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("kind", ["head", "value_model", "lora", "evaluation"])
def test_resumed_run_ends_in_the_same_weights(tmp_path, kind):
    options = {
        "head": {},
        "value_model": {"value_model": True},
        "lora": {"lora": True},
        "evaluation": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 1},
    }[kind]
    whole = trainer(tmp_path / "whole", **options)
    start = {name: tensor.clone() for name, tensor in state_of_weights(whole).items()}
    whole.train()
    assert all(not torch.equal(start[name], tensor) for name, tensor in state_of_weights(whole).items())

    for step in (
        (1, 3, 4, 7, 8, 11) if kind == "head" else (3, 8)
    ):  # inside and at the end of a rollout's epochs, and of a pass over the prompts
        folder = tmp_path / f"stopped-{step}"
        folder.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = trainer(folder, **options)
        resumed.train(resume_from_checkpoint=True)
        assert_same_state(whole, resumed)
        assert resumed.rollouts.score_moments == whole.rollouts.score_moments


def state_of_weights(trainer):
    weights = {f"policy.{name}": p for name, p in trainer.model.named_parameters() if p.requires_grad}
    return weights | {f"critic.{i}": p for i, p in enumerate(trainer.critic.parameters())}


def test_a_run_that_was_really_stopped(tmp_path):
    """Not only a copy of a checkpoint: a run that ends early, and one of a later process that goes on."""
    whole = trainer(tmp_path / "whole", save_strategy="no")
    whole.train()
    trainer(tmp_path / "stopped", stop_at=6).train()
    resumed = trainer(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_same_state(whole, resumed)


def test_unfinished_checkpoints_are_passed_over(tmp_path):
    trainer(tmp_path, stop_at=3).train()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3')  # killed while writing
    (tmp_path / "checkpoint-2" / "ppo_critic.safetensors").unlink()
    resumed = trainer(tmp_path, stop_at=4)
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "whole", save_strategy="no", stop_at=4)
    whole.train()
    assert_same_state(whole, resumed)


def test_nothing_to_resume_from(tmp_path):
    """The run begins; so a script that may be killed can always pass True."""
    begun = trainer(tmp_path, stop_at=2)
    begun.train(resume_from_checkpoint=True)
    assert begun.state.global_step == 2


def test_checkpoint_of_another_critic_or_batching_is_refused(tmp_path):
    """Where there is no record, as an older version wrote none."""
    trainer(tmp_path, stop_at=1).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        (folder / RECORD).unlink()
    with pytest.raises(ValueError, match="critic has other weights"):
        trainer(tmp_path, value_model=True).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"changed since .*num_iterations.*\(2, 3\)"):
        trainer(tmp_path, num_iterations=3).train(resume_from_checkpoint=checkpoint)
    (tmp_path / "checkpoint-1" / "ppo_state_0.json").unlink()
    with pytest.raises(ValueError, match="not a checkpoint of PPOTrainer"):
        trainer(tmp_path).train(resume_from_checkpoint=checkpoint)


def test_a_run_that_fails_keeps_checkpoints_and_log(tmp_path):
    failing = trainer(tmp_path, logging_steps=1)
    failing.reward_funcs[0] = broken_after(8)
    with pytest.raises(ValueError, match="returned nan for row 0"):
        failing.train()
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    assert (tmp_path / "checkpoint-4").is_dir()


def broken_after(completions_scored):
    from trl_ext.rewards.checked_reward import checked_reward

    seen = []

    def vowels_then_nan(completions, **columns):
        seen.extend(completions)
        return [float("nan") if len(seen) > completions_scored else 1.0 for _ in completions]

    return checked_reward(vowels_then_nan)


@pytest.mark.parametrize(
    ("stop_at", "rows"),
    [
        (3, {}),
        (7, {}),
        (8, {}),  # as its first pass is over
        (7, {"prompts": 10, "repeats": None}),  # which has no second
    ],
)
def test_a_run_on_a_stream_goes_on_where_it_was(tmp_path, stop_at, rows):
    whole = on_a_stream(tmp_path / "whole", **rows)
    whole.train()
    on_a_stream(tmp_path / "stopped", stop_at=stop_at, **rows).train()
    resumed = on_a_stream(tmp_path / "stopped", **rows)
    resumed.train(resume_from_checkpoint=True)
    expected = state_of(whole)
    assert resumed.state.global_step == STEPS
    assert all(
        torch.equal(value, expected[name]) for name, value in state_of(resumed).items() if torch.is_tensor(value)
    )


def test_a_run_on_a_stream_that_had_ended_is_not_gone_on_with(tmp_path):
    """Trainer would skip all steps in the first pass, which has fewer, and make the rest of them without prompts of their own."""
    on_a_stream(tmp_path, prompts=10, stop_at=7).train()
    with pytest.raises(
        ValueError, match=r"the stream had ended before 'checkpoint-7' was written.*stream\.repeat\(None\)"
    ):
        on_a_stream(tmp_path, prompts=10).train(resume_from_checkpoint=True)
    resumed = on_a_stream(tmp_path, prompts=10)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == STEPS
