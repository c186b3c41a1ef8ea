"""Two processes must grow, select and learn as one process does, token by token: under DDP, and where FSDP2 cuts the policy."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from self_training_case import PROMPTS
from sharded_case import CLOSE, in_two, learned
from sharded_raft_case import evaluated, from_server, run, saved_and_evaluated
from test_endpoint_generator import server  # noqa: F401
from tiny import byte_tokenizer, tiny_llama
from transformers import LlamaForCausalLM
from two_processes import run_in_two

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
    "RAFT, adapter and head, ranked by KL": {"whole": ["lm_head"], "beta": 0.1},
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
    "RAFT, full, evaluated first, seven prompts": {"full": True, "eval_on_start": True, "prompts": PROMPTS[1:]},
    "RAFT, adapter, one prompt, one held out": {
        "prompts": PROMPTS[:1],
        "held_out": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
    },
    "ReST, full, back to the best": REST | {"full": True, "improve_steps": 4, "improve_patience": 1},
    "ReST, adapter, recomputed": REST | {"gradient_checkpointing": True},
}


BY_DDP = (
    "RAFT++, adapter, accumulated",
    "RAFT, full, evaluated first, seven prompts",
    "RAFT, adapter, one prompt, one held out",
    "ReST, full, back to the best",
)


def sizes(rows: int, **options) -> dict:
    """So many rows of a batch of eight for each process."""
    pieces = options.get("gradient_accumulation_steps", 1)
    return options | {"per_device_train_batch_size": rows // pieces, "per_device_eval_batch_size": rows}


@pytest.mark.parametrize(
    ("case", "engine"), [*((case, "FSDP2") for case in CASES), *((case, "DDP") for case in BY_DDP)]
)
def test_two_processes_learn_like_one(tmp_path, case, engine):
    """Each Grow's tokens, scores and kept samples, each evaluation, and the weights after two stages, in float64.

    The policy samples itself, in the second stage the one that was trained.
    """
    one = run(tmp_path / "one", **sizes(8, **CASES[case]))
    both = in_two(tmp_path / "two", case="sharded_raft_case", engine=engine, **sizes(4, **CASES[case]))
    assert {"grow-000.completion_ids", "grow-001.completion_ids"} <= both.keys() or "num_stages" in CASES[case]
    torch.testing.assert_close(both, one, **CLOSE)


def test_an_evaluation_may_be_the_first_pass(tmp_path):
    """Under DDP; what FSDP2 is to cut is refused, and with `eval_on_start` evaluated."""
    one = run(tmp_path / "one", before=evaluated, **sizes(8, full=True))
    both = in_two(tmp_path / "two", "evaluated_first", case="sharded_raft_case", engine="DDP", **sizes(4, full=True))
    assert "asked.eval_score" in both
    torch.testing.assert_close(both, one, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [{"full": True, "beta": 0.1}, {"beta": 0.1}, REST | {"full": True}, REST],
    ids=["RAFT, full", "RAFT, adapter", "ReST, full", "ReST, adapter"],
)
def test_saved_evaluated_and_resumed(tmp_path, options):
    """The saved policy is whole; what goes on from a checkpoint, in the middle of an Improve, ends where the run did."""
    full, options = "full" in options, options | {"save_strategy": "steps", "save_steps": 2}
    one = run(tmp_path / "one", after=saved_and_evaluated, **sizes(8, **options))
    two = tmp_path / "two"
    apart = {"apart": True} if full else {}  # on two machines, with one disk
    both = in_two(two, "used", case="sharded_raft_case", **sizes(4, **options, **apart))
    torch.testing.assert_close(both, one, **CLOSE)
    name = "model.safetensors" if full else "adapter_model.safetensors"
    saved, expected = (load_file(folder / "saved" / name) for folder in (two, tmp_path / "one"))
    torch.testing.assert_close(saved, expected, **CLOSE)
    load = LlamaForCausalLM if full else PeftModel
    load.from_pretrained(*([] if full else [tiny_llama(byte_tokenizer())]), Path(two, "saved"))
    resume = str(two / "checkpoint-2")
    again = in_two(tmp_path / "again", case="sharded_raft_case", resume=resume, **sizes(4, **options))
    assert all(torch.equal(again[name], both[name]) for name in learned(both))


def test_whoever_else_samples_needs_no_whole_weights(tmp_path, server):  # noqa: F811
    """A server: the same is kept as in one process."""
    server.answer = said_in_kind
    one = from_server(tmp_path / "one", url=server.url, **sizes(8, full=True))
    both = in_two(tmp_path / "two", "from_server", case="sharded_raft_case", url=server.url, **sizes(4, full=True))
    assert one["grow-001.kept"].sum() == 8
    torch.testing.assert_close(both, one, **CLOSE)


def test_the_config_may_ask_for_it(tmp_path):
    one = run(tmp_path / "one", **sizes(8, full=True))
    both = in_two(tmp_path / "two", "by_config", case="sharded_raft_case", **sizes(4, full=True))
    torch.testing.assert_close(both, one, **CLOSE)


def said_in_kind(path: str, request: dict) -> dict:
    """Completions that follow from prompt and seed, of lengths that differ."""
    texts = [f" {request['seed'] % (10 + i)}{request['prompt'][i:]}" for i in range(request["n"])]
    choices = [{"index": i, "finish_reason": "stop", "text": text} for i, text in enumerate(texts)]
    return {"id": "0", "object": "text_completion", "created": 0, "model": "m", "choices": choices}


@pytest.mark.parametrize("what", ["refused", "fails", "in_16_bits"])
def test_what_both_processes_see(tmp_path, what):
    in_two(tmp_path / "two", what, case="sharded_raft_case")


def test_a_checkpoint_of_another_engine_is_refused(tmp_path):
    """With both engines' names, in both processes, and both ways."""
    in_two(tmp_path / "two", "of_another_engine", case="sharded_raft_case", engine="DDP")


LOST = {
    "a step": (1, 3, 3),
    "sampling": (0, 3, 3),
    "saving": (1, 3, 2),
}  # who is left, after which step, newest checkpoint


@pytest.mark.parametrize(("engine", "deaths"), [("DDP", [*LOST]), ("FSDP2", ["sampling", "saving"])])
def test_a_process_that_is_killed_ends_both_and_the_run_goes_on(tmp_path, engine, deaths):
    """Within a step, a Grow's sampling or the writing of a checkpoint; the other says so, and what goes on ends bit-equal."""
    options = sizes(4, beta=0.1, prompts_per_part=2, save_strategy="steps", save_steps=1)
    script = Path(__file__).parent / "sharded_raft_case.py"
    for where in deaths:
        told = json.dumps(options | {"where": where})
        done = run_in_two(script, tmp_path / where, "dies", told, engine)
        left, step, newest = LOST[where]
        assert (
            done.returncode
            and f"process {left} of 2 no longer hears another one, after step {step} of 6" in done.stderr
        )
        assert f"the newest is '{tmp_path / where / f'checkpoint-{newest}'}'" in done.stderr
    (tmp_path / "whole").mkdir()
    done = run_in_two(script, tmp_path / "whole", "come_back", json.dumps(options | {"deaths": deaths}), engine)
    assert done.returncode == 0, done.stderr[-3000:]
