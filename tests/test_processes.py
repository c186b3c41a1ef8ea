"""What several processes do together, where one of them fails."""

import asyncio
import sys
from types import SimpleNamespace

import pytest

from trl_ext.rewards.checked_reward import checked_reward
from trl_ext.rewards.held_errors import errors_held
from trl_ext.trainer_kit import failed_process, processes
from trl_ext.trainer_kit.processes import has_lost_another, together

TWO, ONE = (SimpleNamespace(num_processes=number, is_main_process=True) for number in (2, 1))
GLOO = RuntimeError("[…/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:220")


def away(completions, **columns):
    raise KeyError("the service is away")


async def away_later(completions, **columns):
    raise KeyError("the service is away")


def test_a_rewards_error_waits_until_all_have_scored():
    with pytest.raises(KeyError, match="the service is away"), errors_held([checked_reward(away)], TWO) as held:
        assert held[0](completions=["a", "b"]) == [0.0, 0.0] and held[0].__name__ == "away"
    with pytest.raises(KeyError, match="the service is away"), errors_held([checked_reward(away_later)], TWO) as held:
        assert asyncio.run(held[0](completions=["a"])) == [0.0]


def test_one_processs_reward_is_as_it_was():
    with errors_held([away], ONE) as held:
        assert held == [away]


def test_an_own_error_says_more_than_that_the_others_are_gone(monkeypatch):
    def lost(objects):
        raise GLOO

    monkeypatch.setattr(processes, "gather_object", lost)
    with pytest.raises(KeyError, match="the first"), together(TWO):
        raise KeyError("the first")
    with pytest.raises(RuntimeError, match="Connection closed"), together(TWO):
        pass


def test_a_process_ends_behind_the_one_that_failed(monkeypatch):
    """Its interpreter says so a while later, and once, however often it was told; other errors at once."""
    monkeypatch.setattr(processes, "gather_object", lambda objects: [None, "KeyError: 'gone'"])
    happened = []
    monkeypatch.setattr(failed_process.time, "sleep", happened.append)
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: happened.append(str(error)))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="process 1 of 2 failed: KeyError: 'gone'") as raised, together(TWO):
            pass
    sys.excepthook(RuntimeError, raised.value, None)
    sys.excepthook(KeyError, KeyError("gone"), None)
    assert happened == [failed_process.HEAD_START, "process 1 of 2 failed: KeyError: 'gone'", "'gone'"]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (GLOO, True),
        (RuntimeError("NCCL communicator was aborted on rank 0"), True),
        (RuntimeError("process 1 of 2 failed: RuntimeError: gloo"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError("of a reward's service"), False),
    ],
)
def test_who_is_not_heard(error, lost):
    assert has_lost_another(error) is lost
