"""`evaluate_reward` on pairs that are counted by hand, in all shapes that it reads."""

import json
import warnings
from io import StringIO
from math import log, nan

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from rich.console import Console
from shared_case import lora
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model

from trl_ext import EnsembleReward, LearnedReward, R3Reward, SharedBase, evaluate_reward
from trl_ext.trainer_kit.resampling import errors_to_see

SCORES = {" a": 1.0, " bb": 2.0, " ccc": 3.0, " d": 1.0, " e": None}


def worth(completions, **columns):
    return [SCORES[text] for text in completions]


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def rows(*pairs, **columns):
    found = [{"prompt": "p", "chosen": one, "rejected": other} for one, other in pairs]
    return [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(found)]


FOUR = rows((" bb", " a"), (" a", " ccc"), (" a", " d"), (" ccc", " bb"), subset=["x", "x", "y", "y"])


def test_accuracy_by_hand():
    found = evaluate_reward(worth, FOUR)
    assert found.summary["accuracy"] == (1 + 0 + 0.5 + 1) / 4 and found.summary["ties"] == 1
    assert found.groups["subset x"]["accuracy"] == 0.5 and found.groups["subset y"]["accuracy"] == 0.75
    assert found.groups["all"]["length_only"] == (1 + 0 + 0.5 + 1) / 4 and found.groups["all"]["chance"] == 0.5
    assert found.summary["accuracy_chosen_shorter"] == 0.0 and found.summary["rows_chosen_shorter"] == 1
    losses = np.log1p(np.exp([-1.0, 2.0, 0.0, -1.0]))
    assert found.summary["log_loss"] == pytest.approx(losses.mean())
    assert [(pair["row"], pair["gap"]) for pair in found.worst] == [(1, -2.0)]
    assert found.summary["score_length_correlation"] == pytest.approx(1.0)
    assert found.summary["difference_length_correlation"] == pytest.approx(1.0)
    assert found.beyond_length is None  # of four rows
    assert any("only 4 rows" in note for note in found.notes) and "1 tie counts half" in found.notes
    assert any(note.startswith("4 rows of 1 prompt: intervals") for note in found.notes)
    json.dumps(found.to_dict())


def test_several_rejected_must_all_be_below():
    """RewardBench counts so; RewardBench 2 has several chosen ones too."""
    several = [([" bb"], [" a", " d"]), (" bb", [" a", " ccc"]), ([" bb", " ccc"], [" a"]), ([" a", " ccc"], [" bb"])]
    found = evaluate_reward(worth, rows(*several, (" a", " ccc")))
    assert found.summary["accuracy"] == pytest.approx(2 / 5) and found.summary["pairs"] == 9  # of rows 0 and 2
    assert found.summary["chance"] == pytest.approx((4 / 3 + 1 / 2) / 5)
    # each row weighs the same: ½ each of two pairs
    gaps = [[1, 1], [1, -1], [1, 2], [-1, 1], [-2]]
    losses = [np.log1p(np.exp(-np.array(row))).mean() for row in gaps]
    assert found.summary["log_loss"] == pytest.approx(np.mean(losses))


def test_rm_benchs_levels():
    """Scores that are the style alone: 1, 2, 3, whether chosen or rejected."""

    def style(completions, **columns):
        return [float(text[-1]) for text in completions]

    row = {"prompt": "p", "chosen": ["c1", "c2", "c3"], "rejected": ["r1", "r2", "r3"], "domain": "chat"}
    found = evaluate_reward(style, [row, row | {"domain": "math"}])
    levels = [found.summary[f"accuracy_{level}"] for level in ("hard", "normal", "easy")]
    assert levels == [0.0, 0.5, 1.0] and found.summary["accuracy"] == 0.5
    assert found.groups["easy"]["accuracy"] == 1.0 and found.groups["domain math"]["rows"] == 1
    longer = {
        side: [f"{text[0]}{'x' * int(text[-1])}{text[-1]}" for text in row[side]] for side in ("chosen", "rejected")
    }
    by_length = evaluate_reward(style, [row | longer]).groups  # the fancier, the longer
    assert [by_length[level]["length_only"] for level in ("hard", "normal", "easy")] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_files_say_what_rows_say(tmp_path, suffix):
    path = tmp_path / f"pairs.{suffix}"
    table = Dataset.from_list(FOUR)
    if suffix == "json":
        path.write_text(json.dumps(FOUR))
    else:
        {"jsonl": table.to_json, "parquet": table.to_parquet, "csv": table.to_csv}[suffix](str(path))
    ours = evaluate_reward(worth, FOUR).to_dict()
    for pairs in (path, str(path), table, pd.DataFrame(FOUR)):
        assert evaluate_reward(worth, pairs).to_dict() == ours


def test_messages_text_and_whole_conversations():
    user, answers = {"role": "user", "content": "p"}, [[{"role": "assistant", "content": x}] for x in ("bb", "a")]

    def seen(prompts, completions, **columns):
        assert all(prompt == [user] for prompt in prompts)
        return [float(len(message["content"])) for (message,) in completions]

    several = {"prompt": [user], "chosen": answers[0], "rejected": [answers[1], answers[1]]}
    whole = {"chosen": [user, *answers[0]], "rejected": [user, *answers[1]]}
    for row in ({"prompt": "p", "chosen": answers[0], "rejected": answers[1]}, several, whole):
        assert evaluate_reward(seen, [row]).summary["accuracy"] == 1.0
    assert evaluate_reward(seen, rows(("bb", "a")), as_messages=True).summary["accuracy"] == 1.0


def test_one_of_many_kinds_in_a_file_of_json(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows((" bb", " a"), (" bb", [" a", " ccc"])))))
    assert evaluate_reward(worth, path).summary["accuracy"] == 0.5


def test_models_in_every_form_score_alike(tmp_path):
    tokenizer = byte_tokenizer()
    tiny_llama(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = SharedBase.from_pretrained(str(tmp_path / "base"))
    role = base.reward_model(lora(), seed=1)
    role.module.save_pretrained(tmp_path / "adapter")
    forms = [role, role.module, str(tmp_path / "adapter"), LearnedReward(tmp_path / "adapter")]
    found = [evaluate_reward(form, FOUR, as_messages=True).pairs["gap"][:] for form in forms]
    for gaps in found[1:]:
        np.testing.assert_allclose(gaps, found[0], rtol=1e-4, atol=1e-5)
    model = tiny_reward_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    text = evaluate_reward(tmp_path / "model", FOUR)
    assert any("as_messages" in note for note in text.notes)
    several = EnsembleReward([str(tmp_path / "model"), length]).standardised_on(["p"] * 2, ["a", "bbb"])
    assert any("as_messages" in note for note in evaluate_reward(several, FOUR).notes)
    messages = evaluate_reward(tmp_path / "model", FOUR, as_messages=True)
    assert not any("as_messages" in note for note in messages.notes)
    assert text.pairs["gap"][:] != messages.pairs["gap"][:]


def test_two_rewards_on_the_same_pairs():
    other = evaluate_reward(lambda completions, **_: [-x for x in length(completions)], FOUR, name="shorter")
    found = evaluate_reward(length, FOUR).compare(other)
    assert found["accuracy"]["difference"] == 2.5 / 4 - 1.5 / 4
    assert found["subset x"]["difference"] == 0.0 and found["subset y"]["difference"] == 0.5
    assert found["accuracy"]["detectable"] == errors_to_see(3) * found["accuracy"]["error"]
    # the differences of the rows are 1, −1, 0, 1: s = √(11/12), s / √4
    assert found["accuracy"]["error"] == pytest.approx((11 / 12) ** 0.5 / 2, rel=0.05)
    same = evaluate_reward(length, FOUR).compare(evaluate_reward(length, FOUR))
    assert same["accuracy"] == {"difference": 0.0, "error": 0.0, "detectable": 0.0}
    with pytest.raises(ValueError, match=r"differ.*same pairs"):
        other.compare(evaluate_reward(length, FOUR[:3]))


def test_rewards_are_compared_where_both_have_scores():
    part = evaluate_reward(
        lambda completions, **_: [None if "c" in x else 1.0 for x in completions], FOUR, name="part"
    )
    assert part.summary["rows"] == 2 and "without a score (None), and in no measure, 2 of 4 rows" in part.notes
    # of the rows 0 and 2, where `worth` has 1 and ½, and the other a half each
    assert evaluate_reward(worth, FOUR).compare(part)["accuracy"]["difference"] == 0.75 - 0.5


def test_what_the_score_adds_to_length():
    random = np.random.default_rng(0)
    pairs = rows(*((" " + "a" * n, " " + "b" * m) for n, m in random.integers(1, 40, (80, 2))))
    knows = evaluate_reward(lambda completions, **_: [float(text[1] == "a") for text in completions], pairs)
    model = knows.beyond_length
    assert model["accuracy_both"] == 1.0 > model["accuracy_length"] + 0.2
    assert model["log_loss_gain"] > 0.3 and model["score"] > model["score_error"]  # which parts all pairs
    knows_length = evaluate_reward(length, pairs).beyond_length
    assert (
        abs(knows_length["log_loss_gain"]) < 1e-3 and knows_length["score_error"] > 1
    )  # the two cannot be told apart


def test_tables_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    one, other = evaluate_reward(worth, FOUR, name="[worth]"), evaluate_reward(length, FOUR)
    console = Console(width=200, record=True, file=StringIO())
    one.print(other, console=console)
    told = console.export_text()
    for words in ("[worth]", "subset x", "length less [worth]", "not resolved", "most wrong: length", "0.625 [0.2"):
        assert words in told
    one.print(one, console=console)
    assert "[worth]_1 less [worth]_0" in console.export_text()
    one.save_png(tmp_path / "rewards.png", other)
    others = [
        (evaluate_reward(length, FOUR[:3]), r"differ.*same pairs"),
        ("worth", r"expected what evaluate_reward gave"),
    ]
    for wrong, message in others:
        for show in (one.print, lambda each: one.save_png(tmp_path / "wrong.png", each)):
            with pytest.raises(ValueError, match=message):
                show(wrong)
    with pytest.raises(ValueError, match=r"RewardEvaluation\.print\(worst=-1\)"):
        one.print(worst=-1)
    assert not (tmp_path / "wrong.png").exists()
    assert (tmp_path / "rewards.png").read_bytes().startswith(b"\x89PNG")


def test_equal_completions_are_left_out():
    with pytest.warns(UserWarning, match="left out 1 of 5 rows.*the first is row 4"):
        found = evaluate_reward(worth, [*FOUR, *rows((" a", " a "), subset=["x"])])
    assert found.summary == evaluate_reward(worth, FOUR).summary
    assert any("left out 1 row:" in note for note in found.notes)


def test_subsets_by_any_column():
    kinds = [row | {"kind": kind} for row, kind in zip(FOUR, "mnmm", strict=True)]
    assert evaluate_reward(worth, kinds, subsets="y").pairs["row"][:] == [2, 3]
    found = evaluate_reward(worth, kinds, by="kind", subsets=["m"])
    assert found.pairs["row"][:] == [0, 2, 3] and list(found.groups) == ["all", "kind m"]


def test_an_answer_may_say_nothing():
    assert evaluate_reward(length, rows((" a", ""))).summary["accuracy"] == 1.0


def test_nothing_is_noted_of_many_rows_with_prompts_of_their_own():
    many = [{"prompt": f"p{i}", "chosen": " aa", "rejected": " b"} for i in range(30)]
    assert evaluate_reward(length, many).notes == []
    assert evaluate_reward(length, many[1:]).notes[0].startswith("only 29 rows")


def test_nothing_is_warned_of_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_reward(length, FOUR, subsets=["x"])


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([], {}, "there are no rows"),
        ([{"prompt": "p", "completion": "a"}], {}, "row 0 has no 'chosen'.*rename yours"),
        ([{"prompt": "p", "chosen": "a", "rejected": None}], {}, "row 0 has no 'rejected'"),
        (rows((" a", [])), {}, "row 0 has no 'rejected'"),
        ([{"chosen": "a", "rejected": "b"}], {}, "row 0 has no 'prompt'"),
        (rows((" a", " a")), {}, "in all 1 rows chosen and rejected are the same"),
        (rows((" a", 3)), {}, "row 0: 'rejected' is 3"),
        ([*rows((" a", " b")), {"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": "b"}], {},
         "row 0 is text and row 1 messages"),
        (FOUR, {"subsets": ["z"]}, "subsets='z'.: no row has that value in a column of .'subset'.*'x', 'y'"),
        (FOUR, {"by": "kind"}, "by='kind'.: the rows have the columns .'subset'"),
        (FOUR, {"worst": 0}, "worst=0"),
        (FOUR, {"as_messages": "yes"}, "as_messages"),
        ("nowhere.jsonl", {}, "nowhere.jsonl: expected a file"),
        (7, {}, "expected a file, a Dataset.*got int"),
    ],
)  # fmt: skip
def test_what_is_refused_of_pairs(pairs, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_reward(worth, pairs, **options)


def needs(completions, answer, **columns):
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda completions, **_: [None for _ in completions], "None to every completion"),
        (lambda completions, **_: [nan if "c" in x else 1.0 for x in completions], "no finite number to a completion of row 1"),
        (lambda completions, **_: [1.0 if i % 2 else None for i, _ in enumerate(completions)], "Give pairs that it applies to"),
        (needs, "reads the column `answer`"),
        (R3Reward(), "query_type"),
        ([worth, length], "expected one reward"),
        (None, "expected one reward"),
    ],
)  # fmt: skip
def test_what_is_refused_of_rewards(reward, message):
    with pytest.raises(ValueError, match=message):
        evaluate_reward(reward, FOUR)


def test_a_reward_that_cannot_tell():
    found = evaluate_reward(lambda completions, **_: [0.0] * len(completions), FOUR)
    assert found.summary["accuracy"] == 0.5 and found.summary["log_loss"] == pytest.approx(log(2))
    assert found.summary["score_length_correlation"] is None and found.summary["ece"] == 0.0
