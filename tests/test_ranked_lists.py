"""Ranked lists: all pairs of a list, each completion read once, and lists of two are pairs."""

import math
import re

import pytest
import torch
from datasets import Dataset
from test_imitation_reward_trainer import config, logged, pairs, trainer_of, weights
from tiny import tiny_reward_model
from torch import tensor
from torch.nn.functional import logsigmoid
from trl import RewardConfig

from trl_ext.reward_modeling import ranked_lists
from trl_ext.reward_modeling.pair_loss import list_weights, ranked_pairs, weighting_term

WORDS = ["bad", "poor", "fair", "good"]


def as_lists(data: Dataset) -> Dataset:
    """Pairs as lists of two, the better one first or second."""
    rows = [
        {"prompt": row["prompt"]}
        | (
            {"completions": [row["chosen"], row["rejected"]], "ranks": [1, 2]}
            if i % 2
            else {"completions": [row["rejected"], row["chosen"]], "ranks": [2, 1]}
        )
        for i, row in enumerate(data)
    ]
    return Dataset.from_list(rows)


def lists() -> Dataset:
    """Eight, of 2 to 4 completions, with ties."""
    kinds = [
        (["good " * 3, "fair", "bad " * 4], [1, 2, 3]),
        (["poor", "good"], [2, 1]),
        (["fair " * 2, "good", "good " * 5, "bad"], [2, 1, 1, 3]),
        (["bad", "good " * 2, "poor " * 3], [2, 1, 2]),
    ]
    rows = [{"prompt": f"item {i}: ", "completions": kinds[i % 4][0], "ranks": kinds[i % 4][1]} for i in range(8)]
    return Dataset.from_list(rows)


def list_trainer(folder, tokenizer, data=None, *, eval_dataset=None, model=None, **changes):
    args = config(folder, **changes)
    data = lists() if data is None else data
    return trainer_of(folder, tokenizer, model, args=args, train_dataset=data, eval_dataset=eval_dataset)


# -- the formulas -------------------------------------------------------------------------------------------------


def test_all_pairs_but_ties():
    better, worse = ranked_pairs(tensor([0, 1, 0, 1, 0]), tensor([1, 2, 2, 1, 2]))
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == [(0, 2), (0, 4), (3, 1)]


def test_weights_make_a_mean_over_lists():
    """Three pairs with losses 1, 2, 6 and one with 5: (3 + 5) / 2, where the plain mean is 3.5."""
    weights = list_weights(tensor([4, 4, 4, 9]))
    assert (weights * tensor([1.0, 2.0, 6.0, 5.0])).mean().item() == pytest.approx(4)


def test_weighting_by_hand():
    # l = log 2 + .5 · (1 + 1)² = 2.6931 of the first, log(1 + e⁻¹) + .5 · 1² = .8133 of the second
    added = weighting_term(tensor([1.0, 1.0]), tensor([1.0, 0.0]), tensor([1.5, 0.5]), 0.5)
    torch.testing.assert_close(added, tensor([1.34657, -0.40663]), atol=1e-4, rtol=0)
    assert weighting_term(tensor([1.0]), tensor([-9.0]), torch.ones(1), None).item() == 0


# -- in a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": RewardConfig},
        {"imitation_coef": 0.0, "center_rewards_coefficient": 0.1},
        {"imitation_coef": 0.3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    ],
    ids=["plain config", "centring", "imitation, accumulated"],
)
def test_lists_of_two_are_pairs_bit_for_bit(tmp_path, tokenizer, changes):
    plain = trainer_of(tmp_path / "a", tokenizer, args=config(tmp_path / "a", **changes))
    listed = list_trainer(tmp_path / "b", tokenizer, as_lists(pairs()), **changes)
    plain.train()
    listed.train()
    for name in ("loss", "grad_norm", "ranking_loss", "imitation_loss"):
        assert logged(plain, name) == logged(listed, name)
    for name in ("accuracy", "margin", "mean_reward", "min_reward"):
        assert logged(listed, name) == pytest.approx(logged(plain, name), abs=1e-6)
    assert all(torch.equal(weight, weights(listed)[name]) for name, weight in weights(plain).items())


def test_loss_by_hand_and_one_pass(tmp_path, tokenizer):
    """Each list's mean over its own pairs, of rewards that are read one completion at a time."""
    trainer = list_trainer(tmp_path, tokenizer, max_steps=1, per_device_train_batch_size=8, imitation_coef=0.0)
    read, losses, right, numbers = [], [], 0, 0
    for row in lists():
        with torch.no_grad():
            ids = [tokenizer(row["prompt"] + text + tokenizer.eos_token)["input_ids"] for text in row["completions"]]
            rewards = [trainer.model(tensor([one])).logits.item() for one in ids]
        ranked = list(zip(rewards, row["ranks"], strict=True))
        leads = [a - b for a, i in ranked for b, j in ranked if i < j]
        losses.append(-logsigmoid(tensor(leads)).mean().item())
        right, numbers = right + sum(lead > 0 for lead in leads), numbers + len(leads)
    handle = trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.train()
    handle.remove()
    assert read == [sum(len(row["ranks"]) for row in lists())]
    assert logged(trainer, "loss")[0] == pytest.approx(sum(losses) / 8, rel=1e-5)
    assert logged(trainer, "accuracy")[0] == pytest.approx(right / numbers)


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_a_run_leaves_its_pairs(tmp_path, tokenizer, coef):
    """For its report: of each list all pairs, the better one first, each with its own prompt."""
    data = lists().select(range(2))
    trainer = list_trainer(tmp_path, tokenizer, data, max_steps=1, per_device_train_batch_size=2, imitation_coef=coef)
    trainer.train()
    told = [(one["prompt"], one["completion"].removesuffix("<eos>").strip()) for one in trainer._last_samples()]
    compared = [(told[i], told[i + 1]) for i in range(0, len(told), 2)]
    expected = {
        (f"item {i}: ", better, worse)
        for i, pairs in enumerate(
            (
                [("good " * 3, "fair"), ("good " * 3, "bad " * 4), ("fair", "bad " * 4)],
                [("good", "poor")],
            )
        )
        for better, worse in pairs
    }
    if coef:  # else a prompt is what both begin with
        assert {prompt for prompt, _ in told} == {"item 0: ", "item 1: "}
    joined = {(prompt + better).strip() for prompt, better, _ in expected}
    assert {(prompt + text).strip() for (prompt, text), _ in compared} == joined and len(compared) == 4


def test_the_best_one_is_imitated(tmp_path, tokenizer):
    """Of a tie at the top the first."""
    trainer = list_trainer(tmp_path, tokenizer)
    ids, targets = trainer._chosen(trainer.data_collator(list(trainer.train_dataset)))
    texts = [tokenizer.decode(row[which]) for row, which in zip(ids, targets, strict=True)]
    assert texts[:4] == ["good " * 3 + "<eos>", "good<eos>", "good<eos>", "good " * 2 + "<eos>"]


def test_accumulation_is_one_batch(tmp_path, tokenizer):
    step = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "imitation_coef": 1.0}
    whole = list_trainer(tmp_path / "a", tokenizer, per_device_train_batch_size=8, **step)
    split = list_trainer(
        tmp_path / "b", tokenizer, per_device_train_batch_size=2, gradient_accumulation_steps=4, **step
    )
    whole.train()
    split.train()
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-6, rtol=1e-4)


def test_a_completion_that_is_too_long_takes_its_pairs_only(tmp_path, tokenizer):
    row = {"prompt": "a: ", "completions": ["good " * 20, "fair", "bad"], "ranks": [1, 2, 3]}
    alone = {"prompt": "b: ", "completions": ["good " * 20, "bad"], "ranks": [1, 2]}
    trainer = list_trainer(tmp_path, tokenizer, Dataset.from_list([row, alone]), max_length=30)
    assert [tokenizer.decode(ids) for ids in trainer.train_dataset["ranked_ids"][0]] == ["a: fair<eos>", "a: bad<eos>"]
    assert trainer.train_dataset["ranks"][:] == [[2, 3]]


def test_lists_are_put_together_again():
    """Best first, with the prompt of the best one, where a token may merge; what is left as ties only has no pair."""
    columns = {ranked_lists._LIST: [0, 0, 1, 1], ranked_lists._RANK: [2.0, 1.0, 2.0, 2.0]}
    columns |= {"chosen_ids": [[5, 6], [5, 7], [8], [9]], "num_prompt_tokens": [2, 1, 1, 1]}
    (row,) = ranked_lists.lists_again(Dataset.from_dict(columns), "train")
    assert row == {"ranked_ids": [[5, 7], [5, 6]], "ranks": [1, 2], "num_prompt_tokens": 1}


def test_equal_completions_are_read_once(tmp_path, tokenizer):
    row = {"prompt": "a: ", "completions": ["fair", "good", "fair", "bad"], "ranks": [3, 1, 2, 4]}
    with pytest.warns(UserWarning, match="reads 1 completions of the train dataset no second time"):
        trainer = list_trainer(tmp_path, tokenizer, Dataset.from_list([row]))
    assert trainer.train_dataset["ranks"][:] == [[1, 2, 4]]


def test_messages_and_other_columns(tmp_path, tokenizer):
    said = [{"role": "user", "content": "a"}]
    completions = [[{"role": "assistant", "content": word}] for word in WORDS]
    row = {"prompt": said, "completions": completions, "ranks": [4, 3, 2, 1], "source": "here", "list": 7}
    trainer = list_trainer(tmp_path, tokenizer, Dataset.from_list([row] * 2), max_steps=1)
    expected = tokenizer.apply_chat_template([*said, *completions[3]], return_dict=True)["input_ids"]
    assert trainer.train_dataset["ranked_ids"][0][0] == expected
    trainer.train()


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_it_learns_the_order(tmp_path, tokenizer, coef):
    """On prompts that it has not seen, evaluated as lists and as pairs."""
    rows = [
        {
            "prompt": f"{i}: ",
            "completions": [WORDS[(i + k) % 4] for k in range(4)],
            "ranks": [4 - (i + k) % 4 for k in range(4)],
        }
        for i in range(24)
    ]
    data, held_out = Dataset.from_list(rows[:16]), Dataset.from_list(rows[16:])
    trainer = list_trainer(
        tmp_path, tokenizer, data, eval_dataset=held_out, max_steps=40, imitation_coef=coef, learning_rate=5e-3
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] == 1 and after["eval_loss"] < 0.5 * before["eval_loss"]
    two = Dataset.from_list([{"prompt": "a: ", "chosen": "good", "rejected": "poor"}])
    assert trainer.evaluate(two)["eval_accuracy"] == 1


def test_resuming_is_bit_equal(tmp_path, tokenizer):
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 3}
    whole, stopped = (list_trainer(tmp_path / name, tokenizer, **steps) for name in ("whole", "stopped"))
    whole.train()
    stopped.train()
    again = list_trainer(tmp_path / "stopped", tokenizer, **steps)
    again.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(again).items())
    other = list_trainer(tmp_path / "stopped", tokenizer, lists().select(range(7)), **steps)
    with pytest.raises(ValueError, match="train_dataset"):
        other.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))


def test_the_plan_counts_the_longest_list(tmp_path, tokenizer):
    listed = list_trainer(tmp_path, tokenizer, per_device_train_batch_size=4)._memory_plan()
    as_pairs = trainer_of(tmp_path, tokenizer, args=config(tmp_path, per_device_train_batch_size=8))._memory_plan()
    assert listed.peak == as_pairs.peak


def test_a_loss_that_is_not_finite_names_the_list(tmp_path, tokenizer):
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
    bad = tokenizer("!")["input_ids"][0]
    data = Dataset.from_list([*list(lists())[:3], {"prompt": "x", "completions": ["!", "b", "c"], "ranks": [1, 2, 3]}])
    trainer = list_trainer(tmp_path, tokenizer, data, model=model, imitation_coef=0.0)
    model.get_input_embeddings().register_forward_hook(
        lambda _, args, out: out.masked_fill((args[0] == bad).unsqueeze(-1), math.nan)
    )
    with pytest.raises(FloatingPointError, match="x!"):
        trainer.train()


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": [1, 1]}, "row 1 of the train dataset has the ranks [1, 1], which are ties only"),
        ({"ranks": [0, 1]}, "row 1 of the train dataset has the ranks [0, 1]: expected finite numbers from 1"),
        ({"ranks": [1, None]}, "row 1 of the train dataset has the ranks [1, None]"),
        ({"ranks": [1, 2, 3]}, "row 1 of the train dataset: expected 'ranks' to be a list of 2 numbers"),
        ({"ranks": None}, "expected 'ranks' to be a list of 2 numbers, got None"),
        ({"completions": ["a"], "ranks": [1]}, "expected 'completions' to be a list of 2 or more, got ['a']"),
        ({"completions": ["a", None]}, "row 1 of the train dataset, completion 1: 'chosen' is None"),
        ({"completions": ["a", ""]}, "row 1 of the train dataset, completion 1, has no completion"),
    ],
)
def test_what_is_no_list(tmp_path, tokenizer, changes, message):
    fine = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}
    with pytest.raises(ValueError, match=re.escape(message)):
        list_trainer(tmp_path, tokenizer, Dataset.from_list([fine, fine | changes]))


@pytest.mark.parametrize("ranks", [["1", "2"], [1.0, math.nan], [True, False]])
def test_what_are_no_ranks(tmp_path, tokenizer, ranks):
    rows = Dataset.from_list([{"prompt": "p", "completions": ["a", "b"], "ranks": ranks}])
    with pytest.raises(ValueError, match=r"row 0 of the train dataset has the ranks .*expected finite numbers from 1"):
        list_trainer(tmp_path, tokenizer, rows)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "a column 'chosen', which is of pairs"),
        ({"margin": 1.0}, "a column 'margin', which is of pairs"),
        ({"chosen_probability": 1.0}, "a column 'chosen_probability', which is of pairs"),
        ({"prompt": None}, "no column 'prompt'"),
    ],
)
def test_lists_that_are_pairs_too(tmp_path, tokenizer, columns, message):
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]} | columns
    row = {name: value for name, value in row.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        list_trainer(tmp_path, tokenizer, Dataset.from_list([row]))


def test_ranks_beside_pairs_are_not_read(tmp_path, tokenizer):
    """Nor are completions without ranks."""
    for name, values in (("ranks", [[1, 2]] * 8), ("completions", [["a", "b"]] * 8)):
        trainer = trainer_of(tmp_path, tokenizer, train_dataset=pairs().add_column(name, values))
        assert "ranked_ids" not in trainer.train_dataset.column_names and len(trainer.train_dataset) == 8


def test_a_stream_of_lists(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"is a stream of ranked lists: expected a datasets\.Dataset"):
        list_trainer(tmp_path, tokenizer, lists().to_iterable_dataset())


def test_no_list_is_left(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="no pair of the train dataset is left to learn from"):
        list_trainer(tmp_path, tokenizer, max_length=5)
