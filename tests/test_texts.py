import pytest

from trl_ext.sequences.texts import characters, last_user_text, text_of, tokens_of, wordpunct


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
