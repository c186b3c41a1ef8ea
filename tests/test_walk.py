"""The walk of a completion by hand: from what GRPO has sampled and scored to advantages, without a model."""

from collections import defaultdict

import pytest
import torch
from accelerate import Accelerator

from trl_ext import PPOConfig
from trl_ext.ppo.metrics import PPOMetrics
from trl_ext.ppo.rollout_state import RolloutState
from trl_ext.ppo.walk import CompletionWalk

REWARDS, ENDED = torch.tensor([[2.0], [4.0]]), [True, False]


def walked(rewards=REWARDS, *, reference=True, training=True, **options):
    """Two completions, of three tokens and of two; log π is −.5 everywhere, the reference's −1, V is 1."""
    settings = {"bf16": False, "report_to": "none", "per_device_train_batch_size": 2, "beta": 0.5, "lam": 1.0}
    settings |= {"score_scaling": False, "whiten_advantages": False, "missing_eos_penalty": 1.0}
    args, accelerator = PPOConfig("unused", **settings | options), Accelerator(cpu=True)
    rollout = {"completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    if reference:
        rollout["ref_per_token_logps"] = torch.full((2, 3), -1.0)
    walk = CompletionWalk(args, accelerator, RolloutState(args), torch.ones(1))
    metrics = PPOMetrics(accelerator, defaultdict(list), [0.0, 0.0])

    def evaluate(rollout):
        return torch.full((2, 3), -0.5), torch.ones(2, 3)

    return walk(rollout, rewards, ENDED, evaluate, metrics, training=training), metrics, walk.state


def test_by_hand():
    rollout, metrics, state = walked()
    # kl = −.5 + 1 = .5 costs β·kl = .25 on each token; scores 2, and 4 less the penalty 1 of not ending
    # returns, from the last token on: 2 − .25, then −.25 each; 3 − .25, then −.25
    returns = torch.tensor([[1.25, 1.5, 1.75], [2.5, 2.75, 0.0]])
    torch.testing.assert_close(rollout["returns"], returns)
    torch.testing.assert_close(rollout["advantages"], (returns - 1.0) * rollout["completion_mask"])
    assert rollout["num_items_in_batch"] == 5 and "ref_per_token_logps" not in rollout
    assert state.sampled == 1 and state.score_moments.mean == 2.5
    logged = {name: values[0] for name, values in metrics.logged.items()}
    assert (logged["score"], logged["completions/eos_ratio"], logged["kl_per_completion"]) == (2.5, 0.5, 1.25)
    assert metrics.table == pytest.approx([0.5, 1.625])  # means of advantages: (.25 + .5 + .75) / 3, (1.5 + 1.75) / 2


def test_without_a_reference_kl_is_free():
    free = walked(beta=0.0, reference=False)[0]
    torch.testing.assert_close(free["returns"], torch.tensor([[2.0, 2.0, 2.0], [3.0, 3.0, 0.0]]))
    torch.testing.assert_close(free["returns"], walked(beta=0.0)[0]["returns"])


def test_evaluation_moves_nothing():
    rollout, metrics, state = walked(training=False)
    torch.testing.assert_close(rollout["returns"], walked()[0]["returns"])
    assert (state.sampled, state.score_moments.count, state.collapse.history) == (0, 0, [])
    assert "beta" not in metrics.logged


def test_a_row_without_a_score_is_masked_and_none_at_all_refused():
    rollout, _, state = walked(torch.tensor([[2.0], [float("nan")]]))
    assert rollout["tool_mask"].tolist() == [[1, 1, 1], [0, 0, 0]] and state.score_moments.count == 1
    with pytest.raises(ValueError, match="no reward function scored any of the 2 completions"):
        walked(torch.full((2, 1), float("nan")))
