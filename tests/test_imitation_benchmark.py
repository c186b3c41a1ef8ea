"""The imitation benchmark: stored states are those of the whole model, its pairs are balanced, and its errors are honest."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, Gemma3ForCausalLM, Gemma3TextConfig

from examples.benchmarks.reward_models import imitation as benchmark
from examples.benchmarks.reward_models.imitation_data import balanced, cut, drawn, longer_by, real_pairs
from examples.benchmarks.reward_models.imitation_models import Trunk, chosen_nll, scores, train
from examples.benchmarks.reward_models.imitation_page import crossed_error, difference
from tests.tiny import byte_tokenizer, tiny_llama


def saved(folder, kind: str):
    """A decoder of four layers whose head is its embedding; Gemma's alternate between two kinds of attention."""
    tokenizer = byte_tokenizer(bos=True)
    if kind == "llama":
        model = tiny_llama(tokenizer, num_hidden_layers=4, tie_word_embeddings=True)
    else:
        torch.manual_seed(0)
        sizes = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "sliding_window": 4,
        }
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
        kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
        config = Gemma3TextConfig(**sizes, **heads, layer_types=kinds, pad_token_id=0, eos_token_id=1, bos_token_id=2)
        model = Gemma3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows_of(count: int, source: str = "a") -> list[dict]:
    texts = ({"prompt": f"{source} {i}?", "chosen": "yes " * (i % 5 + 1), "rejected": "no " * 4} for i in range(count))
    return [row | {"source": source} for row in texts]


def stored(path, rows) -> tuple[Trunk, list[dict]]:
    trunk = Trunk(path, lower=2, dtype="float32")
    ids = cut(rows, trunk.tokenizer, 24)
    benchmark.store(trunk, ids)
    return trunk, ids


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_stored_states_are_those_of_the_whole_model(tmp_path, kind):
    trunk, ids = stored(saved(tmp_path, kind), rows_of(5))
    upper = trunk.fresh(seed=3)
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    whole.score = upper.score
    assert len(upper.model.layers) == 2 and len(whole.model.layers) == 4
    np.testing.assert_allclose(scores(upper, ids, trunk.pad), scores(whole, ids, trunk.pad), rtol=1e-5, atol=1e-6)
    assert chosen_nll(upper, ids, trunk.pad) == pytest.approx(chosen_nll(whole, ids, trunk.pad), rel=1e-5)


def test_arms_share_all_but_the_coefficient(tmp_path):
    """The same head at the start; the frozen weights stay; imitation keeps the chosen completions likelier."""
    trunk, ids = stored(saved(tmp_path / "model", "gemma"), rows_of(16))
    before = [weight.clone() for weight in trunk.model.parameters()]
    assert torch.equal(trunk.fresh(1).score.weight, trunk.fresh(1).score.weight)
    assert not torch.equal(trunk.fresh(1).score.weight, trunk.fresh(2).score.weight)
    how = {"seed": 1, "learning_rate": 1e-2}
    models = [train(trunk, ids, tmp_path / "run", coefficient=each, **how).model for each in (0.0, 0.0, 100.0)]
    plain, again, imitating = (scores(model, ids, trunk.pad) for model in models)
    assert plain == again != imitating
    assert chosen_nll(models[2], ids, trunk.pad) < chosen_nll(models[0], ids, trunk.pad) - 0.01
    assert all(map(torch.equal, before, trunk.model.parameters()))


def test_pairs_are_balanced_within_each_stratum():
    rows = [row | {"stratum": name} for name, count in (("a", 40), ("b", 20)) for row in rows_of(count, name)]
    found = balanced(rows, 12)
    for name, each in (("a", 4), ("b", 2)):
        own = [longer_by(row) > 0 for row in found if row["stratum"] == name]
        assert own.count(True) == own.count(False) == each
    assert found == balanced(rows[::-1], 12)  # by hash, in whatever order they come


def test_a_cut_prompt_keeps_its_end_and_its_first_token():
    tokenizer = byte_tokenizer(bos=True)
    (row,) = cut([{"prompt": "abcdefgh", "chosen": "xyz", "rejected": "u" * 20}], tokenizer, 12)
    # a third of 12 is 4: <bos> f g h
    assert tokenizer.decode(row["chosen_ids"]) == "<bos>fghxyz<eos>"
    assert tokenizer.decode(row["rejected_ids"]) == "<bos>fgh" + "u" * 8
    assert row["num_prompt_tokens"] == 4


def test_errors_over_seeds_and_over_pairs_add_up():
    by_seed = np.array([[0.0] * 4, [2.0] * 4])  # 1 ± √2 / √2
    assert crossed_error(by_seed, list("abcd")) == (1.0, 1.0)
    by_pair = np.array([[0.0, 2.0]] * 3)
    assert crossed_error(by_pair, list("ab")) == (1.0, 1.0)
    error, freedom = crossed_error(np.array([[0.0, 2.0], [2.0, 4.0]]), list("ab"))
    assert (error, freedom) == (pytest.approx(2**0.5), pytest.approx(2.0))
    assert difference(by_pair, by_pair, [{"prompt": "a"}, {"prompt": "b"}]) == "the same"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for path, rows in {
        "pref_hh/helpful.jsonl": rows_of(40, "hh"),
        "pref_qafeedback/pairs.jsonl": rows_of(40, "qa"),
        "pref_judge/pairs.jsonl": [*rows_of(120, "large"), *rows_of(30, "small"), *rows_of(10, "tiny")],
    }.items():
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_no_prompt_is_learned_from_and_asked_about(data):
    world = real_pairs(data, judged=20, held_out=5)
    learned = {row["prompt"] for pool in world.pools for row in pool}
    assert not learned & {row["prompt"] for rows in world.asked.values() for row in rows}
    assert {row["source"] for row in world.asked["pref_judge"]} == {"large", "others"}
    assert drawn(world, 8, seed=1) == drawn(world, 12, seed=1)[:8] != drawn(world, 8, seed=2)


@pytest.mark.slow
def test_the_benchmark_runs_and_goes_on(tmp_path, data, monkeypatch, capsys):
    model = saved(tmp_path / "model", "gemma")
    out = tmp_path / "out"
    flags = ["--model", str(model), "--data", str(data), "--lower", "2", "--output-dir", str(out), "--tokens", "32"]
    flags += ["--coefficients", "0", "0.1", "--pairs", "8", "--judged", "20", "--held-out", "4", "--seeds", "0", "1"]
    for _ in range(2):  # the second time from what was kept
        monkeypatch.setattr("sys.argv", ["imitation", *flags])
        benchmark.main()
    printed = capsys.readouterr().out
    assert printed.count("1 to go, about") == 1 and printed.count("| large | ") == 2
    assert (out / "tables.md").read_text() in printed
    monkeypatch.setattr("sys.argv", ["imitation", *flags, "--tokens", "16"])
    with pytest.raises(ValueError, match="has runs of another setting"):
        benchmark.main()
