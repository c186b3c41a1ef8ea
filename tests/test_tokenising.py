from tiny import tokenizer_with_options

from trl_ext.generation.protocol import Policy
from trl_ext.self_training.tokenising import tokenised
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
