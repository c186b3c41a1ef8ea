"""A column `chosen_probability`: by hand, in its limits, in a run."""

import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from test_imitation_reward_trainer import config, logged, pairs, trainer_of, weights
from torch import tensor
from torch.nn.functional import logsigmoid
from trl import RewardConfig

from trl_ext.reward_modeling.pair_loss import label_agreement, soft_label_term
from trl_ext.reward_modeling.preference_data import check_pairs

ONE_STEP = {"max_steps": 1, "per_device_train_batch_size": 8}


def soft(probabilities: list[float], data: Dataset | None = None) -> Dataset:
    data = pairs() if data is None else data
    repeated = (probabilities * len(data))[: len(data)]
    return data.add_column("chosen_probability", repeated)


def ranking_loss(lead, probability):
    return -logsigmoid(lead) + soft_label_term(lead, probability)


# -- the formula --------------------------------------------------------------------------------------------------


def test_by_hand():
    # σ(log 3) = 3/4: −[.9 log .75 + .1 log .25] = .9 · .28768 + .1 · 1.38629 = .39755
    loss = ranking_loss(tensor([math.log(3)]), tensor([0.9]))
    torch.testing.assert_close(loss, tensor([0.39755]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_it_is_the_cross_entropy_of_both_orders(p):
    lead = torch.linspace(-8, 8, 33, dtype=torch.float64)
    expected = -(p * logsigmoid(lead) + (1 - p) * logsigmoid(-lead))
    torch.testing.assert_close(ranking_loss(lead, tensor(p, dtype=torch.float64)), expected)


def test_certain_labels_add_exactly_nothing():
    assert soft_label_term(tensor([-300.0, 0.1, 7.0]), torch.ones(3)).tolist() == [0, 0, 0]


def test_a_pair_turned_round_has_the_same_loss():
    lead, margin, p = torch.randn(9), torch.randn(9), torch.rand(9)
    torch.testing.assert_close(ranking_loss(lead - margin, p), ranking_loss(-lead + margin, 1 - p))


@pytest.mark.parametrize("p", [0.9, 0.5, 0.1])
def test_gradient_at_no_lead(p):
    """σ(0) − p: it raises the likelier one, and neither where both are as likely."""
    lead = torch.zeros(1, requires_grad=True)
    ranking_loss(lead, tensor([p])).sum().backward()
    assert lead.grad.item() == pytest.approx(0.5 - p, abs=1e-7)


def test_least_where_the_odds_are_the_labels():
    lead = torch.full((1,), math.log(0.8 / 0.2), requires_grad=True)
    ranking_loss(lead, tensor([0.8])).sum().backward()
    assert lead.grad.item() == pytest.approx(0, abs=1e-7)


# -- in a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"kind": RewardConfig}, {"imitation_coef": 0.0}, {"imitation_coef": 0.3, "center_rewards_coefficient": 0.1}],
    ids=["plain config", "coefficient 0", "imitation and centring"],
)
def test_certain_labels_are_plain_pairs_bit_for_bit(tmp_path, tokenizer, changes):
    data = pairs().add_column("margin", [0.1 * i for i in range(8)])
    plain = trainer_of(tmp_path / "a", tokenizer, train_dataset=data, args=config(tmp_path / "a", **changes))
    ones = trainer_of(
        tmp_path / "b", tokenizer, train_dataset=soft([1.0], data), args=config(tmp_path / "b", **changes)
    )
    plain.train()
    ones.train()
    for name in ("loss", "accuracy", "grad_norm"):
        assert logged(plain, name) == logged(ones, name)
    assert all(torch.equal(weight, weights(ones)[name]) for name, weight in weights(plain).items())


def test_loss_of_a_step_by_hand(tmp_path, tokenizer):
    """Margin in both terms, centring as it was, and the NLL of each chosen completion times p."""
    p, margins = [1.0, 0.8, 0.5, 0.1], [0.2, -0.3, 0.0, 1.0]
    data = soft(p, pairs(4).add_column("margin", margins))
    args = config(tmp_path, imitation_coef=0.3, center_rewards_coefficient=0.5, max_steps=1)
    trainer = trainer_of(tmp_path, tokenizer, train_dataset=data, args=args)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        chosen, rejected = (
            trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].chunk(2)
        )
        z, p = chosen - rejected - tensor(margins), tensor(p)
        ranking = -(p * logsigmoid(z) + (1 - p) * logsigmoid(-z)).mean() + 0.5 * ((chosen + rejected) ** 2).mean()
        states = trainer.model.model(batch["input_ids"][:4]).last_hidden_state
        log_p = (states @ trainer.model.get_input_embeddings().weight.T).log_softmax(-1)
        nll = [
            -log_p[i, t - 1, batch["input_ids"][i, t]] * p[i]
            for i, row in enumerate(trainer.train_dataset)
            for t in range(row["num_prompt_tokens"], len(row["chosen_ids"]))
        ]
    trainer.train()
    imitation = torch.stack(nll).mean()
    assert logged(trainer, "ranking_loss")[0] == pytest.approx(ranking.item(), rel=1e-5)
    assert logged(trainer, "loss")[0] == pytest.approx((ranking + 0.3 * imitation).item(), rel=1e-5)


def test_accumulation_is_one_batch(tmp_path, tokenizer):
    step = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "imitation_coef": 1.0}
    data = soft([0.9, 0.3, 0.6])
    whole = trainer_of(
        tmp_path / "a", tokenizer, train_dataset=data, args=config(tmp_path, per_device_train_batch_size=8, **step)
    )
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    split = trainer_of(tmp_path / "b", tokenizer, train_dataset=data, args=config(tmp_path / "b", **parts, **step))
    whole.train()
    split.train()
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-6, rtol=1e-4)


def test_accuracy_goes_by_the_likelier_label():
    leads, labels = [1.0, 1.0, -1.0, 1.0, 0.0, 0.0], [0.9, 0.2, 0.0, 0.5, 0.7, 0.3]  # equal rewards rank neither
    agreed, counted = label_agreement(tensor(leads), tensor(labels))
    assert (agreed.item(), counted.item()) == (2, 5)


def test_accuracy_of_pairs_without_a_likelier_one_is_not_logged(tmp_path, tokenizer):
    trainer = trainer_of(tmp_path, tokenizer, train_dataset=soft([0.5]), args=config(tmp_path, **ONE_STEP))
    trainer.train()
    assert not logged(trainer, "accuracy") and logged(trainer, "margin")


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_it_learns_what_is_likely(tmp_path, tokenizer, coef):
    """Labels of 0.1 turn the preference round; those of 0.9 end near their odds, log 9 = 2.2, and not beyond."""
    leads = {}
    for p in (0.1, 0.9):
        args = config(tmp_path / str(p), max_steps=60, imitation_coef=coef, learning_rate=5e-3)
        trainer = trainer_of(tmp_path / str(p), tokenizer, train_dataset=soft([p]), args=args)
        trainer.train()
        leads[p] = sum(logged(trainer, "margin")[-5:]) / 5
        assert logged(trainer, "accuracy")[-1] == 1
    assert leads[0.1] == pytest.approx(-math.log(9), abs=0.8)
    assert leads[0.9] == pytest.approx(math.log(9), abs=0.8)


def test_held_out_pairs_may_be_soft_alone(tmp_path, tokenizer):
    args = config(tmp_path, max_steps=1, per_device_eval_batch_size=8)
    trainer = trainer_of(tmp_path, tokenizer, eval_dataset=soft([0.0]), args=args)
    plain = trainer.evaluate(pairs())
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(1 - plain["eval_accuracy"])


def test_a_stream_of_them(tmp_path, tokenizer):
    rows = soft([0.9, 0.2]).to_iterable_dataset()
    whole = trainer_of(tmp_path / "a", tokenizer, train_dataset=rows, args=config(tmp_path / "a", max_steps=2))
    whole.train()
    assert len(logged(whole, "loss")) == 2


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [1.1, -0.1, math.nan, "0.9", None, [0.5]])
def test_what_is_no_probability(bad):
    fine = [{"chosen": "a", "rejected": "b", "chosen_probability": 0.5}] if isinstance(bad, float | None) else []
    rows = Dataset.from_list([*fine, {"chosen": "a", "rejected": "b", "chosen_probability": bad}])
    with pytest.raises(
        ValueError, match=rf"the chosen_probability of row {len(fine)} of the eval dataset is .*from 0 to 1"
    ):
        check_pairs(rows, rows.column_names, "eval")


def test_one_in_a_stream():
    rows = [{"chosen": "a", "rejected": "b", "chosen_probability": p} for p in (0.5, 2.0)]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match=r"the chosen_probability of row 1 of the train dataset is 2\.0"):
        list(check_pairs(stream, list(rows[0]), "train"))
