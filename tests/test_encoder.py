import shutil
import sys
from pathlib import Path

import pytest
import torch
from encoders import OneHot, saved_bert, tiny_bert, word_tokenizer
from tiny import byte_tokenizer
from tokenizers.processors import TemplateProcessing
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


@pytest.fixture(scope="module")
def unit_path(tmp_path_factory, bert_path):
    """A folder of a sentence-transformers model that normalises, as all-MiniLM-L6-v2 does."""
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(bert_path, device="cpu")
    model.append(library.sentence_transformer.modules.Normalize())
    folder = tmp_path_factory.mktemp("unit")
    model.save(str(folder))
    return folder


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """Makes the cache of a hub that cannot be reached hold some files of a folder, under the id owner/encoder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    load_encoder.cache_clear()

    def put(folder, *, without=(), known_missing=(), whole=False):
        repository, commit = tmp_path / "models--owner--encoder", "c0ffee".ljust(40, "0")
        shutil.copytree(folder, repository / "snapshots" / commit, ignore=shutil.ignore_patterns(*without))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        for name in known_missing:
            (repository / ".no_exist" / commit / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / ".no_exist" / commit / name).touch()
        if whole:
            (repository / "snapshots" / commit / ".gitattributes").touch()
        return "owner/encoder"

    return put


def vectors_at(path):
    model, tokenizer = load_encoder(str(path), "cpu", torch.float32)
    return encode(model, tokenizer, TEXTS, max_length=64, batch_size=6)


@pytest.mark.parametrize("kind", ["unit_path", "bert_path"])
def test_an_id_means_what_its_files_mean_as_a_folder(kind, on_the_hub, request):
    """A normalising encoder has vectors of length 1 either way, a plain one means of hidden states."""
    folder = request.getfixturevalue(kind)
    by_folder, by_id = vectors_at(folder), vectors_at(on_the_hub(folder, whole=True))
    torch.testing.assert_close(by_id, by_folder, rtol=0, atol=0)
    unit = torch.allclose(by_folder[1:].norm(dim=1), torch.ones(5), atol=1e-5)
    assert unit == (kind == "unit_path")


def test_a_cache_that_knows_of_no_modules_is_a_plain_encoder(on_the_hub, bert_path):
    torch.testing.assert_close(
        vectors_at(on_the_hub(bert_path, known_missing=["modules.json"])), vectors_at(bert_path)
    )


def test_a_part_of_a_repository_in_the_cache_is_not_guessed_from(on_the_hub, unit_path):
    """Transformers alone fetches neither modules.json nor the folders beside it; taken as plain, it would not normalise."""
    name = on_the_hub(unit_path, without=["modules.json", "*_*"])
    with pytest.raises(
        ValueError, match=r"RelevanceReward\(encoder='owner/encoder'\).*run `hf download owner/encoder`"
    ):
        load_encoder(name, "cpu", torch.float32)


def test_a_copy_without_modules_json_is_refused(unit_path, on_the_hub, tmp_path):
    shutil.copytree(unit_path, tmp_path / "copy", ignore=shutil.ignore_patterns("modules.json"))
    for path in (tmp_path / "copy", on_the_hub(unit_path, without=["modules.json"], whole=True)):
        with pytest.raises(ValueError, match=r"has 1_Pooling/config.json.*no modules.json.*copy or download it again"):
            load_encoder(str(path), "cpu", torch.float32)


def test_without_sentence_transformers_its_models_are_not_read_in_another_way(unit_path, on_the_hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for path in (unit_path, on_the_hub(unit_path, whole=True)):
        with pytest.raises(ImportError, match=r"is a sentence-transformers model: pip install 'trl-ext\[encoders\]'"):
            load_encoder(str(path), "cpu", torch.float32)


def with_cls_and_sep():
    """As a BERT's: [CLS] before each text and [SEP] behind it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("text", ["", " \n", "<bos>", "<eos><pad>"])
def test_a_text_without_a_token_of_its_own_has_no_vector(text):
    tokenizer = with_cls_and_sep()
    assert len(tokenizer("")["input_ids"]) == 2  # so that a model has something to read
    vectors = encode(tiny_bert(tokenizer), tokenizer, [text, "a"], max_length=64, batch_size=2)
    assert vectors[0].abs().sum() == 0 < vectors[1].abs().sum()


def test_nor_has_it_where_sentence_transformers_pools(unit_path, tmp_path):
    shutil.copytree(unit_path, tmp_path / "st")
    with_cls_and_sep().save_pretrained(tmp_path / "st")
    model, none = load_encoder(str(tmp_path / "st"), "cpu", torch.float32)
    vectors = encode(model, none, ["", "a"], max_length=64, batch_size=2)
    assert model.encode([""]).any() and vectors.norm(dim=1).tolist() == pytest.approx([0, 1])


def test_on_a_cpu_few_texts_pass_together(one_hot):
    """More than its caches hold would take longer: 18 texts, at most 64 of them a pass, go by eights, shortest first."""
    texts = ["sky " * n for n in range(18, 0, -1)]
    vectors = encode(one_hot, word_tokenizer(), texts, max_length=512, batch_size=64)
    assert (
        one_hot.shapes == [(8, 8), (8, 16), (2, 18)]
        and vectors[:, word_tokenizer().vocab["sky"]].tolist() == [1.0] * 18
    )
