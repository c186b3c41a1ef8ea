"""A loss or gradient that is not finite stops a run before it reaches the weights, in every trainer, and is named."""

import math
from functools import partial
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from ppo_case import logged, ppo_trainer, rollout_of
from safetensors.torch import load_file
from self_training_case import trainer as raft_trainer
from test_imitation_reward_trainer import config, pairs, trainer_of
from tiny import tiny_llama, tiny_reward_model
from torch import nn
from transformers import TrainerCallback
from trl import RewardConfig
from two_processes import run_in_two

from trl_ext import ImitationRewardConfig
from trl_ext.ppo import text_mix
from trl_ext.reward_modeling import preference_data
from trl_ext.self_training.stage_table import ImproveEntry
from trl_ext.trainer_kit.checkpoint_files import checkpoint_folders
from trl_ext.trainer_kit.finite_findings import (
    Finding,
    Row,
    all_finite,
    check_rows,
    columns_not_finite,
    first_not_finite,
    stop_message,
)
from trl_ext.trainer_kit.step_watch import StepWatch

BAD = "item 6: "  # the prompt of the one bad pair


def with_bad_margin(value: float = math.nan) -> Dataset:
    return pairs().add_column("margin", [value if row["prompt"] == BAD else 0.1 for row in pairs()])


def reward_trainer(folder, tokenizer, kind=None, **changes):
    arguments = {
        name: changes.pop(name) for name in ("train_dataset", "eval_dataset", "imitation_head") if name in changes
    }
    args = config(folder, **{"kind": kind} if kind else {}, **changes)
    with patch.object(preference_data, "check_label_columns"):  # which sees no stream's
        return trainer_of(folder, tokenizer, args=args, **arguments)


def stopped(trainer, match: str) -> str:
    with pytest.raises(FloatingPointError, match=match) as error:
        trainer.train()
    return str(error.value)


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer._parameters().items()}


def multiply_gradient(parameter: nn.Parameter, by: float, *, steps: range) -> None:
    """Spoil a parameter's gradient in some of the backward passes."""
    passed = iter(range(10**6))
    parameter.register_hook(lambda gradient: gradient * by if next(passed) in steps else gradient)


# -- what is finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(dtype, bad):
    good = torch.full((3, 2), torch.finfo(dtype).max, dtype=dtype)  # whose sum is not
    assert all_finite([good, good.clone()])
    for place in range(6):
        spoiled = good.clone()
        spoiled.view(-1)[place] = bad
        assert not all_finite([good, spoiled]) and not all_finite([spoiled, good])
        assert first_not_finite({"a": good, "b": spoiled, "c": spoiled}) == "b"


def test_what_holds_no_floats_in_memory_is_passed_over():
    others = [torch.ones(2, dtype=torch.int8), torch.empty(3, device="meta"), torch.empty(0)]
    assert all_finite(others) and all_finite([]) and not all_finite([*others, torch.tensor(math.nan)])


def test_different_dtypes_are_looked_at_together():
    mixed = [torch.ones(2, dtype=torch.float16), torch.ones(2, dtype=torch.bfloat16), torch.ones(3)]
    assert all_finite(mixed) and not all_finite([*mixed, torch.tensor([math.inf], dtype=torch.bfloat16)])


def test_numbers_beyond_the_mask_do_not_count():
    """A masked position may hold anything: nothing is learned from it."""
    values, mask = torch.zeros(3, 2), torch.tensor([[1, 0], [1, 1], [0, 0]])
    values[0, 1] = values[2, 0] = math.nan
    check = partial(check_rows, mask=mask, accelerator=Accelerator(cpu=True), call="rollout 4")
    check({"value": values})
    values[1, 1] = math.inf
    with pytest.raises(FloatingPointError, match="rollout 4: the value is not finite in 1 of 3 completions"):
        check({"log π": torch.zeros(3, 2), "value": values})


def test_an_error_says_only_what_was_found():
    """In another process, from some rows, from all, or from rows that nobody could tell apart."""
    some = [Row("row 0 of micro-batch 0", "good", fails=False), Row("row 1 of micro-batch 0", "bad", fails=True)]
    rates = {"learning_rate": 1e-3}
    text = stop_message([None, Finding("the nll", "inf", some)], "T.train: optimizer step 3", rates)
    assert text.startswith(
        "T.train: optimizer step 3 was not made: the nll is inf in process 1 of 2. 1 of 2 rows, each"
    )
    assert "give that: row 1 of micro-batch 0 ('bad'). " in text and "leave them out if they are to blame" in text
    every = stop_message([Finding("the nll", "nan", some[1:])], "T.train", rates)
    assert "1 of 1 rows" in every and every.endswith("lower learning_rate (0.001), or train in bf16 if it is fp16.")
    assert "rows" not in stop_message([Finding("the nll", "nan")], "T.train", rates)
    margin = Row("row 1", "bad", fails=True, columns=columns_not_finite({"margin": torch.tensor([1.0, -math.inf])}))
    assert "its margin -inf" in (said := stop_message([Finding("it", "nan", [margin])], "T", rates))
    assert said.endswith("Mend margin of such rows, or leave them out.")


# -- a bad row -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": RewardConfig},
        {"max_grad_norm": 0.0, "gradient_accumulation_steps": 2},
        {"logging_nan_inf_filter": True},
    ],
    ids=["imitation", "plain config", "accumulated without clipping", "filter asked for"],
)
def test_a_bad_margin_stops_before_its_step_and_is_named(tmp_path, tokenizer, changes):
    """Everything before it is kept, nothing of it is saved, and no log says 0.0."""
    trainer = reward_trainer(
        tmp_path, tokenizer, train_dataset=with_bad_margin(), per_device_train_batch_size=2, seed=3,
        save_strategy="steps", save_steps=1, max_steps=4, **changes,
    )  # fmt: skip
    error = stopped(
        trainer, r"^ImitationRewardTrainer\.train: optimizer step \d was not made: the ranking loss is nan\. "
    )
    made = trainer.state.global_step
    assert made >= 1 and f"optimizer step {made + 1} " in error
    assert "1 of 2 rows" in error and f"'{BAD}" in error and "its margin nan" in error
    assert error.endswith("Mend margin of such rows, or leave them out.")
    newest, *_ = checkpoint_folders(tmp_path)
    assert newest.name == f"checkpoint-{made}" and len(checkpoint_folders(tmp_path)) == made
    saved = load_file(newest / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert all(torch.equal(saved[name], p) for name, p in trainer.model.named_parameters() if name in saved)
    assert len(losses := logged(trainer, "loss")) == made and all(0 < loss < 100 for loss in losses)
    plain = {"kind": ImitationRewardConfig, "imitation_coef": 0.0} if "kind" in changes else {}  # which can accept
    resumed = reward_trainer(
        tmp_path, tokenizer, per_device_train_batch_size=2, seed=3, save_strategy="steps", save_steps=1, max_steps=4,
        accept_changes=["train_dataset"], **changes | plain,
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(newest))
    assert resumed.state.global_step == 4


def test_infinite_margins_are_no_better(tmp_path, tokenizer):
    data = with_bad_margin(math.inf)
    assert "its margin inf" in stopped(
        reward_trainer(tmp_path, tokenizer, train_dataset=data), "the ranking loss is inf"
    )


def test_a_bad_imitation_head_is_told_from_a_bad_ranking(tmp_path, tokenizer):
    head = nn.Linear(16, len(tokenizer), bias=False)
    nn.init.constant_(head.weight, math.nan)
    error = stopped(reward_trainer(tmp_path, tokenizer, imitation_head=head), "the imitation loss is nan")
    assert "4 of 4 rows" in error and error.endswith("lower learning_rate (0.01), or train in bf16 if it is fp16.")


def test_text_that_is_learned_beside_is_told_from_the_rollout(tmp_path, monkeypatch):
    """Its rows are those of the text, not the completions."""
    read = text_mix.label_log_probs
    bad = ord("z")

    def spoiled(model, inputs):
        has_bad = (inputs["input_ids"] == tokenizer_id).any()
        return read(model, inputs) * (math.nan if has_bad else 1.0)

    text = Dataset.from_dict({"text": ["one", "two", "three z", "four"]})
    trainer = ppo_trainer(
        tmp_path, ptx_dataset=text, ptx_coef=0.5, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    tokenizer_id = trainer.processing_class(chr(bad))["input_ids"][0]
    monkeypatch.setattr(text_mix, "label_log_probs", spoiled)
    error = stopped(trainer, "optimizer step 1 was not made: the text loss is nan")
    assert "1 of 2 rows" in error and "'three z'" in error


def test_a_gradient_of_one_row_names_parameter_and_row(tmp_path):
    """A term that is 0 and has no slope there: the loss stays finite, and its gradient does not."""
    trainer = raft_trainer(tmp_path, importance_clip=0.2, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    made, marks, mark = trainer.data_collator, [], 250

    def collate(rows):
        batch = made(rows)
        batch["input_ids"][1, 0] = mark
        marks.append(trainer.processing_class.decode(batch["input_ids"][1], skip_special_tokens=True))
        return batch

    def add_root_of_nothing(module, args, output):
        marked = (args[0][:, 0] == mark)[:, None, None]
        return output + torch.where(marked, output * 0.0, 1.0).abs().sqrt() * marked

    trainer.data_collator = collate
    trainer.model.model.embed_tokens.register_forward_hook(add_root_of_nothing)
    error = stopped(
        trainer, "optimizer step 1 was not made: the gradient of the model's 'model.embed_tokens.weight' is not finite"
    )
    assert "2 of 4 rows" in error
    assert all(f"row 1 of micro-batch {k} ({mark!r})" in error for k, mark in enumerate(marks[:2]))


# -- a rate that is too high ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize(
    ("make", "term"),
    [
        (partial(reward_trainer, tokenizer=None), "ranking loss"),
        (ppo_trainer, "policy loss"),
        (raft_trainer, "nll"),
        (partial(raft_trainer, importance_clip=0.2), "importance loss"),
    ],
    ids=["reward", "ppo", "raft", "raft++"],
)
def test_a_learning_rate_beyond_all_reason(tmp_path, tokenizer, make, term, clip):
    """All rows give it, so the error speaks of the rate."""
    if make not in (ppo_trainer, raft_trainer) and "tokenizer" in make.keywords:
        make = partial(reward_trainer, tokenizer=tokenizer)
    trainer = make(tmp_path, learning_rate=1e30, max_grad_norm=clip)
    error = stopped(trainer, f"was not made: the {term} is (nan|inf|-inf)")
    assert "4 of 4 rows" in error and "lower learning_rate (1e+30)" in error
    assert all(math.isfinite(loss) and loss != 0 for loss in logged(trainer, "loss"))


def test_a_policy_that_cannot_be_sampled_any_more(tmp_path):
    trainer = ppo_trainer(tmp_path, learning_rate=1e30, num_iterations=1)
    stopped(trainer, "^PPOTrainer: rollout 1 could not be sampled, as where the policy's prob.* learning rate")


def test_a_critic_whose_rate_is_too_high(tmp_path):
    trainer = ppo_trainer(tmp_path, critic_learning_rate=1e30, max_steps=4)
    assert "critic_learning_rate (1e+30)" in stopped(trainer, "the value loss is inf")


@pytest.mark.parametrize("save", ["steps", "no"])
def test_a_step_out_of_all_floats_is_not_saved(tmp_path, tokenizer, save):
    """Loss and gradient were finite; the weights are not, at the checkpoint or at the run's end."""
    trainer = reward_trainer(
        tmp_path, tokenizer, optim="sgd", learning_rate=1e38, max_grad_norm=0.0, max_steps=1, save_strategy=save,
        save_steps=1,
    )  # fmt: skip
    multiply_gradient(trainer.model.score.weight, 1e6, steps=range(1))
    stopped(trainer, r"the model's '.*' is not finite after step 1, so nothing is learned from or saved")
    assert checkpoint_folders(tmp_path) == [] and not [*tmp_path.glob("checkpoint-*")]


# -- weights that are given ----------------------------------------------------------------------------------------


def spoiled_model(model, name: str):
    model.get_parameter(name).data.view(-1)[3] = math.nan
    return model


def test_a_value_model_with_a_bad_head_is_named_before_anything_is_sampled(tmp_path, tokenizer):
    value_model = spoiled_model(tiny_reward_model(tokenizer), "score.weight")
    trainer = ppo_trainer(tmp_path, value_model=value_model)
    stopped(trainer, r"^PPOTrainer\.train: the value model's 'model\.score\.weight' is not finite before step 1, ")
    assert trainer.rollouts.sampled == 0


@pytest.mark.parametrize("make", [ppo_trainer, raft_trainer], ids=["ppo", "raft"])
def test_a_policy_with_a_bad_weight(tmp_path, tokenizer, make):
    policy = spoiled_model(tiny_llama(tokenizer), "lm_head.weight")
    stopped(make(tmp_path, model=policy), "the model's 'lm_head.weight' is not finite before step 1")


def test_a_reward_model_to_be_with_a_bad_weight(tmp_path, tokenizer):
    trainer = reward_trainer(tmp_path, tokenizer)
    spoiled_model(trainer.model, "score.weight")
    stopped(trainer, "the model's 'score.weight' is not finite before step 1")


def test_weights_that_are_finite_and_values_that_are_not(tmp_path, tokenizer):
    """Named at the rollout, before whitening has spread it over all completions."""
    value_model = tiny_reward_model(tokenizer)
    nn.init.constant_(value_model.score.weight, 3e38)
    stopped(
        ppo_trainer(tmp_path, value_model=value_model), "rollout 0: the value model's output is not finite in 4 of 4"
    )


@pytest.mark.parametrize("name", ["policy's log π", "advantage"])
def test_other_numbers_of_a_rollout_are_named_too(tmp_path, monkeypatch, name):
    trainer = ppo_trainer(tmp_path)
    if name == "advantage":
        monkeypatch.setattr("trl_ext.ppo.walk.masked_whiten", lambda values, *args: values * math.nan)
    else:
        evaluate = trainer._evaluate_policy
        trainer._evaluate_policy = lambda rollout: (evaluate(rollout)[0] * math.nan, evaluate(rollout)[1])
    with pytest.raises(FloatingPointError, match=f"rollout 0: the {name} is not finite in 4 of 4 completions"):
        rollout_of(trainer)


# -- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("of", ["policy", "critic"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_ppos_gradients_are_named(tmp_path, of, bad, clip):
    """The critic is none of `trainer.model`'s modules. Clipping would spread a NaN over all parameters."""
    trainer = ppo_trainer(tmp_path, max_grad_norm=clip)
    place = trainer.model.model.norm if of == "policy" else trainer.critic.module.linear
    multiply_gradient(place.weight, bad, steps=range(1, 2))
    before = []
    trainer.add_callback(keep_weights(trainer, before))
    name = "model's 'model.norm.weight'" if of == "policy" else "value model's 'linear.weight'"
    stopped(trainer, f"optimizer step 2 was not made: the gradient of the {name} is not finite")
    assert all(torch.equal(p, before[-1][name]) for name, p in trainer._parameters().items())


def keep_weights(trainer, kept: list) -> TrainerCallback:
    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept.append(weights_of(trainer))

    return Keep()


def test_a_gradient_whose_norm_alone_overflows_stops_nothing(tmp_path, tokenizer):
    """Its numbers are finite, their squares are not."""
    trainer = reward_trainer(tmp_path, tokenizer, max_steps=1)
    multiply_gradient(trainer.model.score.weight, 1e30, steps=range(1))
    trainer.train()
    assert logged(trainer, "grad_norm") == [math.inf] and trainer.state.global_step == 1


def test_rows_that_cannot_be_read_again_hide_nothing(tmp_path, tokenizer):
    """Nor are they where the model is sharded, of which no process can read alone."""
    trainer = reward_trainer(tmp_path, tokenizer, train_dataset=with_bad_margin())
    trainer._row_ids = "no_such_column"
    assert "rows" not in stopped(trainer, "the ranking loss is nan. Nothing of this step is saved")
    trainer.is_fsdp_enabled = True
    assert [*trainer._rows("ranking loss", [], 0, None)] == []


def test_each_step_waits_once(tmp_path, tokenizer, monkeypatch):
    """Not once per micro-batch."""
    calls, failed = [], StepWatch.failed
    monkeypatch.setattr(
        StepWatch, "failed", lambda self, batches, *args: calls.append(len(batches)) or failed(self, batches, *args)
    )
    reward_trainer(
        tmp_path, tokenizer, per_device_train_batch_size=1, gradient_accumulation_steps=3, max_steps=4
    ).train()
    assert calls == [3, 3, 2, 3]  # of 8 rows


def test_a_run_that_is_well_reads_nothing_twice(tmp_path, tokenizer, monkeypatch):
    trainer = reward_trainer(tmp_path, tokenizer, max_steps=2)
    monkeypatch.setattr(trainer, "_row_losses", lambda *args: pytest.fail("read again"))
    trainer.train()
    assert "skipped_steps" not in trainer.state.log_history[0]


# -- a loss scaler -------------------------------------------------------------------------------------------------


def scaled(trainer):
    """As fp16 gives it on CUDA; accelerate makes none on a CPU."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    return trainer


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_skipped_steps_are_counted_and_leave_the_weights(tmp_path, tokenizer, optim):
    """A fused optimizer is called and skips by itself, the others are not called."""
    trainer = scaled(reward_trainer(tmp_path, tokenizer, max_steps=6, logging_steps=2, optim=optim))
    multiply_gradient(trainer.model.score.weight, math.inf, steps=range(1, 4))
    after = []
    trainer.add_callback(keep_weights(trainer, after))
    trainer.train()
    assert logged(trainer, "skipped_steps") == [1, 2, 0]
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(after)]
    assert same == [True, True, True, False, False]


@pytest.mark.parametrize("good", [0, 5])
def test_twenty_in_a_row_stop(tmp_path, tokenizer, good):
    """And 19 before and after a step that was made do not."""
    trainer = scaled(reward_trainer(tmp_path, tokenizer, max_steps=60, save_strategy="steps", save_steps=good + 19))
    passed = iter(range(100))
    made = {good + 19} if good else set()
    trainer.model.score.weight.register_hook(lambda g: g if (i := next(passed)) < good or i in made else g * math.inf)
    error = stopped(trainer, "has skipped 20 optimizer steps in a row, up to step ")
    last = good + 20 + (20 if good else 0)
    assert f"up to step {last}: their" in error and "Train with bf16=True" in error
    assert trainer.state.global_step == last - 1
    saved = load_file(checkpoint_folders(tmp_path)[0] / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_a_loss_stops_a_scaled_run_too(tmp_path, tokenizer):
    trainer = scaled(reward_trainer(tmp_path, tokenizer, train_dataset=with_bad_margin()))
    assert "its margin nan" in stopped(trainer, "the ranking loss is nan")


# -- evaluation, and what is best ----------------------------------------------------------------------------------


def test_a_bad_evaluation_is_logged_as_it_is_and_never_the_best(tmp_path, tokenizer):
    trainer = reward_trainer(
        tmp_path, tokenizer, eval_dataset=with_bad_margin(), eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, max_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    with pytest.warns(
        UserWarning, match=r"evaluation after step 1, eval_loss is nan; `load_best_model_at_end` goes by it"
    ):
        trainer.train()
    losses = logged(trainer, "eval_loss")
    assert len(losses) == 2 and all(map(math.isnan, losses)) and trainer.state.best_model_checkpoint is None
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_an_improves_best_score_is_a_number():
    entry = ImproveEntry(improve=0, stage=0, start_step=0, kept=1, passes=1.0)
    assert not entry.evaluated(math.nan, 1) and entry.best_score is None and entry.evaluations_since == 1
    assert entry.evaluated(0.5, 2) and not entry.evaluated(math.nan, 3) and not entry.evaluated(0.5, 4)
    assert entry.best_score == 0.5 and entry.evaluations_since == 2


def test_the_users_filter_of_logs_is_theirs_after_the_run(tmp_path, tokenizer):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(args.logging_nan_inf_filter)

    trainer = reward_trainer(tmp_path, tokenizer, max_steps=1)
    trainer.add_callback(Look())
    trainer.train()
    assert seen == [False] and trainer.args.logging_nan_inf_filter


# -- two processes -------------------------------------------------------------------------------------------------

SCRIPT = """
import math, sys
from pathlib import Path
from unittest.mock import patch
from ppo_case import ppo_trainer
from test_finite_steps import multiply_gradient, reward_trainer, with_bad_margin
from tiny import byte_tokenizer
from trl_ext.trainer_kit.overrides import outputs_of
from two_processes import leave

COMMON = dict(per_device_train_batch_size=2, save_strategy="steps", save_steps=1, max_steps=3, ddp_backend="gloo")

def trained(name, trainer):
    try:
        trainer.train()
        error = "none"
    except FloatingPointError as raised:
        error = str(raised)
    Path(trainer.args.output_dir, f"error-{trainer.accelerator.process_index}").write_text(error)

def reward(name, **options):
    return reward_trainer(f"{sys.argv[1]}/{name}", byte_tokenizer(), **COMMON, **options)

trained("loss", reward("loss", train_dataset=with_bad_margin(), seed=3))

gradient = reward("gradient")
if gradient.accelerator.process_index == 1:
    multiply_gradient(gradient.model.score.weight, math.nan, steps=range(1, 2))
trained("gradient", gradient)

for name, key in (("rollout", None), ("ppo", "returns")):
    ppo = ppo_trainer(f"{sys.argv[1]}/{name}", use_cpu=True, num_iterations=1, num_generations=1, **COMMON)
    if ppo.accelerator.process_index == 1:
        make, evaluate = ppo._generate_and_score_completions, ppo._evaluate_policy

        def spoiled(rows, make=make, key=key, sampled=[]):
            rollout = make(rows)
            sampled.append(rollout)
            if key and len(sampled) == 2:
                rollout[key][1] = math.nan
            return rollout

        def spoiled_values(rollout, evaluate=evaluate, key=key, seen=[]):
            log_probs, values = evaluate(rollout)
            seen.append(values)
            if not key and len(seen) == 2:
                values[1] = math.nan
            return log_probs, values

        ppo._generate_and_score_completions, ppo._evaluate_policy = spoiled, spoiled_values
    trained(name, ppo)
leave()
"""
IN_TWO = {  # what is said in both, and the steps that were made before it
    "loss": ("the ranking loss is nan in process", None),
    "gradient": ("the gradient of the model's 'score.weight' is not finite in process 0 of 2. ", 1),
    "rollout": ("rollout 1: the value model's output is not finite in 1 of 4 completions", 1),
    "ppo": ("optimizer step 2 was not made: the value loss is nan in process 1 of 2. 1 of 2 rows", 1),
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    script = folder / "run.py"
    script.write_text(SCRIPT)
    done = run_in_two(script, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_TWO)
def test_processes_stop_together_where_one_has_the_fault(run_folder, name):
    """With one error, from the one that has the row; and nothing of the step is saved."""
    what, made = IN_TWO[name]
    first, second = ((run_folder / name / f"error-{process}").read_text() for process in range(2))
    assert first == second and what in first
    saved = sorted(folder.name for folder in checkpoint_folders(run_folder / name))
    if made is None:
        made = len(saved)
        assert f"optimizer step {made + 1} was not made" in first and "1 of 2 rows" in first and BAD in first
    assert saved == [f"checkpoint-{i + 1}" for i in range(made)]
    for folder in checkpoint_folders(run_folder / name):
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())
