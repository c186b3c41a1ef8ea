import dataclasses

import pytest
import torch
from datasets import Dataset, DatasetDict
from encoders import OneHot, saved_bert, tiny_bert, word_tokenizer
from tiny import byte_tokenizer
from torch import nn

from trl_ext import R3Reward, calibrate_relevance, characters
from trl_ext.rewards.relevance_calibration import Measured, proposed_similarity
from trl_ext.rewards.told_apart import area_under_curve, deranged, standard_error, wins

WORDS = ["sky", "blue", "why", "two", "is", "the", "grass"]
PAIRS = [f"{a} {b} {c}" for i, a in enumerate(WORDS) for b in WORDS[:i] for c in WORDS[:4]]  # 84 texts


def rows(count=60, **columns) -> list[dict]:
    """Each answer says its question: what belongs together has the same words."""
    made = [{"prompt": text, "reference": f"{text} {text}"} for text in PAIRS[:count]]
    return [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(made)]


@pytest.fixture
def one_hot():
    return {"encoder": OneHot(), "tokenizer": word_tokenizer()}


def test_a_derangement_gives_each_place_another_key():
    keys = ["a"] * 5 + ["b"] * 3 + ["c", "d"]
    for seed in range(20):
        partner = deranged(keys, seed=seed)
        assert sorted(partner) == list(range(10)) and all(keys[i] != keys[partner[i]] for i in range(10))
    assert deranged(keys, seed=0) == deranged(keys, seed=0) != deranged(keys, seed=1)
    with pytest.raises(ValueError, match="3 of 5 are equal"):
        deranged(["a", "a", "a", "b", "c"], seed=0)


def test_told_apart_by_hand():
    own, other = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 4.0])
    assert wins(own, other).tolist() == [1.0, 0.5, 0.0]
    # 3 > 1 1, < 4;  1 = 1 1, < 4;  2 > 1 1, < 4:  (2 + 2 · ½ + 2) / 9
    assert area_under_curve(own, other) == pytest.approx(5 / 9)
    assert standard_error(torch.tensor([1.0, 0.5, 0.0])) == pytest.approx(0.5 / 3**0.5)


def test_an_encoder_of_words_by_hand(one_hot, capsys):
    """A question of three words, two of them equal or none: M(x)·M(ŷ) is 5/9 or 1/3, and M(ŷ) = M(x); a cosine is 1."""
    found = calibrate_relevance(**one_hot, dataset=rows())
    [dot] = [each for each in found.measured if (each.name, each.similarity) == ("r_x", "dot")]
    expected = [5 / 9 if len(set(text.split())) == 2 else 1 / 3 for text in PAIRS[:60]]
    torch.testing.assert_close(dot.own, torch.tensor(expected))
    assert found.top_relevance == 0.556  # 95 % of M(y)·M(y): a third of the rows have 5/9
    assert dot.accuracy > 0.9
    printed = capsys.readouterr().out
    assert "60 rows; answers: references" in printed and "top_relevance=0.556)" in printed
    assert str(found) in printed and "r_y" not in printed.split("top")[0]


def test_the_reward_is_ready(tmp_path):
    path = saved_bert(tmp_path)
    found = calibrate_relevance(path, Dataset.from_list(rows()), device="cpu", max_length=32)
    reward = found.reward(max_completion_length=64, tokenize=characters)
    assert isinstance(reward, R3Reward)
    assert (reward.relevance.encoder, reward.relevance.max_length, reward.L) == (path, 32, 64)
    assert reward.top_relevance == found.top_relevance and reward.tokenize is characters
    [score] = reward(prompts=["why"], completions=["is"], query_type=["closed"], reference=["is"])
    assert score == pytest.approx(0.64, rel=0.5)  # near F's best, L / 100


def test_vectors_of_length_1_get_what_the_warning_asks_for(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    unit = library.SentenceTransformer(saved_bert(tmp_path), device="cpu")
    unit.append(library.sentence_transformer.modules.Normalize())
    closed = {"prompts": ["1+1?"], "completions": ["2"], "query_type": ["closed"], "reference": ["2"]}
    with pytest.raises(ValueError, match="calibrate_relevance"):
        R3Reward(relevance=calibrate_relevance(unit, rows()).relevance, max_completion_length=350)(**closed)
    found = calibrate_relevance(unit, rows())
    assert found.top_relevance == 1.0 and found.relevance.similarity == "dot"  # no cosine is right in more rows
    assert found.reward(max_completion_length=350)(**closed) == pytest.approx([3.5])


def test_completions_say_what_a_good_answer_earns(one_hot, capsys):
    """One word of the reference in three, which is twice in the reference at best: 1/3 · 2/3, not 5/9."""
    found = calibrate_relevance(**one_hot, dataset=rows(completion=[f"{text.split()[0]} oh oh" for text in PAIRS]))
    assert found.top_relevance == 0.222
    assert {each.name for each in found.measured} == {"r_x", "r_y"}
    assert "answers: completions" in capsys.readouterr().out


def test_closed_rows_alone_set_the_top(one_hot):
    """Closed: three different words, 1/3; the open ones' 5/9 do not count."""
    kinds = ["closed" if len(set(text.split())) == 3 else "open" for text in PAIRS]
    assert kinds.count("closed") >= 50
    assert calibrate_relevance(**one_hot, dataset=rows(84, query_type=kinds)).top_relevance == 0.333


def test_types_that_are_nearly_one_are_refused(one_hot):
    with pytest.raises(ValueError, match=r"calibrate_relevance.*'OPEN' in row 83"):
        calibrate_relevance(**one_hot, dataset=rows(84, query_type=["closed"] * 83 + ["OPEN"]))


def test_conversations_are_their_texts(one_hot):
    plain = calibrate_relevance(**one_hot, dataset=rows())
    spoken = [
        {"prompt": [{"role": "system", "content": "is is"}, {"role": "user", "content": row["prompt"]}]}
        | {"reference": row["reference"]}
        for row in rows()
    ]
    assert calibrate_relevance(**one_hot, dataset=spoken).summary == plain.summary


def test_rows_are_drawn_by_the_seed(one_hot):
    few = [calibrate_relevance(**one_hot, dataset=rows(84), rows=50, seed=seed).summary for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2] and few[0].startswith("50 rows")


def test_the_cosine_is_proposed_where_it_is_right_more_often():
    right, wrong, ties = torch.ones(100), torch.zeros(100), torch.full((100,), 0.5)
    mostly = torch.cat([torch.ones(90), torch.zeros(10)])

    def measured(dot, cosine):
        return [Measured("r_x", "dot", dot, ties), Measured("r_x", "cosine", cosine, ties)]

    assert proposed_similarity(measured(mostly, right)) == "cosine"
    assert proposed_similarity(measured(right, mostly)) == "dot"
    assert proposed_similarity(measured(right, right)) == "dot"
    nearly = torch.cat([torch.ones(98), torch.zeros(2)])  # two rows more: within two standard errors
    assert proposed_similarity(measured(nearly, right)) == "dot"
    assert proposed_similarity(measured(wrong, wrong)) == "dot"


def test_a_blind_encoder_is_warned_of(one_hot):
    others = PAIRS[1:] + PAIRS[:1]
    blind = [{"prompt": "sky " * (i + 1), "reference": text} for i, text in enumerate(others)]
    with pytest.warns(UserWarning, match=r"by r_x the encoder does not tell.*by chance 50 %.*facebook/mcontriever"):
        calibrate_relevance(**one_hot, dataset=blind)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (rows(49), r"at least 50 rows with a reference whose prompts differ, got 49: of 49 rows 0 lack"),
        (rows(60, reference=[None] * 60), r"got 0: of 60 rows 60 lack one or are empty"),
        (rows(60, reference=["x"] * 20 + [" "] * 40), r"got 20: of 60 rows 40 lack one"),
        (rows(60, prompt=["why"] * 60), r"got 1: of 60 rows 0 lack one or are empty, and 59 repeat a prompt"),
        (rows(60, reference=["two"] * 60), r"expected references that differ.*60 of 60 are equal"),
        (rows(60, reference=[7] * 60), r"expected a text in the column `reference`, got 7 in row 0"),
        (rows(60, completion=[None] * 60), r"with a reference and a completion.* got 0"),
        ([{"prompt": text} for text in PAIRS], r"expected a column `reference`"),
        ([{"question": text, "reference": text} for text in PAIRS], r"rename_column\('question', 'prompt'\)"),
        (
            [*rows(60), rows(61)[60] | {"completion": "why", "query_type": "OPEN"}],  # which the first row has not
            r"'OPEN' in row 60",
        ),
        (DatasetDict(train=Dataset.from_list(rows())), r"expected one data set, got a DatasetDict"),
    ],
)
def test_bad_rows(dataset, message, one_hot):
    with pytest.raises(ValueError, match=rf"calibrate_relevance.*{message}"):
        calibrate_relevance(**one_hot, dataset=dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 49}, r"calibrate_relevance\(rows=49\)"),
        ({"rows": True}, r"calibrate_relevance\(rows=True\)"),
        ({"seed": -1}, r"calibrate_relevance\(seed=-1\)"),
        ({"similarity": "l2"}, r"\(similarity='l2'\): expected one of"),
        ({"batch_size": 0}, r"\(batch_size=0\): expected at least 1"),
    ],
)
def test_bad_options(options, message, one_hot):
    with pytest.raises(ValueError, match=message):
        calibrate_relevance(**one_hot, dataset=rows(), **options)


def test_an_encoder_that_gives_nan_is_refused():
    bert = tiny_bert(byte_tokenizer())
    nn.init.constant_(bert.encoder.layer[-1].output.LayerNorm.bias, float("nan"))
    with pytest.raises(ValueError, match=r"gives NaN or infinity for 120 of 120 texts, the first is 'blue sky sky'"):
        calibrate_relevance(bert, rows(), tokenizer=byte_tokenizer())


def test_answers_that_are_like_nothing_are_refused(one_hot):
    said = ["unheard of"] * 84  # both are <unk>, which no reference has
    with pytest.raises(ValueError, match="expected answers that are like their references"):
        calibrate_relevance(**one_hot, dataset=rows(completion=said))


def test_it_is_frozen_and_shows_what_was_measured(one_hot):
    found = calibrate_relevance(**one_hot, dataset=rows())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.top_relevance = 2.0
    assert len(found.measured) == 2
