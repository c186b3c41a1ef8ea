from pathlib import Path

import pytest
import torch
from encoders import OneHot, saved_bert, tiny_bert, word_tokenizer
from tiny import byte_tokenizer
from transformers import BertModel

from trl_ext import RelevanceReward
from trl_ext.rewards.encoder import encode, load_encoder

QUESTION, ANSWER = "why is the sky blue", "the sky is blue blue"
TEXTS = ["", "a", "the sky", "Rayleigh scattering, mostly.", "the sky is blue because air scatters blue light", "b"]


@pytest.fixture
def one_hot():
    return OneHot()


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory):
    return saved_bert(tmp_path_factory.mktemp("bert"))


def test_the_mean_is_over_real_tokens(one_hot):
    """The long text of the batch pads the short one; the short one's vector must not shrink."""
    vectors = encode(one_hot, word_tokenizer(), ["sky", "the sky is blue"], max_length=512, batch_size=2)
    assert one_hot.shapes == [(2, 4)]
    assert vectors[0, word_tokenizer().vocab["sky"]] == 1.0


def test_padding_side_of_the_tokenizer_changes_nothing():
    """BERT counts positions from the left, so padding there would move every token; ours is always on the right."""
    right, left = byte_tokenizer(), byte_tokenizer()
    right.padding_side, left.padding_side = "right", "left"
    bert = tiny_bert(right)
    vectors = [encode(bert, tokenizer, TEXTS, max_length=64, batch_size=6) for tokenizer in (right, left)]
    torch.testing.assert_close(*vectors, rtol=0, atol=0)
    with torch.no_grad():  # what a left-padded pass would give for "a"
        hidden = bert(**left(TEXTS, padding=True, return_tensors="pt")).last_hidden_state[1, -1]
    assert not torch.allclose(hidden, vectors[0][1], atol=1e-2)


def test_an_encoder_by_name_is_loaded_once_frozen_and_in_fp32(bert_path):
    load_encoder.cache_clear()
    first, second = RelevanceReward(bert_path), RelevanceReward(bert_path, to="reference")
    assert load_encoder.cache_info().misses == 0  # nothing is loaded before it is needed
    for reward in (first, second, first):
        reward(prompts=["a"], completions=["b"], reference=["c"])
    assert load_encoder.cache_info().misses == 1
    model, _ = first._load()
    assert isinstance(model, BertModel) and not model.training
    assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {(False, torch.float32)}
    assert next(model.parameters()).is_cuda == torch.cuda.is_available()


def test_device_and_dtype_can_be_chosen(bert_path):
    reward = RelevanceReward(Path(bert_path), device="cpu", dtype="bfloat16")
    [score] = reward(prompts=[QUESTION], completions=[ANSWER])
    model, _ = reward._load()
    assert model.dtype == torch.bfloat16 and model.device.type == "cpu"
    assert score == pytest.approx(RelevanceReward(bert_path)(prompts=[QUESTION], completions=[ANSWER])[0], rel=0.05)


@pytest.mark.parametrize("path", ["/no/such/encoder", "./encoder", "~/no-such-encoder", "a/b/c", Path("encoder")])
def test_a_folder_that_does_not_exist_is_refused_at_once(path):
    with pytest.raises(ValueError, match=r"RelevanceReward\(encoder=.*there is no such folder.*save_pretrained"):
        RelevanceReward(path)


@pytest.mark.parametrize("name", ["no-such-encoder", "nobody/no-such-encoder"])
def test_what_may_be_a_hub_id_is_refused_on_first_use(name):
    with pytest.raises(ValueError, match=rf"RelevanceReward\(encoder='{name}'\): expected a folder.*HF_HUB_OFFLINE"):
        RelevanceReward(name)(prompts=["a"], completions=["b"])


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"RelevanceReward\(encoder=.*expected a folder written by save_pretrained"):
        RelevanceReward(str(tmp_path))(prompts=["a"], completions=["b"])
