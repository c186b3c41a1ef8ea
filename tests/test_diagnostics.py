"""What a reward pays for, by hand; proxy against gold; completions in files."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from ppo_case import even_letters, ppo_trainer
from self_training_case import trainer

from trl_ext import LengthIncentive, RepetitionPenalty, Route, RoutedProduct
from trl_ext.diagnostics import Diagnosis, GoldCurve, diagnose, proxy_against_gold
from trl_ext.diagnostics.gold_curve import PREFIX
from trl_ext.diagnostics.look import Look
from trl_ext.diagnostics.pictures import picture
from trl_ext.diagnostics.text_signs import copied_share, repetition
from trl_ext.rewards.within_prompts import correlation, ranks

PRODUCT = RoutedProduct((Route("open", (LengthIncentive(), RepetitionPenalty())),))


def look(scores, lengths, prompts=("why?", "why?", "go on", "go on"), **others) -> Look:
    return Look(0, list(prompts), ["so"] * len(prompts), scores, lengths=lengths, **others)


def test_shares_and_correlations_by_hand():
    measures = look(
        [1.0, 3.0, 10.0, 14.0], [1, 2, 5, 6], factors={"a": [0.0, 1.0, 1.0, 0.0], "b": [0.0, 2.0, 4.0, 4.0]}
    ).measures()
    # deviations: score ∓1, ∓2; length ∓½, ∓½; a ∓½, ±½; b ∓1, 0
    assert measures["length_share"] == pytest.approx((2 * 0.5 + 2 * 1.0) ** 2 / (10 * 1.0))
    assert measures["length_share/a"] == 0.0 and measures["length_share/b"] == pytest.approx(1 / 2)
    assert measures["factor_share/a"] == pytest.approx((2 * 0.5 - 2 * 1.0) ** 2 / (1.0 * 10))
    assert measures["correlation/a/b"] == pytest.approx(1.0 / (1.0 * 2.0) ** 0.5)
    assert measures["length_correlation"] == 1.0 and measures["length"] == 3.5
    assert "no_eos" not in measures and "gold" not in measures


def test_a_shift_of_one_prompts_scores_changes_nothing_within_prompts():
    plain = look([1.0, 3.0, 10.0, 11.0], [1, 3, 5, 4], gold=[0.0, 1.0, 5.0, 3.0]).measures()
    moved = look([1.0, 3.0, 90.0, 91.0], [1, 3, 5, 4], gold=[0.0, 1.0, -5.0, -7.0]).measures()
    assert plain["length_share"] == moved["length_share"] and plain["gold_within"] == moved["gold_within"] == 0.0


def test_one_completion_per_prompt_has_no_variance_within_prompts():
    measures = look([1.0, 3.0, 2.0], [1, 3, 2], ("a", "b", "c"), factors={"f": [1.0, 2.0, 0.0], "g": [2.0, 4.0, 0.0]})
    found = measures.measures()
    assert not {"length_share", "length_share/f", "factor_share/f"} & found.keys()
    assert found["length_correlation"] == 1.0 and found["correlation/f/g"] == pytest.approx(1.0)


def test_what_is_unscored_is_left_out():
    measures = look([1.0, 3.0, None, 7.0], [1, 3, 100, 5], gold=[2.0, None, 1.0, 4.0], ended=[True, False, True, True])
    found = measures.measures()
    assert (found["proxy"], found["gold"], found["no_eos"]) == (4.0, 3.0, 0.25)
    assert found["gold_error"] == 1.0  # of 2 and 4: √2 / √2
    assert found["length_share"] == 1.0


def test_texts_by_hand():
    assert copied_share("one two three four", "two three four five") == 1 / 2
    assert copied_share("why?", "why? why?") == 1.0 and copied_share("", "why") == 0.0
    assert repetition("a b c a b c") == 1 - 3 / 4 and repetition("") == 0.0
    asked = [{"role": "user", "content": "one two three"}]
    one = Look(0, [asked], [[{"role": "assistant", "content": "so: one two three"}]], [1.0])
    assert one.measures()["copied"] == 1.0 and one.lengths == [5]


def test_ranks_and_spearman():
    assert ranks([5.0, 1.0, 5.0, 9.0, 2.0], ["x", "x", "x", "y", "y"]) == [2.5, 1.0, 2.5, 2.0, 1.0]
    assert correlation([1.0, 2.0], [1.0, 1.0], groups=["x", "x"]) is None


# Proxy against gold


def curve(proxy, gold, error=0.1) -> GoldCurve:
    steps = [10 * i for i in range(len(proxy))]
    return GoldCurve(steps, proxy, gold, [error] * len(steps), [error] * len(steps), [None] * len(steps))


def test_the_point_after_which_gold_falls():
    rises_then_falls = curve([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 1.0, 0.0])
    assert rises_then_falls.turning_point == 20
    assert rises_then_falls.spearman == pytest.approx(0.0)
    assert "after step 20 gold falls while proxy rises" in rises_then_falls.said()
    assert curve([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 2.0, 2.2]).turning_point is None
    assert curve([0.0, 1.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 1.0, 0.0]).turning_point is None  # both fall
    assert curve([0.0, 1.0], [1.0, 0.0]).turning_point is None and curve([0.0, 1.0], [1.0, 0.0]).spearman is None


def test_what_was_not_seen_is_not_resolved():
    """Never "none": from how many looks, and z √2 · error, z = Φ⁻¹(1 − 0.05 / m), which a fall must be above."""
    few = curve([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], error=0.5)
    assert few.smallest_fall == pytest.approx(2.128 * 2**0.5 * 0.5, abs=1e-3)
    assert few.said().endswith(
        "over 3 looks, which are few, below 10; a point after which gold falls while proxy rises is not resolved: a fall of "
        "gold above 1.5 could have been seen"
    )
    many = curve([float(i) for i in range(12)], [float(i) for i in range(12)], error=float("nan"))
    assert many.smallest_fall is None and many.said().endswith(
        "over 12 looks; a point after which gold falls while proxy rises is not resolved"
    )
    assert "1 look, of which" in curve([1.0], [1.0]).said()


def test_a_fall_within_the_noise_is_no_point():
    """z for 5 windows is Φ⁻¹(0.99) = 2.326; √2 · 2.326 · error is what gold must fall by."""
    proxy = [0.0, 10.0, 20.0, 30.0, 40.0]
    assert curve(proxy, [0.0, 0.0, 3.3, 0.0, 0.0], error=1.0).turning_point == 20
    assert curve(proxy, [0.0, 0.0, 3.2, 0.0, 0.0], error=1.0).turning_point is None


def test_noise_alone_seldom_has_a_point():
    random = np.random.default_rng(0)
    found = [curve(list(np.arange(20.0)), list(random.normal(size=20)), error=1.0).turning_point for _ in range(400)]
    assert sum(point is not None for point in found) / 400 < 0.08


def test_many_looks_become_windows():
    gold = [float(min(i, 60 - i)) for i in range(60)]
    assert curve([float(i) for i in range(60)], gold).turning_point in (290, 350)


def test_many_looks_know_a_window_better():
    """60 looks are 10 windows of 6: se = 1 / √6, z = Φ⁻¹(0.995) = 2.576, and gold must fall by 2.576 √(2 / 6) = 1.487."""
    proxy = [float(i) for i in range(60)]
    for peak, point in ((1.5, 230), (1.47, None)):
        gold = [peak if 18 <= i < 24 else 0.0 for i in range(60)]
        assert curve(proxy, gold, error=1.0).turning_point == point


def test_a_curve_is_read_from_a_run(tmp_path):
    entries = [{"step": i, f"{PREFIX}proxy": i, f"{PREFIX}gold": -i, f"{PREFIX}gold_error": 0.1} for i in range(4)]
    log = [{"kind": "log", "time": 0.0, **entry} for entry in entries]
    (tmp_path / "_trl_ext_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 0, "loss": 1.0}, *entries]}))
    for source in (entries, tmp_path, tmp_path / "trainer_state.json"):
        assert proxy_against_gold(source).spearman == -1.0
    with pytest.raises(ValueError, match=r"diagnostics/gold, and there is none.*RewardDiagnostics"):
        proxy_against_gold([{"step": 1, "loss": 0.5}])
    with pytest.raises(ValueError, match="there is no run's log"):
        proxy_against_gold(tmp_path / "nowhere")


# Saved completions

ROWS = [
    {"prompt": "why?", "completion": " so", "score": 1.0, "query_type": "open", "ended": True},
    {"prompt": "why?", "completion": " so it is", "score": 3.0, "query_type": "open", "ended": False},
    {"prompt": "go", "completion": " on and on", "score": 3.0, "query_type": "open", "ended": True},
    {"prompt": "go", "completion": " no", "score": 1.5, "query_type": "open", "ended": True},
]


def shortness(completions, **columns):
    return [-float(len(text)) for text in completions]


def test_the_same_of_every_form(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    sources = [
        tmp_path / "rows.jsonl",
        str(tmp_path / "rows.parquet"),
        pd.DataFrame(ROWS),
        Dataset.from_list(ROWS),
        ROWS,
    ]
    found = [diagnose(source, reward=PRODUCT).measures for source in sources]
    assert all(measures == found[0] for measures in found)
    assert found[0]["no_eos"] == 0.25 and found[0]["length_share/length_incentive"] == pytest.approx(1.0)


def test_what_has_no_scores_is_scored():
    rows = [{name: value for name, value in row.items() if name != "score"} for row in ROWS]
    assert diagnose(rows, reward=PRODUCT).measures["length_share"] == pytest.approx(1.0)
    one = [row | {"reward/judge": float(i)} for i, row in enumerate(rows)]  # whose only reward is the score
    assert diagnose(one).last.scores == [0.0, 1.0, 2.0, 3.0] and not diagnose(one).last.factors
    with pytest.raises(ValueError, match=r"expected a column 'score'.*reward="):
        diagnose(rows)


def test_looks_by_step_with_gold_and_a_picture(tmp_path):
    rows = [row | {"step": step, "completion": row["completion"] * (step + 1)} for step in range(4) for row in ROWS]
    diagnosis = diagnose(rows, gold=shortness)
    assert [entry["step"] for entry in diagnosis.history] == [0, 1, 2, 3]
    assert diagnosis.gold.spearman is None  # the proxy never moved
    worst = diagnosis.most_degraded[0]
    assert (worst.first.step, worst.last.step, worst.first.gold, worst.last.gold) == (0, 3, -10.0, -40.0)
    assert diagnosis.most_improved == []
    diagnosis.save_png(tmp_path / "look.png")
    assert (tmp_path / "look.png").read_bytes()[:4] == b"\x89PNG"


def legends(diagnosis: Diagnosis) -> list[list[str]]:
    figure = picture(diagnosis.history, [diagnosis.first, diagnosis.last], diagnosis.gold)
    return [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes if axes.get_legend()]


def test_the_picture_shows_each_curve_once():
    """Of one look no second one and no empty panel; gold is named, though its axis is its own; equal curves differ in width."""
    one = diagnose(ROWS, gold=shortness)
    assert legends(one) == [
        ["step 0"],
        ["length share", "copied", "repetition", "no eos"],
        ["proxy (left)", "gold (right)"],
    ]
    rows = [row | {"step": step} for step in range(2) for row in ROWS]
    two = legends(diagnose(rows, reward=PRODUCT))
    assert two[0] == ["step 1", "step 0"] and two[2] == ["length_incentive"]
    shares = picture(one.history, [], None).axes[0].lines
    assert len({line.get_linewidth() for line in shares}) == len(shares) == 4


def test_what_a_model_wrote_is_no_markup(capsys):
    rows = [
        ROWS[0] | {"prompt": "[i]why", "step": step, "completion": "[bold]x[/red]", "score": float(step)}
        for step in range(2)
    ]
    diagnose(rows).print()
    told = capsys.readouterr().out
    assert "[bold]x[/red]" in told and "[i]why" in told


def test_grows_are_looks(tmp_path):
    trainer(tmp_path, num_stages=2).train()
    diagnosis = diagnose(sorted(tmp_path.glob("grow-*.parquet")), gold=shortness)
    assert [entry["step"] for entry in diagnosis.history] == [0, 1] and "gold_within" in diagnosis.measures
    scores = pq.read_table(tmp_path / "grow-001.parquet")["score"].to_pylist()
    assert diagnosis.measures["proxy"] == pytest.approx(sum(scores) / len(scores))


def test_the_folder_of_a_run(tmp_path):
    """Its Grows, or the samples of its log."""
    trainer(tmp_path / "raft", num_stages=2).train()
    grows = diagnose(sorted((tmp_path / "raft").glob("grow-*.parquet")))
    assert diagnose(tmp_path / "raft").history == grows.history
    ppo = ppo_trainer(tmp_path / "ppo", reward_funcs=[even_letters, shortness], reward_weights=[2.0, 0.5], max_steps=8)
    ppo.train()
    diagnosis = diagnose(tmp_path / "ppo")
    assert [entry["step"] for entry in diagnosis.history] == sorted({entry["step"] for entry in diagnosis.history})
    last = diagnosis.last
    letters, short = last.factors["even_letters"], last.factors["shortness"]
    assert list(last.scores) == pytest.approx([2 * a + b / 2 for a, b in zip(letters, short, strict=True)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a run's log with samples, and it has none"):
        diagnose(tmp_path / "empty")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "it has no rows"),
        ([{"text": "a"}], "expected columns `prompt` and `completion`"),
        ([{"prompt": "a", "completion": 3, "score": 1.0}], "completion of row 0 is 3"),
        (
            [ROWS[0], ROWS[1] | {"score": float("inf")}],
            "finite numbers or None as the scores, got inf for completion 1",
        ),
        ([ROWS[0], ROWS[1] | {"score": "x"}], "as the scores, got 'x' for completion 1"),
        ([row | {"reward/a": 1.0, "reward/b": "x"} for row in ROWS], "as the factor 'b', got 'x'"),
        ([row | {"score": float("nan")} for row in ROWS], "none of the completions has a score"),
        ([row | {"score": None} for row in ROWS], "none of the completions has a score"),
        ([ROWS[0] | {"step": 1}, ROWS[1] | {"step": None}], "`step`, got None in row 1"),
        ([ROWS[0] | {"step": 1}, ROWS[1]], "`step`, got None in row 1"),
        ([ROWS[0] | {"step": "1"}], "`step`, got '1' in row 0"),
        ([ROWS[0], {"prompt": "a", "score": 1.0}], "row 1"),
        ([ROWS[0] | {"ended": "true"}], "True or False in the column `ended`, got 'true' in row 0"),
        (
            [ROWS[0] | {"completion_ids": "[1, 2]"}],
            r"lists of token ids in the column `completion_ids`, got '\[1, 2\]'",
        ),
        ([ROWS[0], 7], r"diagnose\(\['dict', 'int'\]\): expected rows, or a list of files"),
        (("nowhere.parquet",), "there is none"),
        ("nowhere.parquet", "there is none"),
        (7, "expected a file, a data frame"),
    ],
)
def test_what_is_no_completions_is_refused(rows, said):
    with pytest.raises(ValueError, match=said):
        diagnose(rows)


@pytest.mark.parametrize("ended", [[True, False] * 2, [1, 0] * 2, np.array([True, False] * 2)])
def test_what_ended_is_read_in_each_form(ended):
    rows = [row | {"ended": end} for row, end in zip(ROWS, ended, strict=True)]
    assert diagnose(rows).measures["no_eos"] == 0.5


def test_a_data_set_in_another_order_is_refused():
    """Its references would be other prompts'."""
    prompts = list(dict.fromkeys(row["prompt"] for row in ROWS))
    rows, data = [row | {"row": prompts.index(row["prompt"])} for row in ROWS], Dataset.from_dict({"prompt": prompts})
    assert diagnose(rows, dataset=data).measures == diagnose(ROWS).measures
    with pytest.raises(ValueError, match=r"diagnose\(dataset=…\): completion 0 is of the prompt .* in that order"):
        diagnose(rows, dataset=data.select([1, 0]))
    with pytest.raises(ValueError, match=r"diagnose\(dataset=…\): expected a Dataset, got list"):
        diagnose(rows, dataset=data.to_list())


def test_what_is_no_log_is_refused(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "a"}, 3]))
    with pytest.raises(ValueError, match=r"rows\.json.*expected a log with diagnostics/gold"):
        proxy_against_gold(tmp_path / "rows.json")
    with pytest.raises(ValueError, match=r"proxy_against_gold\(NoneType\): expected trainer\.state\.log_history"):
        proxy_against_gold(None)


def test_a_reward_without_any_score_is_refused():
    rows = [{name: row[name] for name in ("prompt", "completion")} for row in ROWS]
    with pytest.raises(ValueError, match="none of the completions has a score"):
        diagnose(rows, reward=lambda completions, **_: [None] * len(completions))
    assert diagnose([ROWS[0], ROWS[1] | {"score": float("nan")}]).last.scores == [1.0, None]


def test_gold_without_any_number_is_refused():
    with pytest.raises(ValueError, match=r"diagnose\(gold=…\): the gold reward gave None for all 4 completions"):
        diagnose(ROWS, gold=lambda completions, **_: [None] * len(completions))


def test_gold_that_is_the_proxy_is_said():
    with pytest.warns(UserWarning, match="gives what training is paid by"):
        diagnose(ROWS, gold=lambda completions, score=None, **_: [1.0, 3.0, 3.0, 1.5])
