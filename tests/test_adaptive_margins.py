"""Margins of an ensemble."""

import math

import pytest
from datasets import Dataset
from test_imitation_reward_trainer import config, logged, pairs, trainer_of
from tiny import tiny_reward_model

from trl_ext import LearnedReward, add_margins


def length(completions, **_):
    return [float(len(text)) for text in completions]


def good(completions, weight=None, **_):
    return [4.0 * text.count("good") for text in completions]


PAIRS = Dataset.from_list(
    [
        {"prompt": "a", "chosen": " good", "rejected": " bad", "source": "x"},
        {"prompt": "b", "chosen": " no", "rejected": " so good", "source": "y"},
    ]
)


def test_by_hand(capsys):
    rows = add_margins(PAIRS, [length, good])
    assert rows["margin"][:] == [(1 + 4) / 2, (-5 - 4) / 2]
    assert rows.remove_columns("margin")[:] == PAIRS[:]
    assert "add_margins: 2 margins of 2 rewards, mean -1, 50% negative" in capsys.readouterr().out


def test_in_deviations():
    """Whose unit is whatever it likes: differences 1, −5 deviate by 3, and 4, −4 by 4."""
    own = add_margins(PAIRS, [length, good], standardize=True)["margin"][:]
    assert own == pytest.approx([(1 / 3 + 1) / 2, (-5 / 3 - 1) / 2])
    scaled = add_margins(
        PAIRS, [lambda completions, **_: [1e3 * x for x in length(completions)], good], standardize=True
    )
    assert scaled["margin"][:] == pytest.approx(own)


def test_columns_reach_the_members():
    def named(completions, source, **_):
        return [float(where == "y") for where in source]

    assert add_margins(PAIRS, [length, named])["margin"][:] == [0.5, -2.5]
    with pytest.raises(ValueError, match="add_margins: the reward 'named' reads the column `source`"):
        add_margins(PAIRS.remove_columns("source"), [length, named])


def test_reward_models_and_what_learns_from_them(tmp_path, tokenizer):
    """û of reward models is the difference of what they say, and TRL's loss has it."""
    models = [LearnedReward(tiny_reward_model(tokenizer, seed=seed), tokenizer) for seed in range(2)]
    rows = add_margins(pairs(), models)
    first = pairs()[0]
    said = [model(prompts=[first["prompt"]] * 2, completions=[first["chosen"], first["rejected"]]) for model in models]
    assert rows["margin"][0] == pytest.approx(sum(a - b for a, b in said) / 2, abs=1e-5)
    losses = []
    for data in (pairs(), rows):
        args = config(tmp_path / str(len(losses)), max_steps=1, per_device_train_batch_size=8)
        trainer = trainer_of(tmp_path / str(len(losses)), tokenizer, train_dataset=data, args=args)
        trainer.train()
        losses.append(logged(trainer, "ranking_loss")[0])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("with_prompt", [False, True])
def test_messages(with_prompt):
    said = [{"role": "user", "content": "a"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
    row = dict(zip(("chosen", "rejected"), answers if with_prompt else [said + one for one in answers], strict=True))
    row |= {"prompt": said} if with_prompt else {}
    seen = []

    def look(prompts, completions, **_):
        seen.append((prompts, completions))
        return [0.0] * len(prompts)

    add_margins(Dataset.from_list([row]), [look, lambda completions, **_: [1.0, 0.0]])
    assert seen == [([said] * 2, answers)]


@pytest.mark.parametrize("rewards", [[], [length], length])
def test_too_few_members(rewards):
    with pytest.raises(ValueError, match=r"add_margins\(rewards=…\): expected 2 members or more"):
        add_margins(PAIRS, rewards)


def test_bad_input():
    with pytest.raises(ValueError, match="member 1 is the same as member 0"):
        add_margins(PAIRS, [length, length])
    with pytest.raises(ValueError, match="'<lambda>' gives the rejected completion of row 1 no score"):
        add_margins(PAIRS, [length, lambda completions, **_: [1.0, 1.0, 1.0, None]])
    with pytest.raises(ValueError, match="returned nan for row 0"):
        add_margins(PAIRS, [length, lambda completions, **_: [math.nan] * 4])
    with pytest.raises(ValueError, match="without 'margin'"):
        add_margins(PAIRS.add_column("margin", [0.0, 1.0]), [length, good])
    for given in (Dataset.from_dict({"prompt": ["a"]}), PAIRS.to_list(), PAIRS.select([]), "pairs.jsonl"):
        with pytest.raises(
            ValueError, match=r"^add_margins: expected a datasets\.Dataset of at least one row with the"
        ):
            add_margins(given, [length, good])
    with pytest.raises(ValueError, match="the differences of '<lambda>' are all alike"):
        add_margins(PAIRS, [length, lambda completions, **_: [0.0] * 4], standardize=True)


def test_what_is_said_of_a_row_names_the_call():
    pairs = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"], "chosen_probability": [2.0]})
    with pytest.raises(ValueError, match=r"^add_margins: the chosen_probability of row 0 of the given dataset is 2.0"):
        add_margins(pairs, [length, good])
    with pytest.raises(ValueError, match=r"^add_margins: row 0 of the given dataset"):
        add_margins(Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": [None]}), [length, good])
