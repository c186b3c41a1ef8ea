"""Two processes between which FSDP2 shards policy and critic must take PPO's steps as one process does."""

import pytest
import torch
from sharded_case import CLOSE, Server, goes_on_alike, in_two, learned, synced
from table_case import TABLE, run
from tiny import byte_tokenizer, tiny_llama
from trl.generation import vllm_generation

CASES = {
    "head, full": {"kind": "head", "full": True},
    "head, adapter": {"kind": "head"},
    "model, full": {"kind": "model", "full": True},
    "model, adapter": {"kind": "model"},
    "adaptive, clipped": {"kind": "head", "full": True, "adaptive_kl": True, "kl_target": 1.0, "max_grad_norm": 0.1},
    "warm-up": {"kind": "model", "full": True, "critic_warmup_rollouts": 1},
    "adapter and head, accumulated": {"kind": "head", "whole": ["lm_head"], "gradient_accumulation_steps": 2},
    "accumulated, with text": {"kind": "head", "gradient_accumulation_steps": 2, "ptx_coef": 0.5},
    "recomputed, not clipped": {"kind": "model", "full": True, "gradient_checkpointing": True, "max_grad_norm": 0.0},
    "attached": {"kind": "head", "full": True, "detach_critic": False},
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_step_like_one(tmp_path, case):
    """Advantages, returns and values of each completion, and the weights after three steps, in float64."""
    options = CASES[case]
    pieces = options.get("gradient_accumulation_steps", 1)
    one = run(tmp_path / "one", per_device_train_batch_size=8 // pieces, **options)
    both = in_two(tmp_path / "two", per_device_train_batch_size=4 // pieces, **options)
    assert len(one) - len(learned(one)) == 4 * len(TABLE)
    torch.testing.assert_close(both, one, **CLOSE)


@pytest.mark.parametrize("full", [True, False], ids=["full", "adapter"])
@pytest.mark.parametrize("kind", ["head", "model"])
def test_saved_evaluated_and_resumed(tmp_path, kind, full):
    """The saved policy is whole and without its critic; what goes on from a checkpoint ends where the run did."""
    goes_on_alike(tmp_path, engine="FSDP2", kind=kind, full=full)


@pytest.mark.parametrize(
    ("engine", "kind", "options"),
    [
        ("FSDP2, whole between passes", "model", {"full": False, "whole": ["lm_head"]}),
        ("FSDP2, whole between passes", "head", {"full": True}),
        ("FSDP2, by a layer's name", "model", {"full": True}),
    ],
)
def test_other_settings(tmp_path, engine, kind, options):
    """What examples/accelerate/fsdp2.yaml may say besides; an adapter rests in the reference's pass, and learns again."""
    goes_on_alike(tmp_path, engine=engine, kind=kind, **options)


@pytest.mark.parametrize("full", [True, False], ids=["full", "adapter"])
def test_a_vllm_server_is_sent_the_policy_alone(tmp_path, monkeypatch, full):
    """Whole tensors, merged, under the names that a model without a critic inside has, before each rollout."""
    for name in ("is_vllm_available", "VLLMClient"):
        monkeypatch.setattr(vllm_generation, name, None, raising=False)
    monkeypatch.setattr(Server, "sent", [])
    options = {"kind": "model", "full": full}
    one = synced(tmp_path / "one", per_device_train_batch_size=8, **options)
    both = in_two(tmp_path / "two", "synced", per_device_train_batch_size=4, **options)
    sent = {name.split(".", 2)[2] for name in both if name.startswith("sent.")}
    assert sent == dict(tiny_llama(byte_tokenizer()).named_parameters()).keys()
    torch.testing.assert_close(both, one, **CLOSE)


def test_processes_that_sample_unlike_lengths_wait_for_each_other(tmp_path):
    told = in_two(tmp_path / "two", "sampled", per_device_train_batch_size=4)
    assert told["length.0"].max() == 5 and (told["length.1"] == 1).all()


@pytest.mark.parametrize("what", ["values_first", "refused", "in_16_bits", "own_disks"])
def test_what_holds_while_it_is_sharded(tmp_path, what):
    in_two(tmp_path / "two", what, per_device_train_batch_size=4)


def test_what_is_refused_before_it_is_sharded(tmp_path):
    in_two(tmp_path / "two", "refused_to_begin")
