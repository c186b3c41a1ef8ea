"""Two processes between which DeepSpeed shards policy and critic must take PPO's steps as one process does.

Where nothing is clipped: DeepSpeed clips policy and critic by one norm. Its optimizer keeps weights in float32.
"""

import pytest
import torch
from sharded_case import CLOSE, goes_on_alike, in_two, learned
from table_case import TABLE, run

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow  # for an environment of its own: `.ci/run deepspeed`

ENGINES = ["ZeRO-2", "ZeRO-3"]
CASES = {
    "adapter and head": {"kind": "head", "whole": ["lm_head"]},
    "accumulated, with text": {"kind": "head", "gradient_accumulation_steps": 2, "ptx_coef": 0.5},
    "recomputed": {"kind": "model", "full": True, "gradient_checkpointing": True},
    "attached, adaptive": {
        "kind": "head", "full": True, "detach_critic": False, "adaptive_kl": True, "kl_target": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_step_like_one(tmp_path, case, engine):
    """Advantages, returns and values of each completion, and the weights after three steps."""
    options = CASES[case] | {"max_grad_norm": 0.0}
    pieces = options.get("gradient_accumulation_steps", 1)
    one = run(tmp_path / "one", per_device_train_batch_size=8 // pieces, **options)
    both = in_two(tmp_path / "two", engine=engine, per_device_train_batch_size=4 // pieces, **options)
    assert len(one) - len(learned(one)) == 4 * len(TABLE)
    torch.testing.assert_close(both, one, **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("full", [True, False], ids=["full", "adapter"])
@pytest.mark.parametrize("kind", ["head", "model"])
def test_saved_evaluated_and_resumed(tmp_path, kind, full, engine):
    """The saved policy is whole and without its critic; what goes on from a checkpoint ends where the run did."""
    goes_on_alike(tmp_path, engine=engine, kind=kind, full=full, max_grad_norm=0.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_processes_that_sample_unlike_lengths_wait_for_each_other(tmp_path, engine):
    told = in_two(tmp_path / "two", "sampled", engine=engine, per_device_train_batch_size=4)
    assert told["length.0"].max() == 5 and (told["length.1"] == 1).all()


@pytest.mark.parametrize("engine", ["ZeRO-1", "ZeRO-3, small tensors whole"])
def test_other_stages_and_settings(tmp_path, engine):
    """The latter is what examples/accelerate/zero3.yaml says."""
    options = {"full": True, "max_grad_norm": 0.0}
    one = run(tmp_path / "one", per_device_train_batch_size=8, **options)
    both = in_two(tmp_path / "two", engine=engine, per_device_train_batch_size=4, **options)
    torch.testing.assert_close(both, one, **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["head", "model"])
def test_values_are_in_float32_where_weights_are_in_bfloat16(tmp_path, kind, engine):
    told = in_two(tmp_path / "two", "halved", engine=engine, kind=kind, per_device_train_batch_size=4)
    assert told["weight"].dtype == torch.bfloat16 and told["values"].dtype == torch.float32
    if kind == "head":  # a model's own score is rounded by itself
        assert not torch.equal(told["values"], told["values"].bfloat16().float())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", ["from_paths", "stopped", "values_first", "refused_by_zero", "own_disks"])
def test_what_else_must_not_go_wrong_in_silence(tmp_path, what, engine):
    in_two(tmp_path / "two", what, engine=engine, per_device_train_batch_size=4)


def test_what_zero_refuses_to_begin(tmp_path):
    in_two(tmp_path / "two", "refused_to_begin_by_zero", engine="ZeRO-2")
