"""Two processes between which FSDP2 cuts the policy must grow, select and learn as one process does."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sharded_case import CLOSE, in_two, learned
from sharded_raft_case import Table, run, saved_and_evaluated
from tiny import byte_tokenizer, tiny_llama
from transformers import LlamaForCausalLM

REST = {
    "method": "ReST",
    "thresholds": [0.1, 0.3],
    "score_map": "none",
    "restart_from_base": True,
    "keep_best": True,
    "eval_strategy": "steps",
    "eval_steps": 1,
}
CASES = {
    "RAFT, full, ranked by KL": {"full": True, "beta": 0.1},
    "RAFT, full, the head is the embedding": {
        "full": True,
        "tied": True,
        "beta": 0.1,
        "optim": "sgd",
        "learning_rate": 0.1,
    },
    "RAFT, adapter, ranked by KL": {"beta": 0.1, "max_grad_norm": 0.05},
    "RAFT++, full": {"full": True, "importance_clip": 0.2},
    "RAFT++, adapter, accumulated": {"importance_clip": 0.2, "gradient_accumulation_steps": 2},
    "RAFT, full, the best checkpoint": {
        "full": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_score",
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "num_stages": 1,
    },
    "RAFT, adapter, a stream, ranked by KL": {"streamed": True, "stage_batch_size": 5, "beta": 0.1},
    "ReST, full, back to the best": REST | {"full": True, "improve_steps": 4, "improve_patience": 1},
    "ReST, adapter, recomputed": REST | {"gradient_checkpointing": True},
}


def sizes(rows: int, **options) -> dict:
    """So many rows of a batch of eight for each process."""
    pieces = options.get("gradient_accumulation_steps", 1)
    return options | {"per_device_train_batch_size": rows // pieces, "per_device_eval_batch_size": rows}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_like_one(tmp_path, case):
    """Each Grow's scores, each evaluation, and the weights after two stages, in float64; the policy samples itself."""
    one = run(tmp_path / "one", **sizes(8, **CASES[case]))
    both = in_two(tmp_path / "two", case="sharded_raft_case", **sizes(4, **CASES[case]))
    torch.testing.assert_close(both, one, **CLOSE)


@pytest.mark.parametrize("full", [True, False], ids=["full", "adapter"])
def test_saved_evaluated_and_resumed(tmp_path, full):
    """The saved policy is whole; what goes on from a checkpoint, in the middle of an Improve, ends where the run did."""
    options = {"full": full, "beta": 0.1, "save_strategy": "steps", "save_steps": 2}
    one = run(tmp_path / "one", after=saved_and_evaluated, **sizes(8, **options))
    two = tmp_path / "two"
    both = in_two(two, "used", case="sharded_raft_case", **sizes(4, **options))
    torch.testing.assert_close(both, one, **CLOSE)
    name = "model.safetensors" if full else "adapter_model.safetensors"
    saved, expected = (load_file(folder / "saved" / name) for folder in (two, tmp_path / "one"))
    torch.testing.assert_close(saved, expected, **CLOSE)
    load = LlamaForCausalLM if full else PeftModel
    load.from_pretrained(*([] if full else [tiny_llama(byte_tokenizer())]), Path(two, "saved"))
    resume = str(two / "checkpoint-2")
    again = in_two(tmp_path / "again", case="sharded_raft_case", resume=resume, **sizes(4, **options))
    assert all(torch.equal(again[name], both[name]) for name in learned(both))


def test_whoever_else_samples_needs_no_whole_weights(tmp_path):
    one = run(tmp_path / "one", generator=Table(), eval_dataset=None, **sizes(8, full=True))
    both = in_two(tmp_path / "two", "from_table", case="sharded_raft_case", **sizes(4, full=True))
    torch.testing.assert_close(both, one, **CLOSE)


def test_the_config_may_ask_for_it(tmp_path):
    one = run(tmp_path / "one", **sizes(8, full=True))
    both = in_two(tmp_path / "two", "by_config", case="sharded_raft_case", **sizes(4, full=True))
    torch.testing.assert_close(both, one, **CLOSE)


@pytest.mark.parametrize("what", ["refused", "fails", "in_16_bits"])
def test_what_both_processes_see(tmp_path, what):
    in_two(tmp_path / "two", what, case="sharded_raft_case")
