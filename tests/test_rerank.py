"""What `rerank` computes, by hand: nothing here samples, and nothing needs a model."""

import json
import sys
from dataclasses import replace
from itertools import combinations
from math import log
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from tiny import byte_tokenizer, tiny_llama

from examples.benchmarks.r3 import rerank, rerank_raft, word_overlap
from examples.benchmarks.r3 import rerank_arms as arms
from examples.benchmarks.r3.rerank_columns import explained_prompts, identification
from examples.benchmarks.r3.rerank_data import round_robin
from examples.benchmarks.r3.rerank_judge import balanced, longer_by
from examples.benchmarks.r3.rerank_page import by_classifier
from examples.benchmarks.r3.rerank_statistics import (
    copied_share,
    exact_match,
    identified,
    normalised,
    repeated_share,
    win_rate_at_equal_length,
)
from examples.benchmarks.r3.rerank_table import at_size, by_size, differences, sizes, win_rates
from examples.benchmarks.r3.rerank_world import told_and_true
from examples.query_types.train_classifier import Row
from trl_ext.demo.world import load_world
from trl_ext.reward_evaluation.order_statistics import chances_to_be_best, nominal_kl

SCORES = np.array([[3.0, 1.0, 3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])


def by_brute_force(scores: np.ndarray, n: int) -> np.ndarray:
    """Every subset of n, its best chosen, equal ones by lot."""
    chances = np.zeros_like(scores)
    for p, row in enumerate(scores):
        subsets = list(combinations(range(len(row)), n))
        for subset in subsets:
            best = [i for i in subset if row[i] == max(row[j] for j in subset)]
            chances[p, best] += 1 / len(best) / len(subsets)
    return chances


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_best_of_n_is_what_all_subsets_say(n):
    np.testing.assert_allclose(chances_to_be_best(SCORES, n), by_brute_force(SCORES, n), atol=1e-12)


def test_one_is_a_random_choice_and_all_are_the_best():
    np.testing.assert_allclose(chances_to_be_best(SCORES, 1), 1 / 5)
    assert chances_to_be_best(SCORES, 5)[2].tolist() == [1, 0, 0, 0, 0]
    assert chances_to_be_best(SCORES, 5)[0].tolist() == [0.5, 0, 0.5, 0, 0]


@pytest.mark.parametrize("n", [0, 6])
def test_more_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match=rf"chances_to_be_best\(n={n}\): expected 1 to 5"):
        chances_to_be_best(SCORES, n)


def test_nominal_kl():
    assert nominal_kl(1) == 0 and nominal_kl(2) == log(2) - 0.5


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("Not the same.", True), ("\n\n“not  the same”!", True), ("NOT THE SAME\n\n### Instruction:", True),
        ("same", False), ("It is not the same", False), ("not the same meaning", False), ("", False),
    ],
)  # fmt: skip
def test_exact_match_is_of_the_first_line_without_case_or_punctuation(answer, same):
    assert exact_match(answer, "not the same") == same


def test_punctuation_within_stays():
    assert (
        normalised("Eight thousand, seven hundred and seventy-four.")
        == "eight thousand, seven hundred and seventy-four"
    )
    assert exact_match("eight thousand seven", "eight thousand, seven") == 0


def test_some_tasks_ask_for_words_in_any_order():
    assert exact_match("cat, sheep, dog", "sheep, dog, cat", "taxonomy_animal") == 1
    assert exact_match("cat, dog", "sheep, dog, cat", "taxonomy_animal") == 0
    assert exact_match("dogs cats", "cats dogs", "singular_to_plural") == 0


def test_a_prompt_is_found_only_if_no_other_fits_as_well():
    assert identified([1.0, 3.0, 2.0], own=1) == 1
    assert identified([1.0, 3.0, 3.0], own=1) == 0.5
    assert identified([0.0] * 4, own=2) == 0.25


class Overlap:
    """In BM25's place: shared words."""

    def __init__(self, corpus):
        self.corpus = corpus

    def get_scores(self, words):
        return np.array([len(set(words) & set(document)) for document in self.corpus])


def test_identification_of_the_own_prompt():
    rows = [
        {"query": "Where do cats live?", "completions": ["Cats live indoors.", "Bread is good."]},
        {"query": "How is bread made?", "completions": ["", "Bread is made of flour."]},
    ]
    assert identification(rows, bm25=Overlap).tolist() == [[1, 0], [0.5, 1]]


def test_what_an_answer_adds_to_its_prompt_is_read_once(tmp_path):
    """By hand from all logits; a second call reads the file alone, for which no model has to be there."""
    base, tokenizer = tiny_llama(byte_tokenizer()).eval(), byte_tokenizer()
    base.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"id": "a", "query": "Where?", "completions": ["Here.", "There."]}]
    needed, kept = np.array([[False, True]]), tmp_path / "explained.json"
    found = explained_prompts(rows, str(tmp_path / "base"), needed, kept)
    assert np.isnan(found[0, 0]) and found[0, 1] == pytest.approx(
        by_all_logits(base, tokenizer, "There.") - by_all_logits(base, tokenizer, ""), abs=0.05
    )
    np.testing.assert_array_equal(explained_prompts(rows, "nowhere", needed, kept), found)


@torch.no_grad()
def by_all_logits(base, tokenizer, before: str) -> float:
    given, asked = tokenizer(before + "\n\n")["input_ids"], tokenizer("Where?", add_special_tokens=False)["input_ids"]
    log_probs = base(torch.tensor([given + asked])).logits[0].float().log_softmax(-1)
    return sum(log_probs[len(given) - 1 + i, token].item() for i, token in enumerate(asked))


def test_what_is_not_there_is_said_in_words(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(word_overlap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="rerank: the column of BM25 needs bm25s"):
        word_overlap.check_library("rerank")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "trl_ext.query_types", None)
    with pytest.raises(SystemExit, match=r"--label: this version of trl_ext has no trl_ext\.query_types"):
        rerank.classified([{"id": "a", "query": "Where?"}])
    with pytest.raises(SystemExit, match="no samples are there"):
        rerank.read_pool(tmp_path, [])
    with pytest.raises(SystemExit):
        rerank.parse(["--pool", "p", "--prompts", "q", "--encoder", "e", "--output-dir", "o", "--label"])
    assert "--label: expected --types" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        rerank.parse(["--pool", "p", "--prompts", "q", "--encoder", "e", "--output-dir", "o", "--types", "t"])
    assert "--types: expected --data too" in capsys.readouterr().err


def test_a_pool_is_read_whole_or_in_parts(tmp_path):
    samples = [{"row": 1, "completion": text, "completion_ids": [5], "ended": True} for text in "ab"]
    pq.write_table(pa.Table.from_pylist(samples), tmp_path / "sampled-00001.parquet")
    for path in (tmp_path, tmp_path / "sampled-00001.parquet"):
        (row,) = rerank.read_pool(path, [{"id": "x"}, {"id": "y"}])
        assert row == {"id": "y", "completions": ["a", "b"], "completion_ids": [[5], [5]], "ended": [True, True]}


def test_one_stage_on_the_pool_is_run_once(tmp_path, capsys):
    """The whole way with a tiny model: the policy before, and after a stage on what LI·RP keeps of a given pool."""
    tiny_llama(byte_tokenizer(), max_position_embeddings=256).save_pretrained(tmp_path / "start")
    byte_tokenizer().save_pretrained(tmp_path / "start")
    texts = {"query": "Where?", "prompt": "Where?\n", "reference": "Here.", "query_type": "closed", "task": "sum"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(texts))
    samples = [{"prompt": "Where?\n", "completion": text} for text in ("No.", "It is over there.")]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, samples)))
    names = {"start": "start", "pool": "pool.jsonl", "prompts": "prompts.jsonl", "data": "", "output-dir": "out"}
    words = [word for name, path in names.items() for word in (f"--{name}", str(tmp_path / path))]
    options = rerank_raft.parse([*words, "--encoder", "none", "--samples", "1"])
    found = {
        arm: [rerank_raft.once(options, arm, 0, Dataset.from_list([texts]))] for arm in ("before", "LI·RP", "LI·RP")
    }
    assert capsys.readouterr().out.count("LI·RP, seed 0") == 1
    assert found["before"][0]["perplexity of references"] != found["LI·RP"][0]["perplexity of references"]


def test_a_reward_is_shown_the_raw_question():
    reward = rerank_raft.OnQuery(lambda *, prompts, completions, **columns: [prompts, completions, sorted(columns)])
    shown = reward(prompts=["### Where?"], completions=["Here."], query=["Where?"], reference=["There."])
    assert shown == [["Where?"], ["Here."], ["reference"]]


def test_only_closed_tasks_are_graded():
    assert rerank_raft.right(["85.", "85"], ["85", "85"], ["sum", ""]) == [1.0, None]


def test_repeated_and_copied():
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == 1 - 4 / 5 and repeated_share([1, 2, 3]) == 0
    assert copied_share("tell me about cats", "Please tell me about dogs") == 0.5 and copied_share("a", "a") == 0


def test_the_win_rate_without_a_difference_in_length_is_the_win_rate():
    assert win_rate_at_equal_length(np.array([300.0]), np.array([100.0]), np.array([0])) == pytest.approx(
        0.75, abs=1e-3
    )


def test_length_that_alone_decides_is_taken_off():
    """P(win | Δ) = σ(Δ), and ours are longer throughout: raw 0.75, at equal length 0.5."""
    apart = np.array([0.5, 1.0, 1.5, 2.0])
    wins = 1000 / (1 + np.exp(-apart))
    assert wins.sum() / 4000 > 0.75
    assert win_rate_at_equal_length(wins, 1000 - wins, apart) == pytest.approx(0.5, abs=1e-3)


def test_what_is_better_at_any_length_stays():
    """P(win | Δ) = σ(1 + Δ / 2), whatever the unit of length is."""
    for unit in (1, 10):
        apart = np.array([-2.0, 1.0, 3.0])
        wins = 1000 / (1 + np.exp(-(1 + apart / 2)))
        found = win_rate_at_equal_length(wins, 1000 - wins, apart * unit)
        assert found == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-3)


def test_one_side_that_always_wins_has_a_finite_rate():
    found = win_rate_at_equal_length(np.array([50.0, 50.0]), np.zeros(2), np.array([1.0, 2.0]))
    assert 0.5 < found <= 1


def pool(types=("open", "closed")) -> arms.Pool:
    """Two prompts of two samples: a long one that is off the mark, and a short one that is near prompt and reference."""
    factors = {
        "r_x": np.array([[0.2, 0.9], [0.2, 0.9]]),
        "r_y": np.array([[0.1, 0.8], [0.1, 0.8]]),
        "LI": np.array([[0.6, 0.2], [0.6, 0.1]]),
        "RP": np.ones((2, 2)),
        "tokens": np.array([[60.0, 20.0], [60.0, 10.0]]),
    }
    return arms.Pool(factors, {"given": list(types)}, {"right": np.array([[np.nan, np.nan], [0.0, 1.0]])})


def test_what_each_arm_chooses():
    chances = arms.chosen(pool(), 2)
    assert arms.BY_CLASSIFIER not in chances
    assert {arm: own.argmax(1).tolist() for arm, own in chances.items() if arm not in (arms.CHANCE, arms.BY_CHANCE)} == {
        arms.R3: [1, 1], arms.OPEN: [1, 0], arms.PLAIN: [0, 0], arms.RELEVANCE: [1, 1], arms.LONGEST: [0, 0],
    }  # fmt: skip
    assert chances[arms.CHANCE].tolist() == [[0.5, 0.5]] * 2
    assert chances[arms.BY_CHANCE][1].tolist() == [0.5, 0.5]  # half of the prompts are open


def test_the_classifiers_types_have_an_arm_of_their_own():
    one = pool()
    one.types["classifier"] = ["open", "open"]
    chances = arms.chosen(one, 2)
    np.testing.assert_array_equal(chances[arms.BY_CLASSIFIER], chances[arms.OPEN])
    one.types["classifier"] = ["open", None]  # as many are open as closed, so that it is taken for closed
    np.testing.assert_array_equal(arms.chosen(one, 2)[arms.BY_CLASSIFIER], chances[arms.R3])


def test_a_type_that_is_neither_is_refused():
    with pytest.raises(ValueError, match=r"got 'OPEN'\. Mend that row"):
        arms.chosen(pool(("OPEN", "closed")), 2)


def test_one_of_one_is_the_same_for_all_arms():
    for own in arms.chosen(pool(), 1).values():
        np.testing.assert_allclose(own, 0.5)


def test_comparisons_count_each_pair_once():
    """Always the first against always the second: it is 40 longer, and loses."""
    first, second, scores = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]])
    wins, losses, apart = arms.compared(first, second, scores, np.array([[60.0, 20.0]]))
    assert wins.sum() == 0 and losses[0, apart == 40] == 1
    half = np.full((1, 2), 0.5)
    wins, losses, _ = arms.compared(half, half, scores, np.array([[60.0, 20.0]]))
    assert wins.sum() == losses.sum() == 0.5


def test_tables_leave_out_prompts_that_a_column_does_not_apply_to():
    one = pool()
    assert sizes(32) == [1, 2, 4, 8, 16, 32]
    assert "| R³, T given | 0.500 | 1.000 |" in by_size(one, "right").splitlines()
    assert "| LI·RP | 0.000 |" in at_size(one, 2)
    assert "| LI·RP | – |" in at_size(one, 2, np.array([True, False]))
    lines = differences(one, ["right"], 2, [(arms.R3, arms.PLAIN)]).splitlines()
    assert lines[0] == "| n = 2 | right (1 prompts) |" and "| R³, T given − LI·RP | +1.000 (one seed) |" in lines


def four(**settings) -> arms.Pool:
    """Four closed prompts of two samples, of which `r_x` takes the first, LI·RP the second, which is right in two."""
    factors = {name: np.tile([[1.0, 0.0]], (4, 1)) for name in ("r_x", "r_y", "RP", "tokens")}
    factors |= {"LI": np.tile([[0.0, 1.0]], (4, 1)), "RP": np.ones((4, 2))}
    right = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    return arms.Pool(factors, {"given": ["closed"] * 4}, {"right": right}, **settings)


def test_prompts_of_one_task_count_as_one():
    """Differences 1, 1, −1, −1: of four prompts s / √n = 2/√3 / 2; of two tasks, whose means are 1 and −1, √2 / √2."""
    pairs = [(arms.PLAIN, arms.RELEVANCE)]
    assert "+0.000 ± 0.577 (" in differences(four(), ["right"], 2, pairs)
    assert "+0.000 ± 1.000 (" in differences(four(groups=["a", "a", "b", "b"]), ["right"], 2, pairs)
    assert "+1.000 (one group)" in differences(
        four(groups=["a", "a", "b", "b"]), ["right"], 2, pairs, np.arange(4) < 2
    )
    columns = win_rates(four(groups=["a", "a", "b", "b"]), four().columns["right"], 2).splitlines()
    assert "| LI·RP | 50.0 ± 25.0 |" in [line[: len("| LI·RP | 50.0 ± 25.0 |")] for line in columns]


def test_shuffled_types_say_nothing_that_the_routes_do_not():
    """Of closed prompts, R³ less shuffled types is the share of open prompts times R³ less the open route."""
    one, right = pool(), pool().columns["right"][1]
    chances = arms.chosen(one, 2)
    r3, shuffled, opened = ((chances[arm][1] * right).sum() for arm in (arms.R3, arms.BY_CHANCE, arms.OPEN))
    assert r3 - shuffled == pytest.approx(0.5 * (r3 - opened)) and r3 != opened


def test_the_classifier_is_compared_where_it_has_not_learned_the_query():
    """Its errors are on the queries that it has not learned."""
    types = {"given": ["closed"] * 4, "classifier": ["closed", "closed", "open", None]}
    one = replace(four(), types=types, unlearned=np.array([False, False, True, True]))
    new, every = by_classifier(one, 2)
    assert "2 prompts; it says the given type of 0, the other of 1, none of 1." in new
    assert "4 prompts; it says the given type of 2, the other of 1, none of 1." in every
    assert "| n = 2 | right (2 prompts) |" in new and "of which it learned the others" in every


def test_what_the_classifier_learned_is_known_by_its_words(monkeypatch):
    monkeypatch.setattr(rerank, "shipped_rows", lambda data: [Row("Where is it?", "closed", "")])
    assert rerank.learned(["where is it", "Who is it?"], Path()) == [True, False]


def test_a_random_choice_wins_half():
    lines = win_rates(pool(), np.array([[0.0, 1.0], [1.0, 0.0]]), 2).splitlines()
    assert lines[-1].startswith("| random choice | 50.0 ± 0.0 | 50.0 ± 0.0 |")


def test_as_many_pairs_chose_the_shorter_answer():
    pairs = [
        {"prompt": str(i), "chosen": "a b" if i < 5 else "a", "rejected": "a b" if i > 6 else "a"} for i in range(10)
    ]
    kept = balanced(pairs, 0)
    assert sorted(map(longer_by, kept)) == [-1, -1, -1, 1, 1, 1]  # two have equal lengths, two more are too many


def test_closed_tasks_come_by_turns():
    rows = [{"task": task, "n": n} for task in "ab" for n in range(3)]
    assert [row["task"] for row in round_robin(rows, "task")] == list("ababab")


def test_what_an_answer_tells_of_the_world():
    entity = load_world()[0]
    first, second = list(entity.facts)[:2]
    facts = [entity.sentence(first), entity.sentence(first, form=1), entity.sentence(second)]
    assert told_and_true(" ".join(facts), entity) == (2 / len(entity.facts), 1.0)
    assert told_and_true(facts[0] + " I do not know.", entity) == (1 / len(entity.facts), 0.5)
    assert told_and_true("", entity) == (0.0, 0.0)
