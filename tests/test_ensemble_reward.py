"""Several rewards as one: by hand, on one scale, and who may be a member."""

import json
import math
import pickle
import warnings

import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig
from tiny import byte_tokenizer, reversed_tokenizer, tiny_llama, tiny_reward_model

from trl_ext import EnsembleReward, LearnedReward, SharedBase, add_margins
from trl_ext.rewards.ensemble_standard import Standard
from trl_ext.rewards.reward_callables import reward_functions
from trl_ext.rewards.reward_columns import check_columns, columns_named
from trl_ext.rewards.reward_fingerprints import reward_settings, same_reward

PROMPTS, TEXTS = ["why? "] * 4, ["a", "bb", "ccc", "dddd"]


def length(completions, **columns):  # 1, 2, 3, 4 over TEXTS: mean 2.5, deviation √1.25
    return [float(len(text)) for text in completions]


def shorter(completions, **columns):  # of another offset, scale and sign
    return [100 - 10 * float(len(text)) for text in completions]


def first(completions, **columns):  # 4, 1, 3, 0 over TEXTS
    return [float(7 * ord(text[0]) % 5) if text[0] != "?" else None for text in completions]


def judge(folder, seed: int, tokenizer=None, **options) -> LearnedReward:
    tokenizer = tokenizer or byte_tokenizer()
    tiny_reward_model(tokenizer, seed=seed).save_pretrained(folder / f"rm-{seed}")
    tokenizer.save_pretrained(folder / f"rm-{seed}")
    return LearnedReward(str(folder / f"rm-{seed}"), **options)


def ensemble(*members, combine="mean", **options) -> EnsembleReward:
    return EnsembleReward([*members], combine, **options).standardised_on(PROMPTS, TEXTS)


def recorded(reward: EnsembleReward) -> str:
    """What a run's record says of it."""
    return json.dumps(reward_settings(reward_functions(reward, max_completion_length=None, call="test")))


def called(reward, completions, **columns):
    return reward(prompts=["why? "] * len(completions), completions=completions, **columns)


D = math.sqrt(1.25)


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        # of a text of 5 letters: z = 2.5 / √1.25 by `length`, −2.5 / √1.25 by `shorter`
        ("mean", 0.0),
        ("min", -2.5 / D),
        ("mean_minus_variance", -0.5 * (2.5 / D) ** 2),  # 0 − ½ · mean of (±2.5 / √1.25)²
    ],
)
def test_by_hand(combine, expected):
    found = called(ensemble(length, shorter, combine=combine), ["eeeee"])
    assert found == pytest.approx([expected])


def test_the_standard_by_hand():
    standard = ensemble(length, shorter).standard
    assert standard.names == ("length", "shorter") and standard.count == 4
    assert standard.means == pytest.approx((2.5, 75.0)) and standard.deviations == pytest.approx((D, 10 * D))
    assert standard.mean_correlation == pytest.approx(-1.0) and "-1.00" in str(standard)


def test_offset_and_scale_of_a_member_change_nothing():
    def louder(completions, **columns):
        return [7 + 1000 * value for value in first(completions)]

    for combine in ("mean", "min", "mean_minus_variance"):
        one, other = (ensemble(length, member, combine=combine) for member in (first, louder))
        assert called(one, ["a", "zz", "k"]) == pytest.approx(called(other, ["a", "zz", "k"]))


def test_no_weight_of_variance_is_the_mean_and_a_larger_one_pays_less():
    texts = ["a", "zz", "kkkkk"]
    mean = called(ensemble(length, first), texts)
    found = [
        called(ensemble(length, first, combine="mean_minus_variance", variance_weight=weight), texts)
        for weight in (0.0, 0.1, 1.0)
    ]
    assert found[0] == mean
    assert all(a >= b >= c for a, b, c in zip(*found, strict=True)) and found[1] != found[2]
    assert all(
        low <= middle for low, middle in zip(called(ensemble(length, first, combine="min"), texts), mean, strict=True)
    )


def test_none_of_one_member_is_none_and_the_others_rows_stay():
    reward = ensemble(length, first)
    found, alone = called(reward, ["aa", "?", "b"]), called(reward, ["aa", "b"])
    assert found == [alone[0], None, alone[1]]
    assert called(reward, ["?"]) == [None]


def test_members_are_logged():
    logged = {}
    called(ensemble(length, shorter), ["a", "bb"], log_metric=logged.__setitem__)
    assert logged["ensemble/length"] == pytest.approx(-1 / D) and logged["ensemble/shorter"] == pytest.approx(1 / D)
    assert logged["ensemble/disagreement"] == pytest.approx(1 / D)  # of ±1.5/D and ±0.5/D


def test_members_of_one_name_are_told_apart():
    def other(completions, **columns):
        return [-(value**2) for value in length(completions)]

    other.__name__ = "length"
    assert ensemble(length, other).names == ("length_0", "length_1")


def test_reference_rows_without_a_score_are_left_out():
    reward = EnsembleReward([length, first]).standardised_on(PROMPTS, ["a", "?", "bbb", "cc"])
    assert reward.standard.count == 3 and reward.standard.means[0] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"members": [length]}, "at least 2 reward models or functions, got 1"),
        ({"members": length}, "at least 2 reward models"),
        ({"members": "a path"}, "at least 2 reward models"),
        ({"members": [length, 3]}, "3 is neither a function nor a reward model"),
        ({"members": [length, first], "combine": "median"}, "combine='median'"),
        ({"members": [length, first], "variance_weight": 0.5}, "only combine='mean_minus_variance'"),
        ({"members": [length, first], "combine": "mean_minus_variance", "variance_weight": -1}, "variance_weight=-1"),
        ({"members": [length, first], "standard": 3}, "expected that of its members"),
        (
            {"members": [length, first], "standard": Standard(("a", "b"), (0, 0), (1, 1), ((1, 0), (0, 1)), 2)},
            r"expected that of its members \['length', 'first'\], got \('a', 'b'\)",
        ),
    ],
)
def test_what_makes_no_ensemble_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        EnsembleReward(**arguments)


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_variance"])
def test_it_must_be_standardised(combine):
    reward = EnsembleReward([length, first], combine)
    for use in (lambda: called(reward, TEXTS), lambda: check_columns(reward, {}, [0])):
        with pytest.raises(ValueError, match="not standardised"):
            use()


def test_a_member_without_a_deviation_is_refused():
    def constant(completions, **columns):
        return [0.1] * len(completions)

    with pytest.raises(ValueError, match=r"member 'constant' scores all 4 completions 0\.1"):
        ensemble(length, constant)
    with pytest.raises(ValueError, match="at least 2 completions that all members score, got 1"):
        EnsembleReward([length, first]).standardised_on(["why? "] * 2, ["a", "?"])
    with pytest.raises(ValueError, match="one for each of 4 completions"):
        EnsembleReward([length, first]).standardised_on(["why? "], TEXTS)


def test_a_member_that_scores_nan_is_named():
    def broken(completions, **columns):
        return [math.nan if text == "x" else float(len(text)) ** 2 for text in completions]

    with pytest.raises(ValueError, match="'broken' returned nan for row 1"):
        called(ensemble(length, broken), ["a", "x"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"deviations": (1.0, 0.0)}, r"deviations=\(1.0, 0.0\)\): expected finite numbers of shape \(2,\)"),
        ({"means": (0.0,)}, "means"),
        ({"means": (0.0, math.nan)}, "means"),
        ({"means": ("a", "b")}, "means"),
        ({"correlations": ((1.0, 0.0),)}, r"correlations=.*shape \(2, 2\)"),
    ],
)
def test_a_standard_measures_each_member(changes, said):
    kept = {"names": ("a", "b"), "means": (0.0, 1.0), "deviations": (1.0, 2.0), "correlations": ((1, 0), (0, 1))}
    assert Standard(**kept, count=2).applied(np.array([[2.0, 5.0]])).tolist() == [[2.0, 2.0]]
    with pytest.raises(ValueError, match=f"Standard.{said}"):
        Standard(**(kept | changes), count=2)


def test_rounding_is_no_deviation():
    def nearly(completions, **columns):
        return [100 + 1e-5 * (len(text) % 2) for text in completions]

    with pytest.raises(ValueError, match="member 'nearly' scores all 4 completions 100"):
        ensemble(length, nearly)


def test_members_that_agree_about_everything_are_warned_of():
    def twice(completions, **columns):
        return [2 * value for value in length(completions)]

    with pytest.warns(UserWarning, match="'length' and 'twice' agree about everything"):
        ensemble(length, twice)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ensemble(length, first, shorter)


def test_columns_of_members_are_asked_for():
    def exact(completions, answer, **columns):
        return [float(text == own) for text, own in zip(completions, answer, strict=True)]

    reward = EnsembleReward([length, exact]).standardised_on(PROMPTS, TEXTS, answer=["a"] * 4)
    assert "answer" in columns_named(reward)
    with pytest.raises(ValueError, match="'exact' reads the column `answer`"):
        check_columns(reward, {"solution": ["a"]}, [0])


# Reward models


def test_reward_models_of_paths_pickle_and_are_saved(tmp_path):
    judge(tmp_path, 0), judge(tmp_path, 1)
    paths = [str(tmp_path / f"rm-{seed}") for seed in (0, 1)]
    reward = ensemble(*paths, combine="min")
    expected = called(reward, TEXTS)
    z = np.array([LearnedReward(path)(prompts=PROMPTS, completions=TEXTS) for path in paths]).T
    np.testing.assert_allclose(expected, ((z - z.mean(0)) / z.std(0)).min(1), atol=1e-5)
    assert called(pickle.loads(pickle.dumps(reward)), TEXTS) == expected
    reward.save(tmp_path / "ensemble.json")
    loaded = EnsembleReward.load(tmp_path / "ensemble.json")
    assert called(loaded, TEXTS) == expected and loaded.standard == reward.standard
    assert recorded(loaded) == recorded(reward)


def test_an_ensembles_file_is_of_its_members(tmp_path):
    judge(tmp_path, 0), judge(tmp_path, 1), judge(tmp_path, 2)
    zero, one, two = (str(tmp_path / f"rm-{seed}") for seed in (0, 1, 2))
    file = tmp_path / "ensemble.json"
    ensemble(zero, one, combine="mean_minus_variance", variance_weight=0.1).save(file)
    assert EnsembleReward.load(file, [LearnedReward(zero), one]).variance_weight == 0.1
    with pytest.raises(ValueError, match="member 1 has other settings or weights"):
        EnsembleReward.load(file, [zero, two])
    with pytest.raises(ValueError, match="there were 2"):
        EnsembleReward.load(file, [zero, one, two])
    ensemble(length, first).save(file)
    assert EnsembleReward.load(file, [length, first]).standard.names == ("length", "first")
    with pytest.raises(ValueError, match="member 0 was no path"):
        EnsembleReward.load(file)
    kept = json.loads(file.read_text())
    others = [{"combine": "min"}, [1], *(kept | {name: 3} for name in ("members", "made_of", "standard"))]
    others += [kept | {"standard": kept["standard"] | {name: 3}} for name in ("means", "deviations", "correlations")]
    others += [kept | {"standard": {}}, kept | {"standard": kept["standard"] | {"correlations": [3]}}]
    for text in ("{", *map(json.dumps, others)):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"EnsembleReward.load\('.*ensemble.json'\): "):
            EnsembleReward.load(file)
    with pytest.raises(ValueError, match="cannot be read"):
        EnsembleReward.load(tmp_path / "nowhere.json")


def test_a_runs_record_knows_members_and_standard(tmp_path):
    members = judge(tmp_path, 0), judge(tmp_path, 1)
    one = ensemble(*members)
    other = EnsembleReward(list(members)).standardised_on(PROMPTS, ["x", "yy", "z", "ww"])
    third = ensemble(members[0], judge(tmp_path, 2))
    records = [recorded(reward) for reward in (one, other, third, ensemble(*members))]
    assert len({*records[:3]}) == 3 and records[3] == records[0]


def test_different_tokenizers_do_not_matter_where_ends_are_known(tmp_path):
    """Each member reads the text anew; only the policy's ids cannot tell both whether it ended."""
    own, foreign = judge(tmp_path, 0), judge(tmp_path, 1, reversed_tokenizer(), eos_token_ids=7)
    reward = ensemble(own, foreign)
    ids = [[1], [5, 1], [5, 5, 1], [5, 5, 5, 1]]
    assert called(reward, TEXTS, completion_ended=[True] * 4, completion_ids=ids) == called(reward, TEXTS)
    assert called(reward, TEXTS[:1], completion_ids=[[5, 5]])  # ended by neither
    with pytest.raises(
        ValueError, match=r"completion 0 ends with the token 1, which 'rm-0' takes for its end and 'rm-1'"
    ):
        called(reward, TEXTS, completion_ids=ids)
    mended = ensemble(own, judge(tmp_path, 1, reversed_tokenizer(), eos_token_ids=1))
    assert called(mended, TEXTS, completion_ids=ids) == called(mended, TEXTS)


def test_roles_of_one_shared_base(tmp_path):
    from shared_case import base_path, lora

    base = SharedBase.from_pretrained(base_path(tmp_path))
    roles = [base.reward_model(lora(), seed=seed, name=f"reward-{seed}") for seed in (0, 1)]
    reward = ensemble(*roles)
    assert len(called(reward, TEXTS)) == 4 and reward.members == tuple(roles)


# In trainers


@pytest.mark.parametrize("trainer", ["PPO", "RAFT", "GRPO"])
def test_every_trainer_takes_it(tmp_path, trainer):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from trl_ext import PPOConfig, PPOTrainer, RAFTConfig, RAFTTrainer

    kinds = {"PPO": (PPOConfig, PPOTrainer), "RAFT": (RAFTConfig, RAFTTrainer), "GRPO": (GRPOConfig, GRPOTrainer)}
    config, kind = kinds[trainer]
    options = (
        {"drop_truncated": False, "num_stages": 1, "improve_steps": 1, "num_generations": 2}
        if trainer == "RAFT"
        else {"max_steps": 1}
    )
    options |= {"num_generations": 2} if trainer == "GRPO" else {}
    args = config(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=2, max_completion_length=4, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", logging_steps=1, gradient_checkpointing=False, **options,
    )  # fmt: skip
    members = [judge(tmp_path, 0), judge(tmp_path, 1)]
    data = Dataset.from_dict({"prompt": ["why? ", "say it ", "a ", "and "]})
    given = {"model": tiny_llama(byte_tokenizer()), "reward_funcs": ensemble(*members, combine="min"), "args": args}
    made = kind(**given, train_dataset=data, processing_class=byte_tokenizer())
    made.train()
    logged = {name for entry in made.state.log_history for name in entry}
    assert {"ensemble/rm-0", "ensemble/rm-1", "ensemble/disagreement"} <= logged


def test_the_value_model_may_not_be_a_member(tmp_path):
    from trl_ext.memory_planning.trainer_plan import reward_modules
    from trl_ext.ppo import PPOConfig
    from trl_ext.ppo.ppo_input import check_value_model

    members = [judge(tmp_path, 0), judge(tmp_path, 1)]
    reward = ensemble(*members)
    args = PPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="also one of reward_funcs"):
        check_value_model(members[1].module, [reward], args)
    check_value_model(judge(tmp_path, 2).module, [reward], args)
    assert reward_modules([length, reward, members[0]]) == members


def test_one_model_by_two_paths_is_one_member(tmp_path, monkeypatch):
    one = judge(tmp_path, 0)
    monkeypatch.chdir(tmp_path)
    for twice in (["rm-0", "./rm-0"], [str(tmp_path / "rm-0"), one]):
        with pytest.raises(ValueError, match="member 1 is the same as member 0, and adds nothing"):
            EnsembleReward(twice)
        with pytest.raises(ValueError, match="member 1 is the same as member 0, and adds nothing"):
            add_margins(Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}), twice)


def test_a_role_and_its_adapter_are_one_member(tmp_path):
    """PEFT keeps a random head beside an adapter's own, which no score comes from."""
    tiny_llama(byte_tokenizer()).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    base = SharedBase.from_pretrained(str(tmp_path / "base"))
    role = base.reward_model(LoraConfig(r=2, target_modules=["q_proj"]))
    role.module.save_pretrained(str(tmp_path / "rm"))
    for again in (base.reward_model(str(tmp_path / "rm")), LearnedReward(str(tmp_path / "rm"))):
        assert same_reward(role, again)
        with pytest.raises(ValueError, match="member 1 is the same as member 0"):
            EnsembleReward([role, again])
    assert not same_reward(role, base.reward_model(LoraConfig(r=2, target_modules=["q_proj"]), name="other", seed=1))
