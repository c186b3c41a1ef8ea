"""A base with several roles is not cut, whichever trainer a role is given to, and whenever the engine was asked for."""

import importlib.util

import pytest
import torch
from sharded_case import in_two
from shared_case import IDS
from tiny import byte_tokenizer, tiny_llama
from torch import nn

from trl_ext import SharedBase
from trl_ext.shared_base import shared_base
from trl_ext.trainer_kit.cut_checks import ask_before_cutting, check_may_be_cut

CUT = r"SharedBase with several roles runs on one device.*, not under FSDP2: it cuts the base.*SharedBase\)"


@pytest.fixture
def base():
    return SharedBase(tiny_llama(byte_tokenizer()), byte_tokenizer())


def test_each_pass_of_several_roles_asks_what_accelerate_knows_by_then(base, monkeypatch):
    policy, reward = base.policy(), base.reward_model()
    monkeypatch.setattr(shared_base, "engine_asked", lambda: "FSDP2")
    for model in (policy, reward.module, policy.base_model.model):  # by the last one samples
        with pytest.raises(ValueError, match=CUT):
            model.eval()(input_ids=IDS)
    with pytest.raises(ValueError, match=CUT):
        policy.generate(input_ids=IDS, max_new_tokens=1)
    del reward, model
    check_may_be_cut(policy)  # alone again
    assert torch.isfinite(policy(input_ids=IDS).logits).all()


def test_whoever_lets_an_engine_cut_a_model_can_ask_before(base, monkeypatch):
    policy = base.policy()
    monkeypatch.setattr(shared_base, "engine_asked", lambda: "FSDP2")
    with pytest.raises(ValueError, match=CUT):
        base.value_model()
    check_may_be_cut(policy)
    monkeypatch.setattr(shared_base, "engine_asked", lambda: None)
    value = base.value_model()
    check_may_be_cut(nn.ModuleDict({"critic": value}))
    monkeypatch.setattr(shared_base, "engine_asked", lambda: "FSDP2")
    with pytest.raises(ValueError, match=CUT):
        check_may_be_cut(nn.ModuleDict({"critic": value}))


def test_what_nobody_knows_of_may_be_cut():
    check_may_be_cut(nn.Linear(1, 1))
    asked, model = [], nn.Linear(1, 1)
    ask_before_cutting(model, lambda: asked.append("asked"))
    check_may_be_cut(nn.Sequential(model))
    assert asked == ["asked"]


def test_trainers_refuse_it_where_the_engine_was_asked_for_behind_the_roles(tmp_path):
    in_two(tmp_path / "two", "refused_with_roles")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")
@pytest.mark.parametrize("engine", ["ZeRO-2", "ZeRO-3"])
def test_under_deepspeed_too(engine, tmp_path):
    in_two(tmp_path / "two", "refused_with_roles", engine=engine)
