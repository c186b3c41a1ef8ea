import math
import pickle

import pytest
import torch
from encoders import OneHot, saved_bert, word_tokenizer
from tiny import byte_tokenizer
from transformers import AutoModel

from trl_ext import R3Reward, RelevanceReward

QUESTION, ANSWER = "why is the sky blue", "the sky is blue blue"
TEXTS = ["", "a", "the sky", "Rayleigh scattering, mostly.", "the sky is blue because air scatters blue light", "b"]


@pytest.fixture
def one_hot():
    return OneHot()


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory):
    return saved_bert(tmp_path_factory.mktemp("bert"))


def test_by_hand(one_hot):
    """M(x) = .2 for each of why is the sky blue; M(ŷ) = .2 for the sky is, .4 for blue."""
    columns = {"prompts": [QUESTION], "completions": [ANSWER], "reference": ["blue"]}
    to_prompt = RelevanceReward(one_hot, tokenizer=word_tokenizer())
    to_reference = RelevanceReward(one_hot, tokenizer=word_tokenizer(), to="reference")
    cosine = RelevanceReward(one_hot, tokenizer=word_tokenizer(), similarity="cosine")
    assert to_prompt(**columns) == pytest.approx([0.2])  # 3 · .2 · .2 + .2 · .4
    assert to_reference(**columns) == pytest.approx([0.4])  # 1 · .4
    assert cosine(**columns) == pytest.approx(
        [0.2 / (0.20 * 0.28) ** 0.5]
    )  # |M(x)|² = 5 · .04, |M(ŷ)|² = 3 · .04 + .16


def test_contrast_by_hand(one_hot):
    """Relevance of "sky" is 1/2 to "the sky" and 0 to "why two", twice the same prompt; of "why", 0 and 1/2."""
    reward = RelevanceReward(one_hot, tokenizer=word_tokenizer(), contrast=True)
    prompts = ["the sky", "why two", "why two", "grass"]
    scores = reward(prompts=prompts, completions=["sky", "why", "sky", "blue"])
    # sky: 1/2 − (0 + 0)/2;  why: 1/2 − (0 + 0)/2;  sky: 0 − (1/2 + 0)/2;  blue: 0 − 0
    assert scores == pytest.approx([0.5, 0.5, -0.25, 0.0])
    assert reward(prompts=["the sky"] * 2, completions=["sky", "why"]) == pytest.approx([0.5, 0.0])  # no other prompt


def test_contrast_is_to_prompts_only(one_hot):
    with pytest.raises(ValueError, match="the contrast is to other prompts"):
        RelevanceReward(one_hot, tokenizer=word_tokenizer(), to="reference", contrast=True)
    r3 = R3Reward(relevance=RelevanceReward(one_hot, tokenizer=word_tokenizer(), contrast=True))
    assert [route.factors[0].contrast for route in r3.routes] == [True, False]


def test_the_beginning_is_what_truncation_cuts(one_hot):
    """Of '<cls> why is the sky blue' in three tokens remain <cls> sky blue: special tokens stay, the end stays."""
    tokenizer = word_tokenizer(special=True)
    reward = RelevanceReward(one_hot, tokenizer=tokenizer, to="reference", max_length=3)
    scores = reward(prompts=["", ""], completions=[QUESTION] * 2, reference=["sky", "why"])
    assert scores == pytest.approx([(1 + 1) / 6, 1 / 6])  # <cls>/2 sky/2 · (<cls> + sky + blue)/3; of why only <cls>
    assert tokenizer.truncation_side == "right"  # the user's tokenizer is as it was


def test_never_longer_than_the_encoders_window():
    one_hot = OneHot(window=4)
    RelevanceReward(one_hot, tokenizer=word_tokenizer())(prompts=[QUESTION], completions=["sky " * 9])
    assert one_hot.shapes == [(2, 4)]


def test_repeated_texts_are_encoded_once_and_in_order_of_length(one_hot):
    """Eight completions of one prompt, two of them equal: one prompt and seven completions pass, shortest first."""
    completions = ["sky " * n for n in (7, 1, 2, 9, 3, 4, 6, 6)]
    reward = RelevanceReward(one_hot, tokenizer=word_tokenizer(), batch_size=3)
    scores = reward(prompts=[QUESTION] * 8, completions=completions)
    assert one_hot.shapes == [(3, 3), (3, 6), (2, 9)]  # tokens 1 2 3 · 4 5 6 · 7 9; the prompt has 5
    assert scores == pytest.approx([0.2] * 8)


def test_an_empty_completion_is_relevant_to_nothing(one_hot):
    for similarity in ("dot", "cosine"):
        reward = RelevanceReward(one_hot, tokenizer=word_tokenizer(), similarity=similarity)
        assert reward(prompts=[QUESTION], completions=[""]) == [0.0]


def test_conversations_score_as_their_last_turns(bert_path):
    reward = RelevanceReward(bert_path)
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    said = [{"role": "assistant", "content": ANSWER}]
    standard = reward(prompts=[QUESTION], completions=[ANSWER])
    assert reward(prompts=[prompt], completions=[said]) == standard


def test_a_batch_is_its_rows(bert_path):
    reward = RelevanceReward(bert_path, batch_size=2)
    together = reward(prompts=[QUESTION, "b"] * 3, completions=TEXTS)
    alone = [reward(prompts=[p], completions=[c])[0] for p, c in zip([QUESTION, "b"] * 3, TEXTS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_mean_pooling_equals_the_definition(bert_path):
    """From transformers alone: each text by itself, no padding, mean over its tokens, dot product."""
    bert, tokenizer = AutoModel.from_pretrained(bert_path).eval(), byte_tokenizer()

    def vector(text):
        with torch.no_grad():
            return bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = [float(vector(QUESTION) @ vector(text)) for text in TEXTS[1:]]
    reward = RelevanceReward(bert_path)
    assert reward(prompts=[QUESTION] * 5, completions=TEXTS[1:]) == pytest.approx(expected, abs=1e-5)


def test_an_object_in_train_mode_scores_without_dropout(bert_path):
    bert = AutoModel.from_pretrained(bert_path).train()
    reward = RelevanceReward(bert, tokenizer=byte_tokenizer())
    columns = {"prompts": [QUESTION], "completions": [ANSWER]}
    assert reward(**columns) == reward(**columns) == pytest.approx(RelevanceReward(bert_path)(**columns))


def test_it_is_a_value(bert_path):
    """Pickled by name: kilobytes less than the weights, and the copy finds the loaded encoder."""
    reward = RelevanceReward(bert_path, to="reference")
    reward(prompts=["a"], completions=["b"], reference=["c"])
    pickled = pickle.dumps(reward)
    assert len(pickled) < 1000
    assert pickle.loads(pickled) == reward
    assert pickle.loads(pickled)._load()[0] is reward._load()[0]
    assert len({RelevanceReward(bert_path), RelevanceReward(bert_path, to="prompt"), reward}) == 2


def test_an_object_is_pickled_with_its_weights(bert_path):
    reward = RelevanceReward(AutoModel.from_pretrained(bert_path), tokenizer=byte_tokenizer())
    columns = {"prompts": [QUESTION], "completions": [ANSWER]}
    assert pickle.loads(pickle.dumps(reward))(**columns) == reward(**columns)
    assert hash(reward) == hash(RelevanceReward(reward.encoder, tokenizer=reward.tokenizer))


@pytest.fixture(scope="module")
def sentence_transformer(bert_path):
    return pytest.importorskip("sentence_transformers").SentenceTransformer(bert_path, device="cpu")  # mean pooling


def test_a_sentence_transformer_by_object_and_by_folder(sentence_transformer, bert_path, tmp_path):
    sentence_transformer.save(str(tmp_path))
    columns = {"prompts": [QUESTION] * 6, "completions": [*TEXTS[1:], "sky " * 90]}  # the last is cut, on the left
    expected = pytest.approx(RelevanceReward(bert_path, max_length=20, device="cpu")(**columns), abs=1e-5)
    assert RelevanceReward(sentence_transformer, max_length=20)(**columns) == expected
    assert RelevanceReward(tmp_path, max_length=20, device="cpu")(**columns) == expected
    assert sentence_transformer.max_seq_length == 64  # the user's object is as it was


def test_a_missing_reference_is_refused(one_hot):
    reward = RelevanceReward(one_hot, tokenizer=word_tokenizer(), to="reference")
    columns = {"prompts": ["why", "why"], "completions": ["blue", "sky"]}
    with pytest.raises(ValueError, match="expected a column `reference`"):
        reward(**columns)
    for nothing in (None, " ", 7):
        with pytest.raises(ValueError, match=f"expected a text .*`reference`, got {nothing!r} beside .*'sky'"):
            reward(**columns, reference=["blue", nothing])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "answer"}, r"\(to='answer'\): expected one of \('prompt', 'reference'\)"),
        ({"similarity": "l2"}, r"\(similarity='l2'\): expected one of"),
        ({"batch_size": 0}, r"\(batch_size=0\): expected at least 1"),
        ({"tokenizer": word_tokenizer()}, "brings its own tokenizer"),
        ({"encoder": OneHot()}, r"<OneHot>, tokenizer=None\): expected a transformers model with its tokenizer"),
        ({"encoder": OneHot(), "tokenizer": word_tokenizer(), "device": "cpu"}, "an object is used as it is"),
    ],
)
def test_other_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RelevanceReward(**options)


@pytest.mark.parametrize("contrast", [False, True])
def test_a_text_whose_vector_is_no_number_spoils_its_own_row_and_is_warned_of(contrast):
    encoder = OneHot()
    encoder.vectors.data[word_tokenizer().vocab["two"]] = math.nan
    reward = RelevanceReward(encoder, tokenizer=word_tokenizer(), contrast=contrast)
    whole = reward(prompts=["why", "sky"], completions=["sky why", "sky"])
    with pytest.warns(UserWarning, match="NaN or infinity for some texts"):
        found = reward(prompts=["two", "why", "sky"], completions=["sky", "sky why", "sky"])
    assert math.isnan(found[0]) and found[1:] == whole
