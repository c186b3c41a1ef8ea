"""What differs between a run's record and today's: found by name, refused or accepted, and put into effect."""

import math
import re
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from trl_ext.trainer_kit.rates import own_rates
from trl_ext.trainer_kit.run_changes import (
    Change,
    changes,
    check_accepted,
    check_allowed,
    differences,
    warn_of_changes,
)


@dataclass
class Config:
    beta: float = 0.1
    rate: float | None = None
    seed: int = 0


def record(**parts) -> dict:
    return {"config": {"beta": 0.1, "rate": 0.5}, "data": "abc"} | parts


def test_equal_records_do_not_differ():
    assert changes(record(), record(), Config()) == [] == differences(record(), record())


@dataclass
class Weighed(Config):
    reward_weights: list | None = None
    acceptance_ratio: float | None = None
    num_generations: int = 4


def test_what_none_stands_for_is_no_difference():
    plain = {"reward_weights": None, "acceptance_ratio": None, "num_generations": 4}
    same = plain | {"reward_weights": [1.0, 1.0], "acceptance_ratio": 0.25}
    assert changes(record(config=plain), record(config=same), Weighed()) == []
    assert changes(record(config=same), record(config=plain), Weighed()) == []
    other = plain | {"reward_weights": [1.0, 0.5], "acceptance_ratio": 0.5}
    found = changes(record(config=plain), record(config=other), Weighed())
    assert [change.name for change in found] == ["acceptance_ratio", "reward_weights"]


def test_options_and_parts_are_named():
    now = record(config={"beta": 0.2, "rate": 0.5}, data="xyz")
    assert changes(record(), now, Config()) == [Change("beta", "beta", 0.1, 0.2), Change("data", "data", "abc", "xyz")]


def test_of_parts_in_a_list_each_is_looked_into():
    """A reward's routes and factors: an option that is new since is None in an older run."""
    before = {"routes": [{"kind": "open", "factors": [{"ngram": 3}]}]}
    now = {"routes": [{"kind": "open", "factors": [{"ngram": 3, "cap": None}]}]}
    assert differences(before, now) == [] == differences(now, before)
    now["routes"][0]["factors"][0]["cap"] = 70
    assert differences(before, now) == ["cap: None then, 70 now"]
    now["routes"].append(before["routes"][0])  # another number of them differs as a whole
    assert differences(before, now)[0].startswith("routes: [{")


def test_a_difference_inside_is_accepted_by_the_options_name():
    then, now = (
        {"adapter": {"default": {"r": r, "base_model_name_or_path": path}}} for r, path in ((4, "a"), (8, "b"))
    )
    (found,) = changes(record(**then), record(**now), Config())
    assert (found.name, str(found)) == ("adapter", "r: 4 then, 8 now")  # where the base was loaded from may change


def test_what_only_one_version_of_peft_knows_is_no_difference():
    then, now = ({"adapter": {"default": {"r": r, **new}}} for r, new in ((4, {}), (4, {"use_new": False})))
    assert changes(record(**then), record(**now), Config()) == []
    (found,) = changes(record(**then), record(adapter={}), Config())
    assert found.place == "default"


def test_of_an_older_record_what_it_lacks_was_the_default_or_is_not_known():
    older = {"config": {"beta": 0.1, "gone": 3}}
    assert changes(older, record(config={"beta": 0.1, "rate": 0.5, "seed": 0}), Config()) == []
    assert [str(c) for c in changes(older, record(config={"seed": 1}), Config())] == ["seed: 0 then, 1 now"]


ONE = Change("beta", "beta", 0.1, 0.2)
PROCESSES = Change("processes", "processes", 2, 1)
FIXED = {"processes": "batches are theirs"}


def test_what_was_not_accepted_is_refused_with_what_to_do():
    check_allowed([ONE], ["beta"], FIXED, call="run(…)")
    said = "run(…): the folder's run was begun otherwise; beta: 0.1 then, 0.2 now. Go on with the same values, or begin anew "
    said += "with another output_dir; to change them within the run, accept_changes=['beta']."
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        check_allowed([ONE], [], FIXED, call="run(…)")


def test_what_could_not_take_effect_is_refused_whatever_is_accepted():
    with pytest.raises(
        ValueError, match=r"written by 2 processes, and now .*'processes' cannot change within a run: batches"
    ):
        check_allowed([PROCESSES], ["processes"], FIXED, call="run(…)")


def test_what_follows_from_a_fixed_option_is_not_offered():
    follows, fixed = Change("generation_batch_size", "generation_batch_size", 4, 8), {"seed": "states go on"}
    cause = Change("seed", "seed", 0, 1)
    with pytest.raises(ValueError, match=r"another output_dir\. 'seed' cannot change within a run: states go on\.$"):
        check_allowed([follows, cause], [], fixed, call="run(…)")
    with pytest.raises(ValueError, match=r"accept_changes=\['beta'\]\. 'seed' cannot"):
        check_allowed([ONE, follows, cause], [], fixed, call="run(…)")
    with pytest.raises(ValueError, match=r"accept_changes=\['generation_batch_size'\]\.$"):
        check_allowed([follows], [], fixed, call="run(…)")


@pytest.mark.parametrize(("then", "now", "longer"), [(4, 8, True), (8, 4, False), (-1, 8, False), (8, -1, False)])
def test_a_run_may_be_longer(then, now, longer):
    change = Change("max_steps", "max_steps", then, now)
    assert change.is_longer == longer
    if not longer:
        with pytest.raises(ValueError, match=rf"max_steps: {then} then, {now} now"):
            check_allowed([change], [], {}, call="run(…)")
    with pytest.warns(UserWarning, match=f"goes on with max_steps: {then} then, {now} now"):
        warn_of_changes([change], [], call="run(…)")


def test_nothing_is_said_where_nothing_changed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_changes([], [], call="run(…)")
    with pytest.warns(UserWarning, match=r"accept_changes: \['seed'\] did not change"):
        warn_of_changes([ONE], ["beta", "seed"], call="run(…)")


@pytest.mark.parametrize("given", ["beta", {"beta": 1}, ["Beta"]])
def test_names_that_there_are_not(given):
    check_accepted(["beta", "data"], ["beta", "seed"], ["data"], call="run(…)")
    with pytest.raises(ValueError, match=r"accept_changes=.*(expected a list of names|is called 'Beta')"):
        check_accepted(given, ["beta", "seed"], ["data"], call="run(…)")


def stepped(rate: float, decay: float, steps: int, *, length: int = 10):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=decay)
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / length)
    for _ in range(steps):
        weight.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


@pytest.mark.parametrize("length", [10, 20])
def test_rates_are_todays_and_moments_are_the_checkpoints(length):
    before, schedule = stepped(0.1, 0.0, 4)
    optimizer, scheduler = stepped(0.5, 0.3, 0, length=length)
    with own_rates(optimizer, scheduler):
        optimizer.load_state_dict(before.state_dict())
        scheduler.load_state_dict(schedule.state_dict())
    (group,) = optimizer.param_groups
    assert math.isclose(group["lr"], 0.5 * (1 - 4 / length)) and group["weight_decay"] == 0.3
    assert scheduler.get_last_lr() == [group["lr"]] and scheduler.last_epoch == 4
    (state,) = optimizer.state.values()
    assert torch.equal(state["exp_avg"], next(iter(before.state.values()))["exp_avg"])
    optimizer.step()
    scheduler.step()
    assert math.isclose(group["lr"], 0.5 * (1 - 5 / length))
