import pytest
from tiny import tiny_llama, tokenizer_with_options

from trl_ext.generation.protocol import Policy
from trl_ext.generation.tokenising import tokenised
from trl_ext.sequences.samples import Sample

QUESTION = [{"role": "user", "content": "ab"}]
ANSWER = [{"role": "assistant", "content": "cd"}]


def sample(prompt, completion, *, ended: bool = True) -> Sample:
    ids = {"prompt_ids": None, "completion_ids": None}
    return Sample(row=0, sample=0, prompt=prompt, completion=completion, ended=ended, generator="file", seed=-1, **ids)


def test_samples_get_ids_ended_as_they_are(tokenizer):
    samples = [sample(*pair, ended=ended) for pair in (("ab", " cd"), (QUESTION, ANSWER)) for ended in (True, False)]
    read = tokenised(samples, Policy(None, tokenizer))
    assert [tokenizer.decode(one["prompt_ids"]) for one in read] == ["ab", "ab", "u:ab\na:", "u:ab\na:"]
    assert [tokenizer.decode(one["completion_ids"]) for one in read] == [" cd<eos>", " cd", "cd<eos>", "cd"]


def test_the_policys_options_reach_the_template():
    tokenizer = tokenizer_with_options()
    (one,) = tokenised([sample(QUESTION, ANSWER)], Policy(None, tokenizer, {"shout": True}))
    assert tokenizer.decode(one["prompt_ids"]) == "LOUDu:ab\na:"


def test_ids_that_are_there_stay(tokenizer):
    known = sample("ab", "cd") | {"prompt_ids": [1], "completion_ids": [2]}
    assert tokenised([known], Policy(None, tokenizer)) == [known]


def test_what_passes_the_models_window_is_left_out_aloud():
    tokenizer = tokenizer_with_options()
    policy = Policy(tiny_llama(tokenizer, max_position_embeddings=8), tokenizer)
    samples = [sample("ab", "12345"), sample("ab", "123456"), sample("abc", "12345", ended=False)]  # 8, 9 and 8 tokens
    with pytest.warns(UserWarning, match=r"1 of 3 samples .* window of 8 tokens .*'file'.* row 0 with 9"):
        read = tokenised(samples, policy)
    assert [(one["prompt"], one["completion"]) for one in read] == [("ab", "12345"), ("abc", "12345")]


@pytest.fixture
def narrow():
    """A policy whose tokenizer knows `<image>`, which its model has no row for."""
    tokenizer = tokenizer_with_options()
    model = tiny_llama(tokenizer)
    tokenizer.add_tokens(["<image>"])
    return Policy(model, tokenizer)


def test_a_text_with_a_token_that_the_model_cannot_read_is_left_out_aloud(narrow):
    """It would be asked for again for ever: the same seeds give the same text."""
    samples = [sample("ab", "c"), sample("ab", "c<image>"), sample("a<image>", "c")]
    with pytest.warns(
        UserWarning, match=r"2 of 3 samples .* no embedding for .*'<image>' \(id 259\) in one of 'file'"
    ):
        (one,) = tokenised(samples, narrow)
    assert one["completion"] == "c"


def test_ids_of_another_tokenizer_are_refused(narrow):
    ids = {"prompt_ids": [5], "completion_ids": [6, 300]}
    with pytest.raises(
        ValueError, match=r"^the generator 'file', for the prompt of row 0: .* \(id 300\) cannot be read"
    ):
        tokenised([sample("ab", "c") | ids], narrow)
