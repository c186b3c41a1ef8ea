"""How many tokens a model reads at once, and whether prompts leave room for their completions."""

import pytest
from tiny import byte_tokenizer, tiny_config, tokenizer_with_options
from transformers import BertConfig, BloomConfig, Gemma3Config, GPT2Config, MambaConfig, XLNetConfig

from trl_ext.sequences.windows import check_windows, model_window


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (tiny_config(byte_tokenizer()), 256),
        (GPT2Config(n_positions=64), 64),
        (BertConfig(max_position_embeddings=32), 32),
        (Gemma3Config(text_config={"max_position_embeddings": 128}), 128),
        (BloomConfig(), None),
        (MambaConfig(), None),
        (XLNetConfig(), None),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_windows(config, window):
    assert model_window(config) == window


def check(prompts, *, tokenizer=None, config=None, room: int = 6, **options) -> None:
    tokenizer = tokenizer or byte_tokenizer()
    config = config or tiny_config(tokenizer, max_position_embeddings=16)
    check_windows(prompts, tokenizer, config, max_completion_length=room, call="Here", **options)


def test_a_prompt_may_fill_the_room_to_the_last_token():
    check(["a" * 10, "a"])
    with pytest.raises(
        ValueError, match=r"Here: the prompt of row 1 has 11 tokens, which with max_completion_length=6"
    ):
        check(["a", "a" * 11])


def test_bos_takes_room():
    check(["a" * 9], tokenizer=byte_tokenizer(bos=True))
    with pytest.raises(ValueError, match=r"row 0 has 11 tokens, .* passes the model's window of 16\. Drop or shorten"):
        check(["a" * 10], tokenizer=byte_tokenizer(bos=True))


def test_messages_are_measured_with_what_the_template_adds():
    prompt = [{"role": "user", "content": "abcd"}]
    check([prompt])  # u:abcd⏎a: has 9
    with pytest.raises(ValueError, match="row 0 has 9 tokens"):
        check([prompt], room=8)
    check([prompt], tokenizer=tokenizer_with_options())
    with pytest.raises(ValueError, match="row 0 has 13 tokens"):
        check([prompt], tokenizer=tokenizer_with_options(), template_kwargs={"shout": True})


def test_rows_have_the_numbers_that_they_are_given():
    with pytest.raises(ValueError, match="the prompt of row 7 has 11"):
        check(["a", "a" * 11], rows=[4, 7])


def test_without_a_window_everything_fits():
    check(["a" * 100], config=BloomConfig())


def test_text_that_surely_fits_is_not_read():
    class Unread:
        num_special_tokens_to_add = staticmethod(lambda: 1)
        added_tokens_decoder = {}  # noqa: RUF012
        __len__ = lambda self: 0  # noqa: E731

    config = tiny_config(byte_tokenizer(), max_position_embeddings=16)
    check_windows(["a" * 8], Unread(), config, max_completion_length=6, call="Here")
    with pytest.raises(TypeError):
        check_windows(["é" * 5], Unread(), config, max_completion_length=6, call="Here")
