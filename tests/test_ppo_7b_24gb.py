"""The benchmark `ppo_7b_24gb.py`: its made models, its lengths, its clock by hand, and one row for real."""

import argparse
import json
import math
import random
import time
from collections import Counter

import pytest
import torch

from examples.benchmarks.common import run_phases
from examples.benchmarks.common.completion_lengths import Lengths, ending, lengths_from, set_end
from examples.benchmarks.common.made_models import (
    EOS,
    OUTLIERS,
    SHAPES,
    config_of,
    made_base,
    made_model,
    outlier_columns,
    word_tokenizer,
)
from examples.benchmarks.memory import ppo_7b_24gb
from examples.benchmarks.memory.ppo_7b_rows import ROWS, lengths_of, run
from examples.benchmarks.memory.ppo_7b_work import Work, planned
from trl_ext.shared_base.shared_tree import storage_bytes

TINY = {"bits": 8, "device": "cpu", "window": 64, "threshold": 6.0}
GIB = 2**30


def work(**changes) -> Work:
    sizes = {"batch": 4, "prompt_length": 8, "completion_length": 8, "samples": 2, "epochs": 1, "steps": 1}
    others = {"row": "ppo", "shape": "tiny", "bits": 8, "device": "cpu", "threshold": 6.0, "micro_batch": None}
    return Work(**sizes | others | {"lengths": Lengths((0.25,) * 4), "limit": 22 * GIB, "seed": 0} | changes)


# Made models


@pytest.mark.parametrize("bits", [8, 4])
def test_a_made_model_is_as_transformers_loads_one(bits):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    model = made_model("tiny", **TINY | {"bits": bits})
    kind = Linear8bitLt if bits == 8 else Linear4bit
    assert isinstance(model.model.layers[0].mlp.up_proj, kind) and type(model.lm_head) is torch.nn.Linear
    assert model.quantization_method == "bitsandbytes" and not any(p.is_meta for p in model.parameters())
    again = made_model("tiny", **TINY | {"bits": bits})
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_outliers_are_where_trained_models_have_them():
    """A few loud channels before attention and MLP, the same in each layer, and none inside them."""
    found = outlier_columns(made_model("100m", **TINY), tokens=48)
    layers = config_of("100m", window=64).num_hidden_layers
    for kind in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        assert found[kind] == [OUTLIERS] * layers
    assert found["o_proj"] == [0] * layers
    assert sum(found["down_proj"]) < layers


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("tiny", "100m")])
def test_a_built_in_shape_has_its_configuration(name):
    config = config_of(name, window=1026)
    assert config.hidden_size == SHAPES[name]["hidden_size"] and config.max_position_embeddings == 1026


def test_words_read_back_as_the_same_tokens():
    tokenizer = word_tokenizer(1000)
    ids = [999, 4, 40, 400]
    assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


# Lengths


def test_hazards_by_hand():
    # P(1) = ½, P(2) = ¼, a quarter is longer: ends at 1 with ½, at 2 with ¼ / ½, never else
    assert Lengths((0.5, 0.25)).hazards == [0.5, 0.5]
    assert Lengths((0.0, 1.0, 0.0)).hazards == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "mean"), [("uniform:2:6", 4), ("geometric:5", 5), ("lognormal:20:0.5", 20 * math.exp(0.125))]
)
def test_distributions_have_their_means(text, mean):
    lengths = lengths_from(text, limit=400)
    assert sum(t * share for t, share in enumerate(lengths.shares, 1)) == pytest.approx(mean, rel=0.01)
    source = random.Random(0)
    assert sum(lengths.draw(source) for _ in range(4000)) / 4000 == pytest.approx(mean, rel=0.1)


def test_lengths_from_a_file(tmp_path):
    (tmp_path / "lengths").write_text("2 2\n3 900")
    assert lengths_from(str(tmp_path / "lengths"), limit=3).shares == (0, 0.5, 0.25)


@pytest.mark.parametrize("text", ["normal:1:2", "uniform:5", "uniform:6:2", "lognormal:0:1", "geometric:x"])
def test_bad_lengths_are_refused(text):
    with pytest.raises(ValueError, match=f"--lengths {text}: expected uniform:LOW:HIGH"):
        lengths_from(text, limit=10)


@pytest.mark.parametrize("hazard", [0.0, 0.3, 1.0])
def test_the_end_token_gets_its_probability(hazard):
    logits = torch.tensor([[1.0, 2.0, 5.0, 3.0]])
    others = logits[:, [0, 1, 3]].softmax(-1)
    set_end(logits, hazard, 2)
    probabilities = logits.softmax(-1)
    assert probabilities[0, 2] == pytest.approx(hazard)
    torch.testing.assert_close(probabilities[:, [0, 1, 3]], (1 - hazard) * others)


def test_completions_end_by_the_distribution():
    base = made_base("tiny", **TINY)
    policy, prompt = base.policy(), torch.full((200, 3), 7)
    with ending(policy, Lengths((0.0, 0.5, 0.0, 0.25)), end_id=EOS):
        output = policy.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0,
            max_new_tokens=5)  # fmt: skip
    counts = Counter(lengths_of(output[:, 3:]))
    assert set(counts) == {2, 4, 5} and abs(counts[2] - 100) < 30 and abs(counts[4] - 50) < 30
    with torch.no_grad():  # a pass without a cache is left alone
        assert torch.isfinite(policy(prompt[:1], use_cache=False).logits).all()


# The clock


class HandMeter:
    """Memory as the test says."""

    now = whole = 0

    def peak(self):
        return self.now

    def restart(self):
        self.now = 0

    def wait(self):
        pass


def test_phases_by_hand(monkeypatch):
    clock = iter([0, 0, 1, 3, 4, 4, 4, 4, 5, 9, 10, 10])
    monkeypatch.setattr(run_phases.time, "perf_counter", lambda: next(clock))
    meter = HandMeter()
    phases = run_phases.Phases(meter)
    with phases.phase("train"):  # from 0
        meter.now = 5
        with phases.phase("generate"):  # 1 to 3
            meter.now = 9
            phases.count_completions([4, 6])
        meter.now = 7
        phases.next_lap()  # at 4
        with phases.phase("generate"):  # 4 to 4
            pass
        phases.next_lap()  # at 4
        with phases.phase("generate"):  # 5 to 9
            phases.count_completions([8, 12])
        phases.next_lap()  # at 10
    assert phases.peaks == {"train": 7, "generate": 9} and phases.longest == 12
    assert phases.warmed_up and phases.laps == 2
    assert phases.seconds() == {"generate": 2.0, "train": 1.0}  # (0 + 4) / 2, (0 + 1 + 1) / 2
    assert phases.rates() == {"generate": 5.0}


def test_a_cards_context_counts_and_its_size_is_capped(monkeypatch):
    """The card has 80 GiB, of which 2 are in use before torch has reserved any; torch then reserves up to 9."""
    seen = []
    fakes = {"mem_get_info": lambda: (78 * GIB, 80 * GIB), "memory_reserved": lambda: 0}
    fakes |= {"max_memory_reserved": lambda: 9 * GIB, "max_memory_allocated": lambda: 7 * GIB}
    fakes |= {"reset_peak_memory_stats": lambda: None, "set_per_process_memory_fraction": seen.append}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: None)
    with run_phases.metered("cuda", card=24 * GIB) as meter:
        assert meter.peak() == 7 * GIB and meter.whole == 11 * GIB
    assert seen == [(24 - 2) / 80]


# Rows


def test_micro_batches_follow_the_plan():
    full = {"shape": "llama-2-7b", "device": "cuda", "batch": 16, "prompt_length": 512, "completion_length": 512}
    roomy, tight, none = (work(**full, limit=size * GIB).plan for size in (200, 22, 8))
    assert roomy.settings.micro_batch == 16 > tight.settings.micro_batch >= 1
    assert roomy.verdict(200 * GIB) == tight.verdict(22 * GIB) == "fits"
    assert none.verdict(8 * GIB) == "does not fit" and none.settings.optimizer == "paged_adamw_8bit"
    assert work(**full, micro_batch=8).plan.settings.micro_batch == 8


def test_a_separate_reference_is_planned_for():
    one, four = planned(work(shape="llama-2-7b", bits=8)), planned(work(shape="llama-2-7b", bits=8, row="separate"))
    assert 3.7 < four["plan"]["load"] / one["plan"]["load"] < 4.0  # reward and value model have no vocabulary head


@pytest.mark.parametrize("row", ROWS)
def test_each_row_runs(row):
    result = run(work(row=row), card=24 * GIB)
    assert result["status"] == "ok" and result["peak"] >= max(result["peaks"].values()) > 0
    assert result["rates"]["train"] > 0 and result["hours"] > 0
    sampled = row not in ("reward", "trl-reward")
    assert (result["longest"] > 0) == sampled == ("rewards" in result["seconds"])
    assert set(result["plan"]) >= {"load", "train"}


def test_separate_models_share_nothing(tmp_path):
    trainer = ROWS["separate"](work(row="separate"), str(tmp_path), run_phases.Phases(HandMeter()))
    (scorer,) = (reward.__wrapped__ for reward in trainer.reward_funcs)
    models = (trainer.model, trainer.ref_model, scorer.module, trainer.critic.own_model)
    sizes = [storage_bytes(model) for model in models]
    assert storage_bytes(*models) == sum(sizes)
    one = ROWS["ppo"](work(), str(tmp_path), run_phases.Phases(HandMeter()))
    assert storage_bytes(one.critic.own_model, besides=(one.model,)) < sizes[3]


def test_running_out_of_memory_is_a_result(monkeypatch):
    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setitem(ROWS, "ppo", too_large)
    result = run(work(), card=GIB)
    assert result["status"] == "out of memory"
    assert ppo_7b_24gb.cells({"row": "ppo", "bits": 8} | result, GIB)[-1] == "out of memory"


def test_out_of_time_is_a_result_with_what_was_measured(monkeypatch):
    def endless(work, folder, phases):
        with phases.phase("load"):
            torch.ones(2**20)
            while True:
                time.sleep(0.01)

    monkeypatch.setitem(ROWS, "ppo", endless)
    result = run(work(), card=GIB, seconds=0.2)
    assert result["status"] == "stopped after 0.2 s" and result["peaks"]["load"] >= 4 * 2**20
    assert ppo_7b_24gb.cells({"row": "ppo", "bits": 8} | result, GIB)[-1] == "stopped after 0.2 s"


# The command


@pytest.mark.parametrize(
    ("status", "peak", "good"), [("ok", 22, True), ("ok", 23, False), ("out of memory", 1, False)]
)
def test_the_limit_decides(status, peak, good):
    others = {"row": "separate", "status": "out of memory"}
    assert ppo_7b_24gb.passed([{"row": "ppo", "status": status, "peak": peak}, others], 22) == good


def test_sizes():
    assert ppo_7b_24gb.size("22GiB") == 22 * GIB and ppo_7b_24gb.size("24 GB") == 24 * 10**9
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as 22GiB"):
        ppo_7b_24gb.size("22")


@pytest.mark.slow
def test_the_command_prints_its_table(capfd, tmp_path):
    words = ["--shape", "tiny", "--device", "cpu", "--rows", "ppo", "--bits", "8", "--json", str(tmp_path / "rows")]
    assert ppo_7b_24gb.main(words) == 0
    (row,) = json.loads((tmp_path / "rows").read_text())
    assert row["status"] == "ok" and row["plan"].keys() == {"load", "generate", "score", "train"} and row["rates"]
    printed = capfd.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("| ppo | 8 | 2 |"))
    assert line.endswith("| ok |") and line.count("/") == 5
    assert "trl 1." in printed and f"python -m examples.benchmarks.memory.ppo_7b_24gb {' '.join(words)}" in printed


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected a GPU, and torch sees none"):
        ppo_7b_24gb.main([])


def test_the_command_fails_past_its_limit_and_shows_rows_without_a_result(monkeypatch, capsys):
    class Died:
        returncode = -9

    monkeypatch.setattr(ppo_7b_24gb.subprocess, "run", lambda *args, **kwargs: Died())
    assert ppo_7b_24gb.main(["--shape", "tiny", "--device", "cpu", "--bits", "8"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("| killed, probably out of memory |") == len(ROWS) and "--limit 22.0 GiB" in printed
