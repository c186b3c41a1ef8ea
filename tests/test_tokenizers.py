"""The tokenizer beside a model, wherever it is looked for."""

import gc
import weakref

import pytest
from encoders import tiny_bert
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import BertConfig, GemmaConfig, GPT2Config, GPTNeoXConfig, Qwen2Config

from trl_ext import LearnedReward, RelevanceReward, SharedBase
from trl_ext.sequences.tokenizers import tokenizer_at, tokenizer_beside, tokenizer_fingerprint


@pytest.fixture
def saved(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_first_place_that_has_one(saved, tmp_path, tokenizer):
    found = tokenizer_at(None, "", tmp_path / "missing", tmp_path, saved)
    assert tokenizer_fingerprint(found) == tokenizer_fingerprint(tokenizer)
    assert tokenizer_at(tmp_path, None) is None and tokenizer_at() is None


def test_home(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert tokenizer_at("~/saved") is not None


@pytest.mark.parametrize("kind", [BertConfig, GemmaConfig, GPT2Config, GPTNeoXConfig, Qwen2Config])
def test_an_empty_one_is_none(tmp_path, kind):
    """Beside a model of some architectures, transformers makes one that knows its special tokens only."""
    kind().save_pretrained(tmp_path)
    assert tokenizer_at(tmp_path) is None


def test_none_is_told_by_who_asks(tmp_path):
    with pytest.raises(ValueError, match=r"Somebody: found no tokenizer beside the model\. Save .* as `tokenizer`"):
        tokenizer_beside(tmp_path, call="Somebody")


def test_the_reason_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"`tokenizer`\. transformers says: .*missing"):
        tokenizer_beside(tmp_path / "missing", call="Somebody")


def test_nobody_is_kept_alive_by_a_search_in_vain(tmp_path):
    def search():
        held = byte_tokenizer()
        assert tokenizer_at(tmp_path) is None
        return weakref.ref(held)

    gc.disable()
    try:
        assert search()() is None
    finally:
        gc.enable()


def test_a_model_alone_is_refused_wherever_it_is_read(tmp_path, tokenizer):
    for name, model in (("base", tiny_llama(tokenizer)), ("judge", tiny_reward_model(tokenizer))):
        model.save_pretrained(tmp_path / name)
    tiny_bert(tokenizer).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"SharedBase\('.*base'\): found no tokenizer"):
        SharedBase.from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"LearnedReward\('.*judge'\): found no tokenizer"):
        LearnedReward(tmp_path / "judge")
    with pytest.raises(ValueError, match=r"RelevanceReward\(encoder='.*encoder'\): found no tokenizer"):
        RelevanceReward(str(tmp_path / "encoder"))(prompts=["a"], completions=["b"])


def test_equal_words_have_equal_fingerprints():
    assert tokenizer_fingerprint(byte_tokenizer()) == tokenizer_fingerprint(byte_tokenizer(bos=True))
    other = byte_tokenizer()
    other.add_tokens(["more"])
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(byte_tokenizer())
