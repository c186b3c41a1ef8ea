"""What is read of an answer, and what is left out of it: each rule by hand."""

import random
import time

import pytest
from rapidfuzz.distance import Indel

from trl_ext import InstructionFilter, TaskWording, characters
from trl_ext.self_instruct import rouge_l_f1, rouge_words
from trl_ext.self_instruct.answer_parsing import Answer, inputs_first, listed, outputs_first, says, until
from trl_ext.self_instruct.instruction_filter import good_instances
from trl_ext.self_instruct.instruction_pool import InstructionPool
from trl_ext.self_instruct.seed_tasks import Instance


def longest_common(a: list, b: list) -> int:
    """By its definition: the longest of the common ones without the last word of either, or with it where it is one."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def random_words(rng, most=12) -> list[str]:
    return rng.choices(["a", "b", "c", "d", "e", "f"], k=rng.randint(1, most))


def test_rouge_l_by_hand():
    # "name a big bird", "tell me a bird": LCS "a bird" of 2 words; precision 2/4, recall 2/4, F1 = 1/2
    assert rouge_l_f1(["name", "a", "big", "bird"], ["tell", "me", "a", "bird"]) == 0.5
    # "the cat sat" in "the black cat sat down": LCS 3; P = 3/3, R = 3/5; F1 = 2 · 1 · 0.6 / 1.6 = 0.75
    assert rouge_l_f1(["the", "cat", "sat"], ["the", "black", "cat", "sat", "down"]) == 0.75
    assert rouge_l_f1([], []) == 0.0


def test_the_normalised_indel_similarity_is_rouge_l_f1():
    rng = random.Random(0)
    for _ in range(200):
        a, b = random_words(rng), random_words(rng)
        common = longest_common(a, b)
        precision, recall = common / len(a), common / len(b)
        f1 = 2 * precision * recall / (precision + recall) if common else 0.0
        assert rouge_l_f1(a, b) == pytest.approx(f1)
        assert Indel.normalized_similarity(a, b) == pytest.approx(f1)


def test_the_pool_finds_the_nearest():
    """The same as all of them compared, whichever words they are made of."""
    rng = random.Random(1)
    texts = [" ".join(random_words(rng)) for _ in range(60)]
    pool = InstructionPool(texts[:40])
    for text in texts[40:]:
        all_ = [rouge_l_f1(text.split(), each.split()) for each in texts[:40]]
        for above in (0.3, 0.7, 0.95):
            found = pool.nearest(text, above=above)
            assert (found is not None) == (max(all_) > above)
            assert found is None or found[1] == max(all_) == all_[found[0]]


def test_time_grows_no_faster_than_the_pool():
    """Ten times the pool; the bound is wide, as other processes share the caches."""
    rng = random.Random(2)
    words = [f"w{i}" for i in range(2000)]
    texts = [" ".join(rng.choices(words, weights=[1 / (i + 9) for i in range(2000)], k=12)) for _ in range(5000)]
    spent = {}
    for size in (500, 5000):
        pool = InstructionPool(texts[:size])
        start = time.process_time()
        for text in texts[:200]:
            assert pool.nearest(text, above=0.7)[1] == 1.0
        spent[size] = time.process_time() - start
    assert spent[5000] < 20 * spent[500]


def test_a_similarity_of_just_the_limit_passes():
    """7 of 10 words: F1 = 0.7, and the paper leaves out what is above."""
    pool = InstructionPool(["a b c d e f g h i j"])
    assert pool.nearest("a b c d e f g x y z", above=0.7) is None
    assert pool.nearest("a b c d e f g h y z", above=0.7) == (0, 0.8)


def test_case_and_marks_do_not_tell_apart():
    assert InstructionPool(["Name a bird!"]).nearest("name, a BIRD", above=0.7) == (0, 1.0)
    assert rouge_words("A_b") == ["a", "b"]


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Tell me a joke.", None),
        ("Tell a joke.", "too short"),
        ("word " * 150, None),
        ("word " * 151, "too long"),
        ("Describe the image to me.", "names what a model of text has not"),
        ("Describe the Graphs to me.", "names what a model of text has not"),
        ("Describe how to go to town.", "names what a model of text has not"),
        ("Describe the imagery of it.", None),
        ("Profile the user for me.", None),
        ("Write a program that sorts numbers.", "begins as it may not"),
        ('"Tell me a joke." she said.', "begins with punctuation"),
        ("Écris une histoire sur moi.", "does not begin in ASCII"),
    ],
)
def test_each_rule(instruction, reason):
    assert InstructionFilter().reason(instruction) == reason


def test_another_language():
    """Chinese: characters are counted and compared, and keywords are found inside of the line."""
    chinese = InstructionFilter(
        shortest=4, keywords=("图片",), ascii_start=False, words=characters, counted=characters
    )
    assert chinese.reason("写一首诗") is None
    assert chinese.reason("写诗") == "too short"
    assert chinese.reason("描述这张图片") == "names what a model of text has not"
    pool = InstructionPool(["写一首关于大海的诗"], words=characters)
    assert pool.nearest("写一首关于大山的诗", above=0.7) == (0, 2 * 8 / 18)


def test_keywords_keep_to_whole_words_where_letters_are_latin():
    french = InstructionFilter(keywords=("carte",), ascii_start=False)
    assert french.reason("Dessine une carte du monde.") is not None
    assert french.reason("Que veut dire écarte ici ?") is None


@pytest.mark.parametrize(
    "options",
    [
        {"shortest": 0},
        {"shortest": 9, "longest": 5},
        {"longest": 3},
        {"similarity": 1.5},
        {"keywords": "image"},
        {"words": 3},
    ],
)
def test_rules_that_are_none(options):
    with pytest.raises(ValueError, match=rf"InstructionFilter\(.*{next(iter(options))}"):
        InstructionFilter(**options)


def test_a_list_by_hand():
    answer = Answer(" tell a joke.\n10. Name\n a bird.\n11 . what is 3.5 times 2?\n12. ", ended=True)
    assert listed(answer) == (["Tell a joke.", "Name a bird.", "What is 3.5 times 2?"], 0)
    assert listed(Answer("9. One task\n10. Two", ended=False)) == (
        ["One task"],
        1,
    )  # the number said again, the last cut
    assert listed(Answer("", ended=False)) == ([], 0)
    chat = Answer("Sure! Here are some:\n\n9. Sing a song.\n\n10. Dance.", ended=True)
    assert listed(chat, chat=True) == (["Sing a song.", "Dance."], 0)
    assert listed(chat)[0][0].startswith("Sure!")


def test_what_follows_a_stop_text_is_not_read():
    assert until(Answer("a\n16. b\n\nc", ended=False), ["\n\n", "\n16"]) == ("a", True)
    assert until(Answer("a", ended=False), ["\n\n"]) == ("a", False)


def test_instances_by_hand():
    wording = TaskWording()
    two = Answer("Example 1\nInput: a\nb\nOutput: c\nExample 2.\nInput: d\nOutput: e\nInput: f", ended=True)
    assert inputs_first(two, wording) == ([Instance("a\nb", "c"), Instance("d", "e")], [])
    assert inputs_first(Answer("Output: lone", True), wording) == ([Instance("", "lone")], [])
    said = Answer("Example 1\nOutput: Example of a lemon", True)
    assert inputs_first(said, wording) == ([Instance("", "Example of a lemon")], [])  # a word of the text
    assert inputs_first(Answer("lone", True), wording) == ([], ["not in the asked form"])
    assert inputs_first(Answer("Example 1\nOutput: a\nExample 2\nOut", False), wording) == (
        [Instance("", "a")],
        ["cut off"],
    )
    assert outputs_first(Answer("Class label: a\nClass label: b\nInput: x", True), wording)[0] == [
        Instance("", "a"),
        Instance("x", "b"),
    ]
    assert outputs_first(Answer("Label: a", True), wording) == ([], ["not in the asked form"])


@pytest.mark.parametrize(
    ("instances", "good", "reasons"),
    [
        ([("a", "1"), ("b", "2")], [0, 1], []),
        ([("a", "1"), ("a", "2"), ("b", "3")], [], ["contradicts another"] * 3),
        ([("", "1"), ("", "2")], [0, 1], []),  # without an input, several outputs are no contradiction
        ([("a", "1"), ("a", "1")], [0], ["repeated"]),
        ([("a", ""), ("b", "2")], [1], ["without output"]),
        ([("a", "a")], [], ["output equals input"]),
        ([("a:", "1"), ("b", "2:")], [], ["ends with a colon"] * 2),
    ],
)
def test_instances_that_are_left_out(instances, good, reasons):
    given = [Instance(*each) for each in instances]
    assert good_instances(given) == ([given[i] for i in good], reasons)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("No", False),
        (" no.\n", False),
        ("YES, it is", True),
        ("Not sure", None),
        ("Nothing", None),
        ("Yesterday", None),
        ("", None),
    ],
)
def test_yes_and_no_are_whole_words(text, kind):
    assert says(Answer(text, True), TaskWording()) is kind


def test_yes_and_no_of_another_script_may_have_an_ending():
    wording = TaskWording(yes="예", no="아니요")
    assert says(Answer("예입니다.", True), wording) is True and says(Answer("아니요.", True), wording) is False
