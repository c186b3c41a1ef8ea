import math
import pickle
from dataclasses import replace

import pytest
from datasets import Dataset
from encoders import OneHot, saved_bert, word_tokenizer
from ppo_case import ppo_trainer
from self_training_case import trainer as raft_trainer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from trl_ext import R3Reward, RelevanceReward
from trl_ext.rewards.r3 import closed_scale
from trl_ext.rewards.within_prompts import explained_share
from trl_ext.sequences.texts import characters

QUESTION = "why is the sky blue"  # .2 of each word
FACTORS = ["r3/relevance_prompt", "r3/relevance_reference", "r3/length_incentive", "r3/repetition_penalty"]


@pytest.fixture
def one_hot():
    return OneHot()


@pytest.fixture
def reward(one_hot):
    return R3Reward(relevance=RelevanceReward(one_hot, tokenizer=word_tokenizer()))


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory):
    return saved_bert(tmp_path_factory.mktemp("bert"))


def test_open_by_hand(reward):
    """Eight words, (the sky is) twice: M(ŷ) = .25 each of the sky is blue."""
    scores = reward(prompts=[QUESTION], completions=["the sky is blue the sky is blue"], query_type=["open"])
    # r_x = 4 · .2 · .25 = .2   LI = 8/100   RP = 4/6: tsi sib ibt bts [tsi] [sib]
    assert scores == pytest.approx([0.2 * 0.08 * 4 / 6])


def test_closed_by_hand(reward):
    """The length of a closed answer earns nothing; F brings its relevance to the range of open answers."""
    columns = {"prompts": [QUESTION] * 2, "query_type": ["closed"] * 2, "reference": ["blue sky", "two"]}
    scores = reward(**columns, completions=["blue", "two two two two two"])
    # r_y = .5 · 1, F = .5 · 5.12 / 3.5, RP = 1   and   r_y = 1, F = 5.12 / 3.5, RP = 1/3
    assert scores == pytest.approx([0.5 * 5.12 / 3.5, 5.12 / 3.5 / 3])


def test_the_papers_f():
    """L = 512: F(v) = 1.463 v."""
    scale = closed_scale(max_completion_length=512, top_relevance=3.5)
    assert scale == pytest.approx(1.463, abs=5e-4)
    assert closed_scale(max_completion_length=350, top_relevance=3.5) == pytest.approx(1.0)


def test_a_cap_by_hand(reward):
    """Five tokens of six are paid; F takes L = 5, what an open answer can earn, and not more than the trainer's L."""
    columns = {"prompts": [QUESTION] * 2, "query_type": ["open", "closed"], "reference": [None, "two"]}
    capped = replace(reward, length_cap=5)(**columns, completions=["the sky is why blue yes", "two"])
    free = reward(**columns, completions=["the sky is why blue yes", "two"])
    # r_x · 5/100 where it was r_x · 6/100, and F = 1 · .05 / 3.5
    assert capped == pytest.approx([free[0] * 5 / 6, 0.05 / 3.5])
    assert replace(reward, max_completion_length=64, length_cap=600).routes[1].scale == pytest.approx(0.64 / 3.5)


@pytest.mark.parametrize(
    ("completion", "length", "distinct"),
    [("", 0, 1), ("sky", 1, 1), ("sky sky", 2, 1), ("sky sky sky sky", 4, 1 / 2), ("?!", 1, 1), ("! ! ! !", 4, 1 / 2)],
)
def test_edge_cases_when_open(reward, completion, length, distinct):
    """No token scores 0; the relevance of `sky` is .2, of punctuation, no word of the question, 0."""
    relevance = 0.2 if "sky" in completion else 0.0
    [score] = reward(prompts=[QUESTION], completions=[completion], query_type=["open"])
    assert score == pytest.approx(relevance * length / 100 * distinct)


def test_an_empty_closed_answer_scores_its_relevance(reward):
    """No n-gram to repeat and no length to multiply: only M(y) · M('') counts, 0 where the text has no token at all."""
    assert reward(prompts=["q"], completions=[""], query_type=["closed"], reference=["two"]) == [0.0]


def test_a_batch_is_its_rows(bert_path):
    reward = R3Reward(relevance=RelevanceReward(bert_path), max_completion_length=64)
    columns = {
        "prompts": ["why?", "what is 1+1?", "why?", "and?"],
        "completions": ["because because because because", "2", "", "so, so, so it goes."],
        "query_type": ["open", "closed", "open", "closed"],
        "reference": [None, "two", None, "so it goes"],
    }
    alone = [reward(**{name: [column[i]] for name, column in columns.items()})[0] for i in range(4)]
    assert reward(**columns) == pytest.approx(alone, abs=1e-5)
    assert alone[2] == 0.0


def test_each_factor_sees_only_its_rows(one_hot, reward):
    """Open rows need no reference and closed ones pay for no prompt: two forward passes, two texts each."""
    columns = {"prompts": [QUESTION, "two is"], "query_type": ["open", "closed"], "reference": [None, "two"]}
    reward(**columns, completions=["sky", "the"])
    assert [rows for rows, _ in one_hot.shapes] == [2, 2]
    reward(prompts=[QUESTION] * 8, completions=["sky " * n for n in range(1, 9)], query_type=["open"] * 8)
    assert sum(rows for rows, _ in one_hot.shapes[2:]) == 9  # the prompt once


def test_means_are_over_the_rows_of_a_factor(reward):
    logged = {}
    reward(
        prompts=[QUESTION, QUESTION, "two"],
        completions=["sky", "sky sky sky sky", "two"],
        query_type=["open", "open", "closed"],
        reference=[None, None, "blue two"],
        log_metric=logged.__setitem__,
    )
    assert logged == pytest.approx(
        {
            "r3/relevance_prompt": 0.2,
            "r3/length_incentive": (0.01 + 0.04) / 2,
            "r3/repetition_penalty": (1 + 1 / 2 + 1) / 3,
            "r3/relevance_reference": 0.5,  # r_y, not F(r_y)
            "r3/length_share": 1.0,  # r_x is the same in both samples of the prompt
        }
    )


def test_share_of_variance_by_hand():
    """Deviations (−1, 1) and (−2, 2) of length, (1, −1) and (−3, 3) of the product: (−2 + 12)² / (10 · 20)."""
    part, whole = [1.0, 3.0, 10.0, 14.0], [5.0, 3.0, 0.0, 6.0]
    assert explained_share(part, whole, groups=["a", "a", "b", "b"]) == pytest.approx(100 / 200)
    assert explained_share(part, whole, groups=["a", "b", "c", "d"]) is None
    assert explained_share([0.1] * 3, [0.3, 0.2, 0.1], groups=["a"] * 3) is None


def test_conversations_score_as_their_texts(reward):
    prompt = [{"role": "system", "content": "sky sky sky"}, {"role": "user", "content": QUESTION}]
    said = [{"role": "assistant", "content": "the sky is blue"}]
    assert reward(prompts=[prompt], completions=[said], query_type=["open"]) == reward(
        prompts=[QUESTION], completions=["the sky is blue"], query_type=["open"]
    )


def test_the_tokenizer_is_that_of_length_and_repetition(one_hot):
    relevance = RelevanceReward(one_hot, tokenizer=word_tokenizer())
    columns = {"prompts": [QUESTION], "completions": ["sky"], "query_type": ["open"]}
    assert R3Reward(relevance=relevance, tokenize=characters)(**columns) == pytest.approx([0.2 * 0.03])


def test_it_is_a_value(bert_path):
    reward = R3Reward(relevance=RelevanceReward(bert_path), max_completion_length=64)
    columns = {"prompts": ["why?"], "completions": ["because of air"], "query_type": ["open"]}
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward and hash(copy) == hash(reward) and copy(**columns) == reward(**columns)
    assert replace(reward, max_completion_length=512) != reward
    assert "routes" not in repr(reward) and "max_completion_length=64" in repr(reward)
    assert R3Reward() == R3Reward(relevance=RelevanceReward("facebook/contriever", to="prompt"))


def test_missing_columns_and_unknown_types_are_refused(reward):
    columns = {"prompts": [QUESTION, "q"], "completions": ["sky", "two"]}
    with pytest.raises(
        ValueError, match=r"R3Reward expected a column `query_type` with the values \['open', 'closed'\]"
    ):
        reward(**columns)
    with pytest.raises(
        ValueError, match=r"no route for query type 'poem'; its routes are \['open', 'closed'\]. Add one"
    ):
        reward(**columns, query_type=["open", "poem"])
    with pytest.raises(ValueError, match="no route for query type None"):
        reward(**columns, query_type=["open", None])
    with pytest.raises(ValueError, match="expected a column `reference`"):
        reward(**columns, query_type=["open", "closed"])
    with pytest.raises(
        ValueError, match="expected a text in the column `reference`, got None beside the completion 'two'"
    ):
        reward(**columns, query_type=["open", "closed"], reference=["sky", None])
    assert len(reward(**columns, query_type=["open", "open"])) == 2  # no route needs a reference


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_completion_length": 0}, r"R3Reward\(max_completion_length=0\): expected a positive number"),
        ({"top_relevance": math.nan}, r"R3Reward\(top_relevance=nan\): expected a positive number"),
        ({"length_cap": 0}, r"R3Reward\(length_cap=0\): expected a positive number"),
        ({"top_relevance": -1.0}, r"R3Reward\(top_relevance=-1.0\): expected a positive number"),
        ({"relevance": RelevanceReward(similarity="cosine")}, r"cosine is at most 1.*top_relevance=1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        R3Reward(**options)


def prompts(conversational: bool) -> Dataset:
    texts = ["Why is the sky blue?", "What is 1 + 1?"] * 4
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": text}] for text in texts] if conversational else texts,
            "query_type": ["open", "closed"] * 4,
            "reference": [None, "2"] * 4,
        }
    )


@pytest.mark.parametrize("conversational", [False, True], ids=["standard", "conversational"])
@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)], ids=["grpo", "rloo"]
)
def test_in_trls_own_trainers(trainer_class, config_class, conversational, policy, tokenizer, bert_path, tmp_path):
    """Unchanged trainers: the score is logged under the class's name, each factor under its own."""
    args = config_class(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        max_steps=2,
        logging_steps=1,
        beta=0.0,  # the model here has no name to load a reference by
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    trainer = trainer_class(
        model=policy,
        processing_class=tokenizer,
        reward_funcs=R3Reward(relevance=RelevanceReward(bert_path, device="cpu"), max_completion_length=8),
        args=args,
        train_dataset=prompts(conversational),
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "rewards/R3Reward/mean" in entry]
    assert len(steps) == 2
    for name in [*FACTORS, "rewards/R3Reward/mean"]:
        values = [entry[name] for entry in steps if name in entry]
        assert values and all(math.isfinite(value) for value in values), name
    assert all(0 < entry["r3/repetition_penalty"] <= 1 for entry in steps)


def test_its_length_is_the_trainers_unless_given(bert_path, tmp_path):
    reward = R3Reward(relevance=RelevanceReward(bert_path))
    assert reward.routes[1].scale == pytest.approx(512 / 100 / 3.5)  # alone: the paper's
    trainer = ppo_trainer(tmp_path, reward_funcs=reward, columns={"query_type": ["open"] * 16, "reference": [""] * 16})
    inner = trainer.reward_funcs[0].__wrapped__
    assert inner == replace(reward, max_completion_length=5)


@pytest.fixture(scope="module")
def unit_encoder(bert_path):
    """An encoder with vectors of length 1, as most sentence-transformers models."""
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(bert_path, device="cpu")
    model.append(library.sentence_transformer.modules.Normalize())
    return model


CLOSED = {"prompts": ["1+1?"], "completions": ["two"], "query_type": ["closed"], "reference": ["2"]}


def test_a_top_that_no_vector_can_reach_is_refused_whatever_the_similarity_is_called(unit_encoder, bert_path):
    """The product of two vectors of length 1 is at most 1: with 3.5 the right answer would earn 1 / 3.5 of F's best."""
    reward = R3Reward(relevance=RelevanceReward(unit_encoder), max_completion_length=350)
    message = r"top_relevance=3.5\).*length 1, so that no relevance is above 1.*at most 0.29.*Give top_relevance=1"
    with pytest.raises(ValueError, match=message):
        reward(**CLOSED)
    with pytest.raises(ValueError, match=message):
        reward(**{name: values * 3 for name, values in CLOSED.items()} | {"completions": ["two", "2", "II"]})
    with pytest.raises(ValueError, match=message):  # when a trainer is built
        reward.check_columns({"query_type": ["closed"], "reference": ["2"]}, rows=[0])
    same = replace(reward, top_relevance=1.0)(**CLOSED | {"completions": ["2"]})
    assert same == pytest.approx([3.5])  # v = 1, L / 100 = 3.5
    R3Reward(relevance=RelevanceReward(bert_path), max_completion_length=350)(**CLOSED)  # of many lengths


def test_who_says_nothing_earns_nothing(unit_encoder):
    reward = R3Reward(relevance=RelevanceReward(unit_encoder), top_relevance=1.0, max_completion_length=64)
    rows = {name: values * 3 for name, values in CLOSED.items()} | {"completions": ["", " ", "2"]}
    assert reward(**rows) == pytest.approx([0.0, 0.0, 0.64])


def test_its_length_shows(bert_path, caplog, tmp_path):
    """The same object has the paper's L alone and the trainer's inside it; each says which, and the trainer's can be had."""
    reward = R3Reward(relevance=RelevanceReward(bert_path))
    assert "L=512" in repr(reward) and "L=256" in repr(replace(reward, max_completion_length=256))
    with pytest.warns(UserWarning, match=r"outside a trainer of trl_ext: F takes L = 512"):
        [alone] = reward(**CLOSED)
    with caplog.at_level("INFO", logger="trl_ext"):
        columns = {"query_type": ["closed"] * 16, "reference": ["2"] * 16}
        trainer = ppo_trainer(tmp_path, reward_funcs=reward, columns=columns)
    assert "R3Reward: L = 5, max_completion_length of PPOTrainer." in caplog.messages
    assert trainer.reward_funcs[0](**CLOSED) == pytest.approx([alone * 5 / 512])


def test_evaluation_scores_with_the_trainers_length(bert_path, tmp_path):
    reward = R3Reward(relevance=RelevanceReward(bert_path))
    rows = {"query_type": ["closed"] * 8, "reference": ["2"] * 8}
    raft = raft_trainer(tmp_path, reward_funcs=reward, columns=rows)
    assert raft.reward_funcs == raft.grower.scorer.rewards
    with pytest.warns(UserWarning):
        [alone] = reward(**CLOSED)
    assert raft.reward_funcs[0](**CLOSED) == pytest.approx([alone * 6 / 512])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_encoder_that_gives_no_numbers_is_refused(bad):
    encoder = OneHot()
    encoder.vectors.data.fill_(bad)
    reward = R3Reward(relevance=RelevanceReward(encoder, tokenizer=word_tokenizer()), max_completion_length=100)
    columns = {"query_type": ["open", "closed"], "reference": [None, "the grass"]}
    with pytest.raises(
        ValueError, match=r"RelevanceReward\(encoder=…\): the encoder gives NaN or infinity for all of 2 texts"
    ):
        reward(prompts=["sky", "grass"], completions=["blue", "two"], **columns)
    with pytest.raises(ValueError, match="gives NaN or infinity for all"):
        reward.check_columns({"prompts": ["sky", "grass"], **columns}, [0, 1])
