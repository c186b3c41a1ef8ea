"""The same numbers as TRL 1.12's own PPOTrainer on the same tensors, and where and by how much they differ.

`tests/fixtures/trl_1_12.json` is what its `train()` held; `trl_1_12_numbers.py` made it. TRL's
`padding_mask` is 0 on real tokens, `padding_mask_p1` also on the one after the last, where it puts the score.
"""

import pytest
import torch
from parity_case import FIXTURE, Seen, as_rollout, learn, learner
from parity_models import causal_lm, scorer

from trl_ext.ppo import walk
from trl_ext.ppo.token_rewards import kl_per_token, last_own_token
from trl_ext.ppo.value_loss import clipped_value_error
from trl_ext.rewards.reward_models import score_sequences
from trl_ext.trainer_kit.masked import masked_mean, masked_whiten

EOS = 1
close = torch.testing.assert_close


@pytest.fixture(params=FIXTURE["cases"])
def seen(request):
    return Seen(request.param)


# The same


def test_kl(seen):
    kl = kl_per_token(seen.logprobs, seen.ref_logprobs, estimator=seen.options["kl_estimator"])
    close(kl, seen.kl, rtol=0, atol=1e-6)
    assert kl[seen.real].abs().min() > 0


def test_token_rewards_where_trl_puts_the_score(seen):
    close(seen.token_rewards(seen.with_next), seen.rewards, rtol=0, atol=1e-7)


def test_advantages_and_returns(seen):
    advantages, returns = seen.gae(seen.rewards, seen.with_next)
    close(advantages, seen.advantages, rtol=0, atol=1e-6)
    close(returns, seen.returns, rtol=0, atol=1e-6)


def test_whitened_advantages(seen):
    """TRL divides the variance by n − 1 instead of n: with n = 36 tokens a factor of √(35/36), and no other difference."""
    n = seen.real.sum()
    ours = masked_whiten(seen.advantages, seen.real) * ((n - 1) / n).sqrt()
    close(ours[seen.real], seen.whitened[seen.real], rtol=0, atol=1e-6)


@pytest.mark.parametrize("epoch", range(4))
def test_value_error(seen, epoch):
    told = seen.epochs[epoch]
    rows = told["micro_batch_inds"].long()
    clip = seen.options["cliprange_value"]
    error = clipped_value_error(told["vpred"], seen.values[rows], told["mb_return"], clip=clip)
    close(masked_mean(error, seen.with_next[rows]), told["vf_loss"], rtol=0, atol=1e-7)


def test_position_of_v(seen, tmp_path):
    """V_t is read where token t is predicted: at the prompt's last token for the first, at <eos> for what follows it."""
    values = learner(seen, tmp_path)._evaluate_policy(as_rollout(seen, seen.with_next))[1]
    close(values[seen.with_next], seen.values[seen.with_next], rtol=0, atol=1e-6)
    assert seen.values[seen.with_next].std() > 0.1


def test_log_probs(seen, tmp_path):
    log_probs = learner(seen, tmp_path)._evaluate_policy(as_rollout(seen, seen.real))[0]
    close(log_probs[seen.real], seen.logprobs[seen.real], rtol=0, atol=2e-6)


@pytest.mark.parametrize("loss", ["pg_loss", "vf_loss"])
def test_losses_over_four_epochs(seen, loss, tmp_path):
    """The trainer learns from TRL's tensors, as TRL did: the same loss before each of four steps.

    TRL's mean of the value loss runs over one token more in each row that ended (see below); here it is given ours.
    """
    trainer = learner(seen, tmp_path)
    policy_losses, value_losses = learn(trainer, as_rollout(seen, seen.real if loss == "pg_loss" else seen.with_next))
    told = torch.stack([epoch[loss] for epoch in seen.epochs])
    close(policy_losses if loss == "pg_loss" else value_losses, told, rtol=0, atol=2e-6)
    assert told.std() > 1e-3


def test_one_whole_update(tmp_path, monkeypatch):
    """From samples and scores to the weights after four epochs, where no completion ends early. Only TRL's n − 1 is
    lent to ours."""
    seen = Seen("full_length")
    n = seen.real.sum()
    monkeypatch.setattr(walk, "masked_whiten", lambda *args: masked_whiten(*args) * ((n - 1) / n).sqrt())
    trainer = learner(
        seen,
        tmp_path,
        reward_funcs=lambda prompts, **columns: [seen.scores[int(prompt)].item() for prompt in prompts],
        rollout_func=lambda prompts, trainer: {
            "prompt_ids": [seen.queries[int(prompt)].tolist() for prompt in prompts],
            "completion_ids": [seen.responses[int(prompt)].tolist() for prompt in prompts],
            "logprobs": None,
        },
    )
    trainer.ref_model.load_state_dict(causal_lm("reference").state_dict())
    start = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    models = {"policy": trainer.model, "value": trainer.critic.own_model}
    for role, model in models.items():
        for name, weight in model.named_parameters():
            close(
                weight,
                torch.tensor(seen.after[role][name]),
                rtol=0,
                atol=5e-6,
                msg=lambda text, at=name: f"{at}: {text}",
            )
    assert max((start[name] - weight).abs().max() for name, weight in trainer.model.named_parameters()) > 0.01


# Where TRL differs


@pytest.mark.parametrize(("case", "expected"), [("ended", [-0.012, -0.012, -0.013]), ("k3", [-0.041, -0.044, -0.041])])
def test_score_lands_on_a_pad_in_trl(case, expected):
    """trl #3750: a completion that ended gets its score one token late, behind λ and a value that means nothing.

    At the last real token ours has the score where TRL has γ·V_pad + γλ·(score − V_pad), so that ours less TRL's is
    (1 − γλ)·score − γ(1 − λ)·V_pad. λ = γ = 1 would hide it.
    """
    seen = Seen(case)
    ended, last = ~seen.real.all(1), last_own_token(seen.real)
    last_of_ended, pad = last & ended.unsqueeze(1), seen.with_next & ~seen.real
    ours = seen.token_rewards(seen.real)
    close((ours - seen.rewards)[last_of_ended], seen.scores[ended], rtol=0, atol=1e-6)
    assert torch.equal(seen.rewards[pad], seen.scores[ended])
    close(ours[~ended], seen.rewards[~ended], rtol=0, atol=1e-7)  # no pad, no difference

    gamma, lam = seen.options["gamma"], seen.options["lam"]
    difference = (seen.gae(ours, seen.real)[0] - seen.advantages)[last_of_ended]
    by_hand = (1 - gamma * lam) * seen.scores[ended] - gamma * (1 - lam) * seen.values[pad]
    close(difference, by_hand, rtol=0, atol=1e-6)
    assert difference.tolist() == pytest.approx(expected, abs=5e-4)


def test_value_loss_runs_over_a_pad_in_trl():
    """Its mean runs over 29 tokens where 26 were written; on these numbers 0.332 instead of 0.367."""
    seen = Seen("ended")
    told = seen.epochs[0]
    rows = told["micro_batch_inds"].long()
    error = clipped_value_error(told["vpred"], seen.values[rows], told["mb_return"], clip=0.05)
    assert (seen.with_next.sum(), seen.real.sum()) == (29, 26)
    assert masked_mean(error, seen.real[rows]).item() == pytest.approx(0.367, abs=5e-4)
    assert told["vf_loss"].item() == pytest.approx(0.332, abs=5e-4)


def test_eos_is_no_token_in_trl_where_it_is_also_the_pad():
    """trl #5303: its masks ask for ids that are not the pad's, so <eos> has no log-probability, and the reward model
    does not read it; an empty answer has no token at all."""
    seen = Seen("pad_is_eos")
    written = [row[: row.index(EOS) + 1] if EOS in row else row for row in seen.responses.tolist()]
    assert [len(row) for row in written] == [4, 6, 6, 3, 1, 6]
    assert seen.real.sum(1).tolist() == [3, 5, 6, 2, 0, 6]
    prompts = seen.queries.tolist()

    def scores(completions):
        rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        return torch.tensor(score_sequences(scorer("reward"), rows, rows, pad_token_id=0, batch_size=1))

    close(scores([[token for token in row if token != EOS] for row in written]), seen.scores, rtol=0, atol=1e-6)
    assert (scores(written) - seen.scores).abs().max() > 0.05


def test_score_is_read_at_the_last_real_token():
    """With a pad of its own TRL reads it at <eos> too, or at the last token of what was cut; less the penalty there."""
    seen = Seen("ended")
    rows = [p + [t for t in r if t] for p, r in zip(seen.queries.tolist(), seen.responses.tolist(), strict=True)]
    scores = torch.tensor(score_sequences(scorer("reward"), rows, rows, pad_token_id=0, batch_size=1))
    cut = (seen.responses != EOS).all(1)
    close(scores - seen.options["missing_eos_penalty"] * cut, seen.scores, rtol=0, atol=1e-6)
