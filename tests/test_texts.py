import pytest

from trl_ext import LengthIncentive, RepetitionPenalty
from trl_ext.sequences import texts
from trl_ext.sequences.texts import (
    characters,
    graphemes,
    last_user_text,
    text_of,
    tokens_of,
    unicode_wordpunct,
    wordpunct,
)


def test_text_of_a_conversation_is_what_the_assistant_said():
    """No role header, and no word of a tool: the completion is scored for what the model wrote."""
    call = {"role": "assistant", "content": None, "tool_calls": []}
    tool = {"role": "tool", "content": "37"}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "37."}]}
    assert text_of("It is 37.") == "It is 37."
    assert text_of([{"role": "assistant", "content": "It is 37."}]) == "It is 37."
    assert text_of([{"role": "assistant", "content": "Wait."}, tool, parts]) == "Wait.\nIt is 37."
    assert text_of([call]) == ""


def test_x_is_the_last_user_turn_without_template_or_system():
    turns = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    assert last_user_text(turns) == "Why is the sky blue?"
    assert last_user_text([*turns, {"role": "assistant", "content": "Because"}]) == "Why is the sky blue?"
    assert last_user_text("### Question: why?\n") == "### Question: why?\n"


def test_a_prompt_without_user_is_refused():
    with pytest.raises(ValueError, match=r"message of role 'user', got the roles \['system'\]"):
        last_user_text([{"role": "system", "content": "You are terse."}])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \n\t", []),
        ("...", ["..."]),
        ("?! ...", ["?!", "..."]),
        ("Good muffins cost $3.88", ["Good", "muffins", "cost", "$", "3", ".", "88"]),
        ("snake_case No no", ["snake_case", "No", "no"]),
        ("나는 학교에 갔다.", ["나는", "학교에", "갔다", "."]),
        ("天空为什么是蓝色的？", ["天空为什么是蓝色的", "？"]),
    ],
)
def test_wordpunct(text, tokens):
    assert wordpunct(text) == tokens


def test_characters_leave_out_white_space_only():
    assert characters("天空 是\n蓝的。") == list("天空是蓝的。")


def test_a_tokenizer_that_returns_no_list_is_refused(tokenizer):
    """len() of what a Hugging Face tokenizer returns when called is its number of fields, not of tokens."""
    assert tokens_of("abcd", tokenizer.tokenize) == list("abcd")
    with pytest.raises(ValueError, match=r"expected a list of tokens, got BatchEncoding.*`tokenizer\.tokenize`"):
        tokens_of("abcd", tokenizer)


@pytest.mark.parametrize(
    ("text", "tokenize", "tokens"),
    [
        ("नमस्ते दुनिया।", unicode_wordpunct, ["नमस्ते", "दुनिया", "।"]),
        ("e\u0301te\u0301, 2.5", unicode_wordpunct, ["été", ",", "2", ".", "5"]),
        (
            "क्\u200dष ❤\ufe0f👩\u200d💻!",
            unicode_wordpunct,
            ["क्\u200dष", "❤\ufe0f👩\u200d💻!"],
        ),  # a joiner joins either
        ("مَرْحَبًا بك", unicode_wordpunct, ["مَرْحَبًا", "بك"]),
        ("สวัสดีครับ ผม", graphemes, ["ส", "วั", "ส", "ดี", "ค", "รั", "บ", "ผ", "ม"]),
        ("\u1112\u1161\u11ab 국", graphemes, ["한", "국"]),  # a syllable in its parts
    ],
)
def test_marks_stay_with_what_they_stand_on(text, tokenize, tokens):
    assert tokenize(text) == tokens


@pytest.mark.parametrize(
    "text", ["Don't stop... $3.88", "snake_case No no", "나는 학교에 갔다.", "天空为什么是蓝色的？", ""]
)
def test_without_marks_it_is_the_papers(text):
    assert unicode_wordpunct(text) == wordpunct(text)


@pytest.mark.parametrize(
    ("said", "tokenize", "count", "distinct"),
    [  # each a sentence said twice: its tokens and trigrams by hand, in the docstrings of the two
        ("좋다. 좋다. 좋다.", wordpunct, 6, 2 / 4),
        ("猫だ。猫だ。", characters, 6, 3 / 4),
        ("我好。我好。", characters, 6, 3 / 4),
        ("नमस्ते। नमस्ते। नमस्ते।", unicode_wordpunct, 6, 2 / 4),
        ("ดีครับ ดีครับ", graphemes, 8, 4 / 6),
    ],
    ids=["Korean", "Japanese", "Chinese", "Hindi", "Thai"],
)
def test_length_and_repetition_by_hand(said, tokenize, count, distinct):
    assert LengthIncentive(tokenize=tokenize)(completions=[said]) == [count / 100]
    assert RepetitionPenalty(tokenize=tokenize)(completions=[said]) == [distinct]


@pytest.fixture
def unwarned():
    texts._warn_of_marks.cache_clear()
    yield
    texts._warn_of_marks.cache_clear()


def test_words_cut_at_their_marks_are_warned_of_once(unwarned, recwarn):
    assert LengthIncentive()(completions=["नमस्ते"] * 3) == [0.04] * 3  # the authors' count stays the default
    RepetitionPenalty()(completions=["नमस्ते"])
    [warning] = recwarn
    assert "tokenize=trl_ext.unicode_wordpunct" in str(warning.message)


@pytest.mark.parametrize(
    "text", ["Where's the café? 学校が好き。", "un café, cafe\u0301 noir et sans sucre", "❤\ufe0f"]
)
def test_few_marks_are_not(text, unwarned, recwarn):
    LengthIncentive()(completions=[text])
    assert not recwarn


def test_nor_marks_where_they_stay(unwarned, recwarn):
    LengthIncentive(tokenize=unicode_wordpunct)(completions=["नमस्ते"])
    assert not recwarn
