"""The plan of a run that vLLM samples for, by hand."""

import pytest

from trl_ext.cli import main
from trl_ext.generation.vllm_checks import RANKS
from trl_ext.memory_planning import plan_vllm
from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.plan_phases import CUDA_CONTEXT, SLACK
from trl_ext.memory_planning.planning import memory_plan

GIB = 2**30
# Q = 4, K = 2; 2 · 120 linear weights, 20 of norms, 40 each of embedding and head: 340; a LoRA of rank 1 has 2 · 58 = 116
SHAPE = ModelShape("tiny", vocab=10, hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, head_dim=2)
ONE = 116
RUN = {"lora": 1, "batch": 4, "micro_batch": 2, "prompt_length": 3, "completion_length": 2, "generator": "vllm"}


def plan(method="ppo", **changes):
    return memory_plan(SHAPE, method, **RUN | changes)


def test_vllm_awake_by_hand():
    terms = plan(reward_models=2, value_model=True).phases["generate"].terms
    cache = 2 * 4 * (2 * 2 * 16) * 2  # keys and values, rows, layers · K · a block of 16 for 5 tokens, bytes
    layers = (3 * 4 + 3 * 6) * 2 * 8192  # more than 256 rows of logits
    assert {name: terms[name] for name in ("vLLM's weights", "vLLM's adapter", "KV cache", "vLLM's pass")} == {
        "vLLM's weights": 2 * 340,
        "vLLM's adapter": 2 * ONE,
        "KV cache": cache,
        "vLLM's pass": layers,
    }
    # the policy and its reference are off the card; a critic and two rewards stay, with their heads and the optimizer
    assert "base weights" not in terms and terms["adapters, heads"] == 4 * (3 * ONE + 3 * 4)
    assert terms["optimizer state"] == 2 * 4 * (2 * ONE + 4) and terms["vLLM's context, graphs (assumed)"] == GIB
    rest = sum(
        size for name, size in terms.items() if name not in ("CUDA context (assumed)", "allocator slack (assumed)")
    )
    assert plan(reward_models=2, value_model=True).phases["generate"].bytes == rest + CUDA_CONTEXT + int(SLACK * rest)


def test_vllm_asleep_leaves_its_context():
    ours, theirs = plan().phases, plan(generator="transformers").phases
    for name in ("score", "train"):
        more = {"vLLM's context, graphs (assumed)": GIB}
        same = {term: size for term, size in ours[name].terms.items() if term not in more and "slack" not in term}
        assert same == {term: size for term, size in theirs[name].terms.items() if "slack" not in term}
        assert ours[name].terms.items() >= more.items()
    assert ours["load"] == theirs["load"]


def test_both_bases_wait_in_the_computers_memory():
    waiting = plan(bits=4, served_bits=None).waiting
    quantised = memory_plan(SHAPE, "ppo", **RUN | {"bits": 4}).phases["load"].terms["base weights"]
    assert waiting == {
        "policy's weights": quantised + 4 * 2 * ONE,  # and its adapter and reference
        "vLLM's weights": 2 * 340,
        "vLLM's adapter": 2 * ONE,
    }
    assert plan(served_bits=4).waiting["vLLM's weights"] == quantised
    assert plan(lora=9).waiting["vLLM's adapter"] == 2 * 16 * ONE  # the next rank that vLLM has
    assert "vLLM's adapter" not in [name for name, size in plan(lora=None).waiting.items() if size]
    assert plan(generator="transformers").waiting == {} == plan(device="cpu").waiting


def test_on_a_cpu_nothing_sleeps():
    phases, alone = plan(device="cpu").phases, plan(device="cpu", generator="transformers").phases
    vllm = 2 * 340 + 2 * ONE + 1024
    assert phases["train"].bytes == alone["train"].bytes + vllm
    assert phases["generate"].terms["base weights"] == 2 * 340


def test_a_whole_model_of_7b():
    """The turns are what lets a base in 16 bits be served beside one that is trained in 4, on 24 GB."""
    run = memory_plan("llama-2-7b", bits=4, generator="vllm", batch=32, served_at_once=8)
    assert run.verdict(int(23.5 * GIB)) == "fits"
    both = sum(run.waiting.values())
    assert 16 * GIB < both < 17.5 * GIB and run.phases["generate"].terms["vLLM's weights"] > 12 * GIB


def test_what_to_change_for_vllm():
    """Fewer keys and values first, which change nothing of what is sampled; no fewer than there are."""
    advice = memory_plan("llama-2-7b", bits=4, generator="vllm", batch=32).advice(int(23.5 * GIB))
    assert [step.flag for step in advice] == ["--served-at-once 8"] and advice[-1].verdict == "fits"
    large = memory_plan("llama-2-7b", bits=4, generator="vllm").advice(12 * GIB)
    assert "--served-bits 4" in [step.flag for step in large] and large[-1].verdict == "fits"
    assert plan(served_at_once=2).phases["generate"].terms["KV cache"] == 512


def test_the_ranks_are_vllms():
    assert plan_vllm.RANKS == RANKS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": "ollama"}, r"generator='ollama'\): expected one of transformers, vllm"),
        ({"method": "sft"}, r"method='sft', generator='vllm'\): nothing is sampled. Leave generator out"),
        ({"lora": 513}, r"lora=513\): expected a rank of 512 at most, since vLLM serves none above. Lower it"),
        ({"served_at_once": 0}, r"served_at_once=0\): expected a whole number from 1 on, or None for the whole batch"),
        ({"served_bits": 3}, r"served_bits=3\): expected one of None, 8, 4. Choose one, None for weights"),
        (
            {"served_bits": 4, "generator": "transformers"},
            r"served_bits=4\): expected None, since vLLM alone",
        ),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_the_largest_rank_is_planned_and_without_vllm_larger_ones():
    assert plan(lora=512).waiting["vLLM's adapter"] == 2 * 512 * ONE
    assert plan(lora=1024, generator="transformers").phases


def test_the_command_refuses_what_vllm_does(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "llama-2-7b", "--generator", "vllm", "--lora", "1024"])
    assert "a rank of 512 at most" in capsys.readouterr().err


def test_the_command(capsys):
    main(["plan", "llama-2-7b", "--bits", "4", "--generator", "vllm", "--gpu", "24GB", "--batch", "8"])
    out = " ".join(capsys.readouterr().out.split())
    assert "GiB wait in the computer's memory when vLLM's turn begins: policy's weights" in out
    assert "not measured on a card" in out and "vLLM's weights" in out
