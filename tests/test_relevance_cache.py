"""Prompts and references are encoded once, completions whenever they come, and no score depends on what is known."""

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from encoders import OneHot, saved_bert, tiny_bert, word_tokenizer
from tiny import byte_tokenizer

from trl_ext import R3Reward, RelevanceReward
from trl_ext.rewards import relevance, relevance_cache
from trl_ext.rewards.encoder import load_encoder
from trl_ext.rewards.relevance_cache import BESIDE, VectorCache

ROWS = {
    "prompts": ["why is the sky blue", "what is grass", "why is the sky blue"],
    "completions": ["the sky is blue", "a plant, mostly green", "because of the air"],
    "reference": ["air scatters blue light", "a plant", "air scatters blue light"],
}


@pytest.fixture
def path(tmp_path):
    """A fresh encoder, of which nothing is known yet."""
    load_encoder.cache_clear()
    return saved_bert(tmp_path)


@pytest.fixture
def encoded(monkeypatch):
    """Every text that was encoded, in order."""
    texts = []

    def spy(function):
        return lambda model, tokenizer, asked, **options: (
            texts.extend(asked) or function(model, tokenizer, asked, **options)
        )

    for module in (relevance, relevance_cache):
        monkeypatch.setattr(module, "encode", spy(module.encode))
    return texts


@pytest.mark.parametrize(("to", "column"), [("prompt", "prompts"), ("reference", "reference")])
def test_a_target_is_encoded_once_and_a_completion_each_time(path, encoded, to, column):
    reward = RelevanceReward(path, to=to, device="cpu")
    first = reward(**ROWS)
    assert sorted(encoded) == sorted([*set(ROWS[column]), *ROWS["completions"]])
    del encoded[:]
    assert reward(**ROWS) == first  # bit for bit
    assert sorted(encoded) == sorted(ROWS["completions"])


def test_a_score_does_not_depend_on_what_is_known(path):
    """A resumed run knows nothing: it must score as the one that was not stopped."""
    reward = RelevanceReward(path, device="cpu")
    fresh = reward(**ROWS)
    load_encoder.cache_clear()  # another process
    one = {name: values[1:2] for name, values in ROWS.items()}
    reward(**one)
    assert reward(**ROWS) == fresh


def test_rewards_that_name_one_encoder_share_what_is_known(path, encoded):
    r3 = R3Reward(relevance=RelevanceReward(path, device="cpu"), max_completion_length=64)
    columns = ROWS | {"query_type": ["open", "closed", "open"]}
    r3(**columns)
    del encoded[:]
    RelevanceReward(path, device="cpu")(**{name: values[:1] for name, values in ROWS.items()})
    assert encoded == ROWS["completions"][:1]


def test_of_an_object_nothing_is_kept():
    """Its weights may be trained between two calls: with vectors of twice the length, both sides are."""
    bert = tiny_bert(byte_tokenizer())
    reward = RelevanceReward(bert, tokenizer=byte_tokenizer())
    before = reward(**ROWS)
    with torch.no_grad():
        bert.encoder.layer[-1].output.LayerNorm.weight.mul_(2)  # whose bias is 0
    assert reward(**ROWS) == pytest.approx([4 * score for score in before])


def test_another_window_is_another_vector(path):
    long = {"prompts": ["the sky is blue and the grass is green"], "completions": ["grass"]}
    [whole], [cut] = (RelevanceReward(path, device="cpu", max_length=n)(**long) for n in (50, 5))
    load_encoder.cache_clear()
    assert RelevanceReward(path, device="cpu", max_length=5)(**long) == [cut] != [whole]


def test_it_is_not_pickled_and_goes_with_its_encoder(path):
    reward = RelevanceReward(path, device="cpu")
    reward(**ROWS)
    assert len(pickle.dumps(reward)) < 1000
    gc.collect()
    count = len(relevance_cache._CACHES)
    load_encoder.cache_clear()
    gc.collect()
    assert len(relevance_cache._CACHES) < count


def vector(text: str) -> torch.Tensor:
    return torch.full((4,), float(text))


def test_it_is_bounded_and_what_was_not_asked_for_goes_first():
    entry = 4 * 4 + BESIDE
    cache, made = VectorCache(mebibytes=2 * entry / 2**20), []

    def make(text):
        made.append(text)
        return vector(text)

    for text in ["1", "2", "1", "3", "1", "2"]:  # 3 takes the place of 2
        assert cache.vectors([text], longest=8, encode_one=make).tolist() == [[float(text)] * 4]
        assert len(cache) <= 2
    assert made == ["1", "2", "3", "2"]
    none = VectorCache(mebibytes=0)
    assert none.vectors(["1", "1"], longest=8, encode_one=vector).tolist() == [[1.0] * 4] * 2 and not len(none)


def test_threads_may_share_it():
    cache = VectorCache(mebibytes=10 * (4 * 4 + BESIDE) / 2**20)
    asked = [[str((i * j) % 17) for j in range(50)] for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        rows = pool.map(lambda texts: cache.vectors(texts, longest=8, encode_one=vector)[:, 0].tolist(), asked)
    assert list(rows) == [[float(text) for text in texts] for texts in asked]
    assert len(cache) == 10


def test_what_is_kept_is_no_part_of_a_larger_tensor():
    """A row of a batch would hold the whole batch in memory."""
    cache = VectorCache()
    cache.vectors(["1"], longest=8, encode_one=lambda text: torch.ones(1000, 4)[0])
    [kept] = cache._vectors.values()
    assert kept.untyped_storage().nbytes() == 16


def test_an_encoder_whose_vectors_differ_in_size_is_refused():
    class Growing(OneHot):
        def forward(self, input_ids, attention_mask):
            output = super().forward(input_ids, attention_mask)
            output.last_hidden_state = output.last_hidden_state[..., : 4 + len(self.shapes)]
            return output

    reward = RelevanceReward(Growing(), tokenizer=word_tokenizer(), batch_size=1)
    with pytest.raises(ValueError, match=r"expected vectors of one size, got some of 5 and some of 6 dimensions"):
        reward(prompts=["sky"], completions=["blue"])
