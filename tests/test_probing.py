"""Texts that are made to fool a reward, and the command."""

import json
from io import StringIO
from pathlib import Path

import pytest
from cli_case import refused
from encoders import saved_bert
from rich.console import Console

from trl_ext import LengthIncentive, RepetitionPenalty, Route, RoutedProduct
from trl_ext.cli import main
from trl_ext.diagnostics import Probe, gaming_texts, probe_reward
from trl_ext.diagnostics.baskets import HONEST, UNENDED
from trl_ext.diagnostics.text_signs import copied_share, repetition

ROWS = [
    {"prompt": "What is the capital of Korea?", "reference": "It is Seoul.", "query_type": "open"},
    {"prompt": "Name a colour of the evening sky.", "reference": "Red is one of them.", "query_type": "open"},
]


def exact(completions, reference, **columns):
    return [float(right in text) for text, right in zip(completions, reference, strict=True)]


def test_the_texts_are_what_they_are_called():
    prompt, answer = ROWS[0]["prompt"], ROWS[0]["reference"]
    texts = gaming_texts(prompt, answer, words=60)
    assert texts == gaming_texts(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}], answer, words=60
    )
    assert texts[HONEST] == answer and texts["right answer, then filler"].startswith(answer)
    assert copied_share(prompt, texts["copy of the prompt"]) == 1.0 and texts["empty"] == ""
    assert repetition(texts["one sentence repeated"]) > 0.8 and repetition(texts["an endless list"]) < 0.1
    assert repetition(texts["stop-word soup"]) < 0.1 and copied_share(prompt, texts["off-topic essay"]) == 0.0
    assert not any(letter.isalnum() for letter in texts["only punctuation"])
    long = [*UNENDED, "off-topic essay"]
    assert all(len(texts[name].split()) == 60 for name in long)
    assert HONEST not in gaming_texts(prompt) and gaming_texts("", words=5)["an endless list"].startswith(
        "1. Glaciers it"
    )


def test_a_reward_for_length_is_fooled_and_one_for_the_answer_is_not():
    probe = probe_reward(LengthIncentive(), ROWS, words=40)
    assert (
        probe.scores[HONEST] == [0.04, 0.06]
        and "an endless list" in probe.fooled_by
        and "empty" not in probe.fooled_by
    )
    right = probe_reward(exact, ROWS)
    assert right.fooled_by == [] and right.rank == 2  # the filler is behind the right answer: as good
    assert right.wins("right answer, then filler") == 0.0


def test_rank_counts_who_earns_at_least_as_much():
    probe = probe_reward(lambda completions, **_: [float(len(text)) for text in completions], ROWS, words=40)
    means = {name: sum(values) / 2 for name, values in probe.scores.items()}
    assert probe.rank == sum(mean >= means[HONEST] for mean in means.values())


def test_a_penalty_for_a_missing_end_is_taken_off():
    plain, charged = (probe_reward(LengthIncentive(), ROWS, words=40, missing_eos_penalty=p) for p in (0.0, 5.0))
    for name, scores in plain.scores.items():
        expected = [score - 5.0 * (name in UNENDED) for score in scores]
        assert charged.scores[name] == pytest.approx(expected)
    assert "an endless list" not in charged.fooled_by and "right answer, then filler" in charged.fooled_by


def test_each_factor_of_a_product_is_shown():
    product = RoutedProduct((Route("open", (LengthIncentive(), RepetitionPenalty())),))
    probe = probe_reward(product, ROWS, words=40)
    assert list(probe.factors) == ["length_incentive", "repetition_penalty"]
    factors = zip(*(probe.factors[name]["one sentence repeated"] for name in probe.factors), strict=True)
    assert probe.scores["one sentence repeated"] == pytest.approx([a * b for a, b in factors])


def test_noise_alone_does_not_fool():
    """Two rows, one above and one below: the mean difference is within two standard errors."""
    given = iter([[1.0, 1.0], [3.0, 0.0], *[[0.0, 0.0]] * 8])
    probe = probe_reward(lambda completions, **_: next(given), ROWS)
    assert probe.gaps("right answer, then filler") == [2.0, -1.0] and probe.fooled_by == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "there are none"),
        ([{"prompt": "why?"}], "expected an honest answer in the column 'reference', got None in row 0"),
        ([{"prompt": "why?", "reference": "  "}], "honest="),
        ([{"prompt": 3, "reference": "so"}], "prompt of row 0 is 3"),
    ],
)
def test_rows_that_cannot_be_probed_with(rows, said):
    with pytest.raises(ValueError, match=said):
        probe_reward(LengthIncentive(), rows)


def test_no_name_is_cut_in_a_narrow_terminal():
    factors = [f"a_factor_with_a_name_{i}" for i in range(4)]
    scores = {name: [-0.123, -1.456] for name in gaming_texts("why?", "so")}
    probe = Probe("a_reward_with_a_long_name", scores, {name: scores for name in factors})
    console = Console(width=80, record=True, file=StringIO())
    console.print(probe.table())
    told = console.export_text()
    assert "…" not in told and all(word in told for name in scores for word in name.split())


@pytest.mark.parametrize("penalty", [float("nan"), float("inf"), -1.0])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(ValueError, match=r"probe_reward\(missing_eos_penalty=.*what a text loses"):
        probe_reward(LengthIncentive(), ROWS, missing_eos_penalty=penalty)


def test_a_reward_that_never_applies_is_refused():
    with pytest.raises(ValueError, match="gave None to every honest answer"):
        probe_reward(lambda completions, **_: [None] * len(completions), ROWS)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("rewards.py").write_text(
        "def longest(completions, **_):\n    return [float(len(text)) for text in completions]\n"
    )
    main(["probe", "--reward_funcs", "rewards.py:longest", "--dataset_name", "rows.jsonl", "--words", "40"])
    told = capsys.readouterr().out
    assert "fooled by" in told and "an endless list" in told and "100%" in told
    asked = ["--reward_funcs", "rewards.py:longest", "--dataset_name", "rows.jsonl"]
    assert "--reward_funcs: expected a reward" in refused(capsys, "probe", *asked[2:])
    assert "honest answer in the column 'answer'" in refused(capsys, "probe", *asked, "--honest", "answer")
    assert "missing_eos_penalty" in refused(capsys, "probe", *asked, "--missing_eos_penalty", "nan")
    assert "--limit 0" in refused(capsys, "probe", *asked, "--limit", "0")


def test_the_benchmark_on_a_tiny_encoder(tmp_path, monkeypatch, capsys):
    from examples.benchmarks.r3 import gaming

    kinds = {"open": ("OPENENDED", "CONSTRAINED"), "closed": ("CONSTRAINED",) * 2}
    for name, (kind, other) in kinds.items():
        rows = [{"query": f"{row['prompt']} {i}", "reference": row["reference"]} for i in range(3) for row in ROWS]
        if name == "open":
            rows = [row | {"qtype": kind} for row in rows] + [rows[0] | {"qtype": other}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [f"--{name}={tmp_path / name}.jsonl" for name in kinds]
    monkeypatch.setattr("sys.argv", ["gaming", f"--encoder={saved_bert(tmp_path / 'bert')}", *asked, "--words=20"])
    gaming.main()
    told = capsys.readouterr().out
    assert "Open, 6 rows" in told and "Closed, 6 rows" in told and "| r_y | RP | R³ |" in told
