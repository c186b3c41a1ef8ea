import functools
import re

import pytest
from datasets import Dataset, IterableDataset
from encoders import saved_bert
from ppo_case import PROMPTS, ppo_trainer
from self_training_case import trainer as raft_trainer
from tiny import byte_tokenizer, tiny_reward_model

from trl_ext import LengthIncentive, R3Reward, RelevanceReward, RepetitionPenalty, ReSTTrainer
from trl_ext.cli import main
from trl_ext.rewards.checked_reward import checked_reward
from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.rewards.reward_columns import ReadColumns, check_columns, check_reward_columns
from trl_ext.rewards.routed_product import Route, RoutedProduct


def exact(completions, answer, **columns):
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def graded(completions, trainer_state, *, answer, strict=True, **columns):
    return exact(completions, answer)


async def asked(prompts, completions, completion_ids, answer, log_metric, **columns):
    return exact(completions, answer)


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory):
    return saved_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def r3(bert_path):
    return R3Reward(relevance=RelevanceReward(bert_path, device="cpu"))


@pytest.mark.parametrize("reward", [exact, graded, asked])
def test_a_functions_parameters_say_what_it_reads(reward):
    check_columns(reward, {"answer": ["4"]}, rows=[0])
    with pytest.raises(
        ValueError, match=rf"{reward.__name__}' reads the column `answer`.*\['solution'\]. Add or rename"
    ):
        check_columns(reward, {"solution": ["4"]}, rows=[0])


def test_what_has_a_default_or_is_bound_is_not_asked_for():
    check_columns(functools.partial(exact, answer=["4"]), {}, rows=[0])
    check_columns(lambda completions, answer=None, **columns: [], {}, rows=[0])
    check_columns(exact, {}, rows=[])  # it would not be called


def test_a_decorator_may_give_what_it_wraps_its_columns():
    @functools.wraps(exact)
    def looked_up(completions, **columns):
        return exact(completions, answer=["4"] * len(completions))

    check_columns(looked_up, {}, rows=[0])


def test_a_checked_reward_reads_what_it_wraps():
    with pytest.raises(ValueError, match="`answer`"):
        check_columns(checked_reward(checked_reward(exact)), {}, rows=[0])


def test_prompt_is_not_a_column_that_rewards_get():
    def old(prompt, completions, **columns):
        return []

    with pytest.raises(ValueError, match="Rewards get it as `prompts`"):
        check_reward_columns([old], Dataset.from_dict({"prompt": ["why?"]}), call="here")


def test_of_a_stream_the_first_row_is_asked():
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "why?", "answer": "4"}]))
    check_reward_columns([exact], stream, call="here")
    with pytest.raises(ValueError, match=r"^here: the reward 'exact' reads"):
        check_reward_columns([exact], stream.remove_columns("answer"), call="here")


R3_ROWS = {"query_type": ["open", "closed"], "reference": [None, "4"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"R3Reward expected a column `query_type` with the values \['open', 'closed'\].*Add it"),
        ({"query_type": ["open", "poem"]}, "no route for query type 'poem'"),
        ({"query_type": ["open", "closed"]}, "expected a column `reference`"),
        (
            R3_ROWS | {"reference": ["sky", " "]},
            "expected a text in the column `reference`, got ' ' in row 1. Fill it in",
        ),
    ],
)
def test_r3_says_what_it_lacks(columns, message, r3):
    check_columns(r3, R3_ROWS, rows=[0, 1])
    check_columns(r3, {"query_type": ["open", "open"]}, rows=[0, 1])  # no route needs a reference
    with pytest.raises(ValueError, match=message):
        check_columns(r3, columns, rows=[0, 1])


def test_a_product_asks_its_factors_for_the_rows_of_their_routes():
    def needs(completions, answer, **columns):
        return []

    product = RoutedProduct((Route("open", (LengthIncentive(), RepetitionPenalty())), Route("closed", (needs,))))
    check_columns(product, {"query_type": ["open"]}, rows=[0])
    with pytest.raises(ValueError, match="'needs' reads the column `answer`"):
        check_columns(product, {"query_type": ["open", "closed"]}, rows=[0, 1])


def test_an_encoder_that_is_not_there_is_known_before_the_run():
    with pytest.raises(ValueError, match=r"encoder='nobody/no-such-encoder'.*hub can be reached"):
        check_columns(RelevanceReward("nobody/no-such-encoder"), {}, rows=[0])


@pytest.mark.parametrize("build", [ppo_trainer, raft_trainer, functools.partial(raft_trainer, cls=ReSTTrainer)])
def test_trainers_ask_when_they_are_built(build, tmp_path, r3):
    for reward, column in ((r3, "query_type"), (exact, "answer")):
        with pytest.raises(ValueError, match=rf"Trainer\(train_dataset=…\): .*{column}"):
            build(tmp_path, reward_funcs=[reward])


def test_held_out_rows_are_asked_too(tmp_path):
    bare, answered = Dataset.from_dict({"prompt": ["why?"] * 4}), {"answer": ["4"] * 16}
    with pytest.raises(ValueError, match=re.escape("PPOTrainer(eval_dataset['hard']=…): the reward 'exact'")):
        ppo_trainer(tmp_path, reward_funcs=exact, columns=answered, eval_dataset={"hard": bare})
    answered = {"answer": ["4"] * 8}
    with pytest.raises(ValueError, match=r"RAFTTrainer\(eval_dataset=…\): the reward 'exact'"):
        raft_trainer(tmp_path / "raft", reward_funcs=exact, columns=answered, eval_dataset=bare)
    raft = raft_trainer(tmp_path / "later", reward_funcs=exact, columns=answered)
    with pytest.raises(ValueError, match=r"RAFTTrainer.evaluate\(eval_dataset=…\): the reward 'exact'"):
        raft.evaluate(bare)


def test_columns_of_a_rollout_function_are_not_missed(tmp_path):
    ppo_trainer(tmp_path, reward_funcs=exact, rollout_func=lambda prompts, trainer: {}, prompts=PROMPTS)


def test_generate_asks_before_it_loads_a_model(tmp_path, capsys, r3):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "why?"}\n')
    reward = ["--reward", f"{__file__}:exact", "--model", str(tmp_path / "none")]
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "generate",
                "--prompts",
                str(tmp_path / "prompts.jsonl"),
                "--output",
                str(tmp_path / "o.parquet"),
                *reward,
            ]
        )
    assert stopped.value.code == 2
    assert "prompts.jsonl: the reward 'exact' reads the column `answer`" in capsys.readouterr().err


def test_a_question_that_no_message_asks_is_named_with_its_row():
    prompts = [[{"role": "user", "content": "Why?"}], [{"role": "system", "content": "Be brief."}]]
    rows = Dataset.from_dict({"prompt": prompts, "query_type": ["open", "open"]})
    with pytest.raises(
        ValueError, match=r"^PPOTrainer: row 1: last_user_text: expected .* got the roles \['system'\]"
    ):
        check_reward_columns([R3Reward()], rows, call="PPOTrainer")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["open", "OPEN"], r"no route for query type 'OPEN'.*column, row 1. It differs in case alone: dataset = "),
        (["open", None], r"no route for query type None; .*column, row 1\.$"),
        ([["open"], ["open"]], r"no route for query type \['open'\]; .*, row 0"),
    ],
)
def test_query_types_are_named_with_their_row(kinds, message):
    rows = Dataset.from_dict({"prompt": ["a", "b"], "query_type": kinds})
    with pytest.raises(ValueError, match=message) as raised:
        check_reward_columns([R3Reward()], rows, call="PPOTrainer")
    assert ("another labeler" in str(raised.value)) == (None in kinds)
    if "dataset = " in str(raised.value):
        names = {"dataset": rows}
        exec(str(raised.value).partition("alone: ")[2], names)
        assert names["dataset"]["query_type"][:] == ["open", "open"]


def learned():
    tokenizer = byte_tokenizer()
    return LearnedReward(tiny_reward_model(tokenizer), tokenizer)


PRODUCT = RoutedProduct((Route("open", (LengthIncentive(),)),))


@pytest.mark.parametrize(
    ("make", "call", "columns", "name", "got"),
    [
        (learned, "LearnedReward", {"prompts": ["a"]}, "prompts", "1"),
        (learned, "LearnedReward", {"prompts": "ab"}, "prompts", "text"),
        (learned, "LearnedReward", {"prompts": ["a", "b"], "completion_ids": [[1]]}, "completion_ids", "1"),
        (learned, "LearnedReward", {"prompts": ["a", "b"], "completion_ended": [True] * 3}, "completion_ended", "3"),
        (RelevanceReward, "RelevanceReward", {"prompts": ["a"]}, "prompts", "1"),
        (
            lambda: RelevanceReward(to="reference"),
            "RelevanceReward",
            {"prompts": ["a", "b"], "reference": ["c"]},
            "reference",
            "1",
        ),
        (lambda: PRODUCT, "RoutedProduct", {"query_type": ["open"]}, "query_type", "1"),
        (lambda: PRODUCT, "RoutedProduct", {"query_type": ["open"] * 2, "prompts": ["a"] * 3}, "prompts", "3"),
    ],
)
def test_one_value_for_each_completion(make, call, columns, name, got):
    with pytest.raises(ValueError, match=rf"{call}.*\({name}=…\): expected one for each of 2 completions, got {got}"):
        make()(completions=["x", "y"], **columns)


def test_columns_are_read_when_they_are_asked_for():
    dataset = Dataset.from_dict({"prompt": ["why?", "how?"], "completion": ["a", "b"], "answer": ["4", "5"]})
    columns = ReadColumns(dataset)
    assert list(columns) == ["answer", "prompts"] and "completion" not in columns and columns.get("prompt") is None
    assert not columns._read  # to know the names nothing is
    assert dict(columns) == {"answer": ["4", "5"], "prompts": ["why?", "how?"]}
    assert columns["answer"] is columns["answer"]
