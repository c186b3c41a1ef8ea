import pytest
from tiny import byte_tokenizer, tiny_llama

from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.sample_files import sample_schema
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.self_training.tokenising import tokenised
from trl_ext.sequences.samples import Sample


def sample(prompt, completion, *, ended: bool = True) -> Sample:
    ids = {"prompt_ids": None, "completion_ids": None}
    return Sample(row=0, sample=0, prompt=prompt, completion=completion, ended=ended, generator="file", seed=-1, **ids)


@pytest.mark.parametrize(("ended", "end"), [(True, "<eos>"), (False, "")])
def test_text_gets_an_end_if_and_only_if_it_ended(tokenizer, ended, end):
    (one,) = tokenised([sample("ab", " cd", ended=ended)], Policy(None, tokenizer))
    assert tokenizer.decode(one["prompt_ids"]) == "ab"
    assert tokenizer.decode(one["completion_ids"]) == " cd" + end


@pytest.mark.parametrize(("ended", "end"), [(True, "<eos>"), (False, "")])
def test_messages_end_their_turn_if_and_only_if_they_ended(tokenizer, ended, end):
    prompt, answer = [{"role": "user", "content": "ab"}], [{"role": "assistant", "content": "cd"}]
    (one,) = tokenised([sample(prompt, answer, ended=ended)], Policy(None, tokenizer))
    assert tokenizer.decode(one["prompt_ids"]) == "u:ab\na:"
    assert tokenizer.decode(one["completion_ids"]) == "cd" + end


def test_an_end_that_is_there_is_not_doubled(tokenizer):
    (one,) = tokenised([sample("ab", "cd<eos>")], Policy(None, tokenizer))
    assert one["completion_ids"].count(tokenizer.eos_token_id) == 1


def test_ids_that_are_there_stay(tokenizer):
    known = sample("ab", "cd") | {"prompt_ids": [1], "completion_ids": [2]}
    assert tokenised([known], Policy(None, tokenizer)) == [known]


def test_a_completion_that_quotes_its_prompt_keeps_it(tokenizer):
    """Known bug: prompt removed with str.replace, wherever the completion says it again."""
    ids = tokenizer(" say it, say it")["input_ids"]
    assert Policy(None, tokenizer).completion_texts(["say it"], [ids]) == [" say it, say it"]


def test_what_is_sampled_is_decoded_whole():
    tokenizer = byte_tokenizer()
    policy = Policy(tiny_llama(tokenizer), tokenizer)
    part = Part(0, (0,), ("a",))
    ((_, samples),) = TransformersGenerator().generate([part], Sampling(num_generations=16), policy)
    for one in samples:
        assert one["completion"] == tokenizer.decode(one["completion_ids"], skip_special_tokens=True)


def test_messages_of_any_row_fit_the_files_columns():
    """The first prompt's fields may be empty where another's are not."""
    prompts = [[{"role": "user", "content": "a", "name": name}] for name in (None, "Bob")]
    kind = sample_schema(prompts, "fingerprint").field("prompt").type
    assert kind.value_type.field("name").type == "string"
