"""Weights for who samples instead of the policy, by hand; what its log-probabilities may be; and a lost adapter found."""

import math
import warnings
from collections import defaultdict

import pytest
import torch
from accelerate import Accelerator
from ppo_case import logged, ppo_trainer, rollout_of
from sampling_case import rounded, sampled_trainer
from tiny import byte_tokenizer, tiny_llama

from trl_ext import PPOConfig
from trl_ext.ppo.metrics import PPOMetrics
from trl_ext.ppo.rollout_state import RolloutState
from trl_ext.ppo.sampling_gap import Mean, known_log_probs, read_log_probs, sampling_weights
from trl_ext.ppo.sampling_watch import SamplingWatch
from trl_ext.ppo.walk import CompletionWalk

NAN = math.nan
LOG_PROBS = torch.tensor([[0.4, 0.3, 0.5], [0.1, 0.6, 0.9]]).log()
SAMPLED = torch.tensor([[0.5, 0.1, 0.5], [0.2, 0.4, 0.0]]).log()  # the last is padding, which TRL gives as 0


def walked(sampled=None, *, training=True, **options):
    """Two completions, of three tokens and of two, in the walk of PPO; its rollout, metrics and state."""
    settings = {
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": 2,
        "beta": 0.5,
        "score_scaling": False,
    }
    args = PPOConfig("unused", **settings | options)
    rollout = {"completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]), "ref_per_token_logps": LOG_PROBS - 0.5}
    if sampled is not None:
        rollout["sampling_per_token_logps"] = sampled.masked_fill(rollout["completion_mask"] == 0, 0.0)
    accelerator = Accelerator(cpu=True)
    walk = CompletionWalk(args, accelerator, RolloutState(args), torch.ones(1), "somebody")
    metrics = PPOMetrics(accelerator, defaultdict(list), [0.0, 0.0])
    rewards = torch.tensor([[2.0], [4.0]])
    values = torch.linspace(0.0, 1.0, 6).view(2, 3)
    rollout = walk(rollout, rewards, [True, False], lambda _: (LOG_PROBS, values), metrics, training=training)
    return rollout, {name: numbers[0] for name, numbers in metrics.logged.items()}, walk.state


# Weights


def test_weights_by_hand():
    # .4 / .5 = .8;  .3 / .1 = 3, capped;  .5 / .5;  .1 / .2;  .6 / .4
    weights = sampling_weights(LOG_PROBS, SAMPLED, cap=2.0)
    torch.testing.assert_close(weights[:, :2], torch.tensor([[0.8, 2.0], [0.5, 1.5]]))
    assert weights[0, 2] == 1.0 and not weights.requires_grad
    assert sampling_weights(LOG_PROBS, SAMPLED, cap=4.0)[0, 1].item() == pytest.approx(3.0)
    assert sampling_weights(LOG_PROBS, torch.full((2, 3), NAN), cap=1.0).tolist() == [[1.0] * 3] * 2


def test_advantages_are_weighted_and_returns_are_not():
    plain, weighted = walked()[0], walked(SAMPLED)[0]
    torch.testing.assert_close(
        weighted["advantages"], plain["advantages"] * torch.tensor([[0.8, 2.0, 1.0], [0.5, 1.5, 0.0]])
    )
    for name in ("returns", "values", "old_per_token_logps"):
        assert torch.equal(weighted[name], plain[name])
    assert "sampling_per_token_logps" not in weighted


def test_no_weights_where_sampler_and_policy_agree_or_nothing_is_known_or_without_a_cap():
    plain = walked()[0]["advantages"]
    for same in (walked(LOG_PROBS), walked(torch.full((2, 3), NAN)), walked(SAMPLED, sampling_weight_cap=None)):
        assert torch.equal(same[0]["advantages"], plain)
    some = SAMPLED.clone()
    some[0, 0] = NAN
    torch.testing.assert_close(walked(some)[0]["advantages"][0], plain[0] * torch.tensor([1.0, 2.0, 1.0]))


def test_the_weighted_advantage_is_the_weighted_surrogate():
    """Value and gradient: w > 0 may stand inside min and clip or before them."""
    torch.manual_seed(0)
    log_ratio, advantages = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    weights = sampling_weights(torch.randn(4, 9), torch.randn(4, 9), cap=2.0)

    def surrogate(advantages):
        ratio = log_ratio.exp()
        return torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)

    inside, outside = surrogate(weights * advantages), weights * surrogate(advantages)
    torch.testing.assert_close(inside, outside)
    (one,), (other,) = (torch.autograd.grad(terms.sum(), log_ratio) for terms in (inside, outside))
    torch.testing.assert_close(one, other)


def test_the_weighted_mean_over_the_samplers_draws_is_the_policys():
    """Exactly, where no weight is capped: Σ q · (π / q) · A∇log π = Σ π · A∇log π; with a cap nearer than without weights."""
    torch.manual_seed(0)
    logits, worth = torch.randn(50), torch.randn(50)
    policy, sampler = logits.log_softmax(0), (logits + 0.7 * torch.randn(50)).log_softmax(0)
    advantages = worth - (policy.exp() * worth).sum()

    def gradient(shares):  # ∇ log π(a) = 1[a] − π
        return shares * advantages - policy.exp() * (shares * advantages).sum()

    own, unweighted = gradient(policy.exp()), gradient(sampler.exp())
    weighted = {cap: gradient(sampler.exp() * sampling_weights(policy, sampler, cap=cap)) for cap in (2.0, 1e9)}
    torch.testing.assert_close(weighted[1e9], own)
    assert (weighted[2.0] - own).norm() < 0.5 * (unweighted - own).norm()


def test_under_use_vllm_the_weights_are_trls_alone():
    plain = walked()[0]["advantages"]
    rollout, numbers, _ = walked(SAMPLED, use_vllm=True)
    assert torch.equal(rollout["advantages"], plain)
    assert "sampling_kl" in numbers and "sampling_weight" not in numbers
    with pytest.raises(ValueError, match=r"use_vllm=True, sampling_weight_cap=3.0.*there TRL weighs|there TRL weighs"):
        PPOConfig("unused", bf16=False, use_vllm=True, sampling_weight_cap=3.0)


# What is logged


def test_metrics_by_hand():
    numbers = walked(SAMPLED)[1]
    gaps = [math.log(5 / 4), math.log(1 / 3), 0.0, math.log(2), math.log(2 / 3)]
    assert numbers["sampling_kl"] == pytest.approx(sum(gaps) / 5, rel=1e-5)
    assert numbers["sampling_weight"] == pytest.approx((0.8 + 2.0 + 1.0 + 0.5 + 1.5) / 5)
    assert numbers["sampling_weight_capped"] == pytest.approx(1 / 5)
    some = SAMPLED.clone()
    some[0] = NAN  # a row of which it cannot say
    assert walked(some)[1]["sampling_kl"] == pytest.approx((gaps[3] + gaps[4]) / 2, abs=1e-6)
    for nothing in (walked(), walked(torch.full((2, 3), NAN))):
        assert not [name for name in nothing[1] if name.startswith("sampling")]


def test_evaluation_is_weighted_and_logged_and_moves_no_watch():
    rollout, numbers, state = walked(SAMPLED, training=False)
    torch.testing.assert_close(rollout["advantages"], walked(SAMPLED)[0]["advantages"])
    assert "sampling_kl" in numbers and state.sampling == SamplingWatch()


# What log-probabilities may be


def test_log_probs_are_read_as_floats():
    assert read_log_probs(None, [[5, 6]], call="f") is None
    rows = read_log_probs([[-1, torch.tensor(-0.5)], None, (None,)], [[5, 6], [7, 8], [9]], call="f")
    assert rows[0] == [-1.0, -0.5] and all(math.isnan(number) for number in rows[1] + rows[2])
    assert [type(number) for number in rows[0]] == [float, float]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[-1.0, -1.0]], r"f: expected `logprobs` of 2 completions, got 1"),
        ([[-1.0, -1.0], [-1.0]], r"f: row 1: expected a log-probability for each of its 2 tokens, got 1"),
        ([[[-1.0, -9.0], [-1.0]], None], r"f: row 0: expected one log-probability per token.*got \[-1.0, -9.0\]"),
        ([None, ["a", "b"]], r"f: row 1: expected one log-probability per token.*got 'a'"),
    ],
)
def test_rows_that_are_no_log_probs_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        read_log_probs(rows, [[5, 6], [7, 8]], call="f")


def test_they_are_read_where_rollouts_come_in(tmp_path):
    """Rows that are too short would be padded with zeros, which is certainty."""
    trainer = sampled_trainer(tmp_path, lambda trainer: trainer.model, lambda rows: [row[:-1] for row in rows])
    with pytest.raises(ValueError, match=r"PPOTrainer\(rollout_func=…\): row 0: expected a log-probability for each"):
        rollout_of(trainer)


def test_probabilities_are_no_log_probabilities():
    with pytest.raises(ValueError, match=r"somebody: expected natural logarithms .* 5 are above it"):
        walked(SAMPLED.exp())
    with pytest.raises(
        FloatingPointError, match=r"rollout 0: the sampler's log π is not finite in 1 of 2 completions"
    ):
        walked(SAMPLED.index_fill(0, torch.tensor([1]), -math.inf))


def test_zeros_on_every_token_stand_for_nothing():
    """As TRL asks for the key, zeros are given in its place; weights by them would be the policy's probabilities."""
    zeros, where = torch.zeros(2, 3), {"mask": torch.ones(2, 3), "accelerator": Accelerator(cpu=True), "call": "f"}
    known, rows = known_log_probs(zeros, LOG_PROBS, **where)
    assert known.isnan().all() and rows == 2
    known, rows = known_log_probs(torch.stack([SAMPLED[0], zeros[1]]), LOG_PROBS, **where)
    assert torch.equal(known[0], SAMPLED[0]) and known[1].isnan().all() and rows == 1
    known, rows = known_log_probs(zeros, torch.full((2, 3), -1e-4), **where)
    assert torch.equal(known, zeros) and rows == 0  # the policy was certain too
    with pytest.warns(UserWarning, match=r"somebody gave 0 as the log-probability of every token of 2 completions"):
        rollout, numbers, state = walked(zeros)
    assert torch.equal(rollout["advantages"], walked()[0]["advantages"])
    assert "sampling_kl" not in numbers and state.sampling.warned == ["placeholders"]


def test_a_cap_is_refused_where_the_policy_samples(tmp_path):
    with pytest.raises(
        ValueError, match=r"sampling_weight_cap=None\): it does nothing where the policy samples itself"
    ):
        ppo_trainer(tmp_path, sampling_weight_cap=None)
    with pytest.raises(ValueError, match=r"PPOConfig\(sampling_weight_cap=0.5\): it must be in \[1.0, ∞\)"):
        PPOConfig("unused", bf16=False, sampling_weight_cap=0.5)


# The watch, by hand


def seen(
    kl=0.0,
    *,
    error=0.0,
    distance=0.1,
    distance_error=0.0,
    moved=0.0,
    nearer=None,
    nearer_error=0.0,
    weight=1.0,
    tokens=1000,
):
    numbers = {"sampling_kl": (kl, error), "to_policy": (distance, distance_error), "sampling_weight": (weight, 0.01)}
    if nearer is not None:
        numbers |= {"moved": (moved, 0.0), "nearer_to_reference": (nearer, nearer_error)}
    return {name: Mean(*pair, tokens) for name, pair in numbers.items()}


def watched(*rollouts) -> SamplingWatch:
    watch = SamplingWatch()
    for rollout in rollouts:
        watch.update(rollout, placeholders=0, sampler="vLLM", call="rollout 2")
    return watch


LOST = {"moved": 0.2, "nearer": 0.1, "nearer_error": 0.02, "distance": 0.2}


def test_a_sampler_that_is_nearer_to_the_reference_twice_in_a_row_stops_the_run():
    first = seen(nearer=0.0)
    with pytest.raises(
        RuntimeError, match=r"rollout 2: vLLM samples without the adapter.* 0.1 nats per token from the r"
    ):
        watched(first, seen(**LOST), seen(**LOST))
    assert watched(first, seen(**LOST)).lost == 1
    assert watched(first, seen(**LOST), seen(nearer=-0.1), seen(**LOST)).lost == 1


@pytest.mark.parametrize(
    "change",
    [{"moved": 0.05}, {"nearer_error": 0.05}, {"nearer": -0.1}, {"nearer": None}, {"tokens": 20}],
    ids=["the policy has hardly moved", "noise", "nearer to the policy", "no reference", "few tokens"],
)
def test_what_does_not_stop_a_run(change):
    rollout = seen(**LOST | change)
    assert watched(seen(nearer=0.0), rollout, rollout, rollout).lost == 0


def test_a_gap_that_grows_to_five_times_the_first_is_warned_of_once():
    first = seen(0.003, error=0.0005)
    with pytest.warns(
        UserWarning, match=r"sampling_kl is 0.03 nats per token, 0.003 in the first rollout: vLLM"
    ) as found:
        watch = watched(first, seen(0.03, error=0.001), seen(0.3))
    assert len(found) == 1 and watch.warned == ["far"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(first, seen(0.014), seen(-0.014), seen(0.03, error=0.01))
        watched(seen(1e-8), seen(0.009))  # too little to matter
        watched(seen(0.001, error=0.05), seen(0.2))  # the first could be 0.1 as well


def test_a_sampler_that_is_not_the_policy_stops_the_run_in_any_rollout():
    with pytest.raises(
        RuntimeError, match=r"rollout 2: who samples is not the policy: vLLM's .* are 6.5 nats .*kl 6.4\)"
    ):
        watched(seen(6.4, distance=6.5))
    with pytest.raises(RuntimeError, match="who samples is not the policy"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched(seen(), seen(-2.2, distance=2.3))


def test_what_4_bits_may_do_is_warned_of_once():
    """As was measured of a peaked model; few tokens, or noise, stop nothing."""
    with pytest.warns(
        UserWarning, match=r"vLLM's log-probabilities are 1.08 nats per token from the policy's"
    ) as found:
        watch = watched(seen(0.7, distance=1.08), seen(0.7, distance=1.08))
    assert len(found) == 1 and watch.warned == ["strange"]
    with pytest.warns(UserWarning, match="are 9 nats"):
        watched(seen(8.0, distance=9.0, tokens=20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(seen(0.14, distance=0.3))
        watched(seen(distance=9.0, distance_error=3.0))


def test_weights_above_1_are_not_the_samplers():
    with pytest.warns(
        UserWarning, match=r"sampling_weight is 1.2: vLLM gives log-probabilities that are not of the dist"
    ):
        watched(seen(), seen(weight=1.2))


def test_the_watch_is_in_checkpoints(tmp_path):
    args = PPOConfig("unused", bf16=False, report_to="none")
    one, other = RolloutState(args), RolloutState(args)
    one.sampling = watched(seen(0.5, error=0.1, nearer=0.0), seen(**LOST))
    one.sampling.warned = ["far"]
    one.save(tmp_path, 0, step=0, batches=None)
    other.load(tmp_path, 0, torch.device("cpu"))
    assert other.sampling == one.sampling and other.sampling.lost == 1
    with pytest.raises(RuntimeError, match="without the adapter"):
        other.sampling.update(seen(**LOST), placeholders=0, sampler="vLLM", call="rollout 3")


def test_another_sampler_is_compared_with_its_own_first_rollout(tmp_path):
    """A run that goes on with one of other precision; with the same one, what was seen of it stays."""

    def run(bits=None, **options):
        settings = {"save_strategy": "steps", "save_steps": 4} | options
        return sampled_trainer(tmp_path, lambda trainer: rounded(trainer.model, bits), max_steps=8, **settings)

    first = run()
    first.train()
    seen_then = first.rollouts.sampling.first_distance
    checkpoint = str(tmp_path / "checkpoint-4")
    same = run()
    same.train(resume_from_checkpoint=checkpoint)
    assert same.rollouts.sampling.first_distance == seen_then < 1e-5
    other = run(3, name="three_bits", accept_changes=["generator"])
    other.train(resume_from_checkpoint=checkpoint)
    assert other.rollouts.sampling.first_distance > 0.01 and not other.rollouts.sampling.warned


# Real samples


@pytest.mark.parametrize("bits", [None, 8, 3], ids=["the policy itself", "8 bits", "3 bits"])
def test_precision_is_no_lost_adapter(tmp_path, bits):
    """What rounding moves log-probabilities by, 0.0 to 0.11 nats per token here, raises no alarm and no warning."""
    trainer = sampled_trainer(tmp_path, lambda trainer: rounded(trainer.model, bits))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.train()
    assert not [warning for warning in found if "other_engine" in str(warning.message)]
    assert trainer.rollouts.sampling.lost == 0 and trainer.rollouts.sampling.first_kl is not None
    weights = logged(trainer, "sampling_weight")
    assert len(weights) == 4 and all(abs(weight - 1.0) < 0.1 for weight in weights)
    if bits is None:
        assert all(abs(kl) < 1e-5 for kl in logged(trainer, "sampling_kl"))


@pytest.mark.parametrize("bits", [None, 8, 3])
def test_a_lost_adapter_is_found_in_the_third_rollout(tmp_path, bits):
    lost = rounded(tiny_llama(byte_tokenizer()), bits)
    trainer = sampled_trainer(tmp_path, lambda trainer: lost)
    with pytest.raises(RuntimeError, match=r"train: rollout 2: other_engine samples without the adapter"):
        trainer.train()


def test_another_model_is_found_in_the_first_rollout(tmp_path):
    """Of sharper opinions; nothing is learned from its samples."""
    other = rounded(tiny_llama(byte_tokenizer(), seed=3))
    other.lm_head.weight.data *= 30
    trainer = sampled_trainer(tmp_path, lambda trainer: other)
    with pytest.raises(
        RuntimeError, match=r"train: rollout 0: who samples is not the policy: other_engine's log-prob"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_without_a_reference_a_lost_adapter_is_warned_of(tmp_path):
    lost = rounded(tiny_llama(byte_tokenizer()))
    trainer = sampled_trainer(tmp_path, lambda trainer: lost, beta=0.0, learning_rate=0.05)
    with pytest.warns(UserWarning, match=r"PPOTrainer: sampling_kl is .*: other_engine has come away from the policy"):
        trainer.train()


def test_one_rollout_behind_is_no_lost_adapter(tmp_path):
    """As where the next rollout is sampled while this one is learned: in the second the reference is what it samples."""
    last = [rounded(tiny_llama(byte_tokenizer()))]

    def behind(trainer):
        last.append(rounded(trainer.model))
        return last.pop(0)

    trainer = sampled_trainer(tmp_path, behind)
    trainer.train()
    assert trainer.rollouts.sampled == 4 and trainer.rollouts.sampling.lost == 0


def test_log_probs_of_another_distribution_are_warned_of(tmp_path):
    """Given at temperature 2, say, where it drew at 1."""
    trainer = sampled_trainer(
        tmp_path, lambda trainer: trainer.model, lambda rows: [[lp - 0.3 for lp in row] for row in rows], max_steps=4
    )
    with pytest.warns(
        UserWarning, match=r"sampling_weight is 1.35: other_engine gives log-probabilities that are not"
    ):
        trainer.train()
