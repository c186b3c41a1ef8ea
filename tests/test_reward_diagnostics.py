"""The callback in runs of PPO, RAFT, ReST, and TRL's GRPO and RLOO."""

import json
import re
from pathlib import Path

import pytest
import torch
from diagnostics_case import KINDS, PRODUCT, looks_logged, make, nearness, vowels, watched
from tiny import byte_tokenizer, tiny_reward_model
from two_processes import run_in_two

import trl_ext
from trl_ext.diagnostics import RewardDiagnostics, diagnose, proxy_against_gold

IN_EACH = {"copied", "repetition", "no_eos", "proxy", "gold", "proxy_error", "gold_error", "gold_within", "length"}


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_each_trainer_logs_and_learns_the_same(kind, tmp_path, capsys):
    trainer, callback = watched(kind, tmp_path / "watched")
    logged = looks_logged(trainer)
    assert len(logged) == len(callback.diagnosis.history) == (3 if kind in ("raft", "rest") else 4)
    names = {name.removeprefix("diagnostics/") for entry in logged for name in entry}
    factors = {"factor_share/length_incentive", "factor_share/vowels", "correlation/RoutedProduct/vowels"}
    assert names >= IN_EACH | factors | {"gold_spearman"}
    assert proxy_against_gold(trainer.state.log_history).steps == [entry["step"] for entry in logged]
    last = callback.diagnosis.last
    assert logged[-1]["diagnostics/proxy"] == pytest.approx(sum(last.scores) / len(last.scores))
    assert (tmp_path / "watched" / "diagnostics.png").read_bytes()[:4] == b"\x89PNG"

    alone = make(kind, tmp_path / "alone")
    alone.train()
    assert torch.equal(weights(trainer), weights(alone))


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
def test_the_score_is_what_training_learns_from(kind, tmp_path):
    trainer, callback = watched(kind, tmp_path, reward_weights=[0.5, 2.0])
    last = callback.diagnosis.last
    product, count = last.factors["RoutedProduct"], last.factors["vowels"]
    penalty = 0.25 if kind == "ppo" else 0.0
    expected = [0.5 * a + 2 * b - penalty * (not end) for a, b, end in zip(product, count, last.ended, strict=True)]
    assert list(last.scores) == pytest.approx(expected)
    of_factors = zip(last.factors["length_incentive"], last.factors["repetition_penalty"], strict=True)
    assert list(product) == pytest.approx([a * b for a, b in of_factors])
    if kind == "ppo":
        assert looks_logged(trainer)[-1]["diagnostics/proxy"] == pytest.approx(looks_logged(trainer)[-1]["score"])


def test_a_grow_is_seen_as_diagnose_sees_its_file(tmp_path):
    trainer, callback = watched("raft", tmp_path)
    options = {"reward": PRODUCT, "gold": nearness, "dataset": trainer.grower.dataset}
    last = diagnose(sorted(tmp_path.glob("grow-*.parquet")), **options)
    assert callback.diagnosis.measures == pytest.approx(last.measures)
    with pytest.raises(ValueError, match="numbers of its 1 rows"):
        diagnose(sorted(tmp_path.glob("grow-*.parquet")), **options | {"dataset": trainer.grower.dataset.select([0])})


def test_every_other_batch_and_the_table(tmp_path, capsys):
    trainer = make("grpo", tmp_path)
    callback = RewardDiagnostics(trainer, every=2)
    trainer.add_callback(callback)
    trainer.train()
    assert [entry["step"] for entry in callback.diagnosis.history] == [0, 2]
    told = capsys.readouterr().out
    assert "what the reward pays for" in told and "copied" in told


@pytest.mark.parametrize("kind", ["ppo", "raft"])
def test_a_resumed_run_goes_on_with_what_it_has_seen(kind, tmp_path):
    whole, seen = watched(kind, tmp_path, save_strategy="steps", save_steps=2)
    kept = json.loads((tmp_path / "_trl_ext_diagnostics.json").read_text())
    assert kept == seen.diagnosis.changes.as_json() and len(kept) > 2
    for checkpoint in sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[1:]:
        for file in sorted(checkpoint.rglob("*"), reverse=True):
            file.unlink()
        checkpoint.rmdir()
    resumed, again = watched(kind, tmp_path, save_strategy="steps", save_steps=2, resume=True)
    one, other = (
        {name: value for name, value in looks_logged(each)[-1].items() if name.startswith("diagnostics/")}
        for each in (resumed, whole)
    )
    assert one == pytest.approx(other)
    first = {row["key"]: row["first"] for row in kept}
    assert {row["key"]: row["first"] for row in again.diagnosis.changes.as_json()} == first


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_looked_at_together(kind, tmp_path):
    done = run_in_two(Path(__file__).parent / "diagnostics_case.py", kind, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / "said.json").read_text())
    assert len(said["logged"]) == (3 if kind in ("raft", "rest") else 4)
    assert said["counts"] == ([32, 32] if kind in ("raft", "rest") else [8, 8])  # of both


# Bad input


def nothing(completions, **columns):
    return [None] * len(completions)


@pytest.mark.parametrize("kind", ["grpo", "raft"])
def test_gold_that_never_applies_stops_at_the_first_look(kind, tmp_path):
    with pytest.raises(
        ValueError, match=r"RewardDiagnostics\(gold=…\): the gold reward gave None for all \d+ completions"
    ):
        watched(kind, tmp_path, gold=nothing)


def test_gold_that_applies_at_first_only_is_warned_of_once(tmp_path):
    calls = []

    def fades(completions, **columns):
        calls.append(1)
        return [1.0 if len(calls) == 1 else None for _ in completions]

    with pytest.warns(UserWarning, match="which is left out. Said once") as caught:
        trainer, _ = watched("grpo", tmp_path, gold=fades)
    assert sum("left out. Said once" in str(w.message) for w in caught) == 1
    assert sum("diagnostics/gold" in entry for entry in looks_logged(trainer)) == 1


def test_gold_that_is_paid_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one that training is paid by.*weight of 0"):
        RewardDiagnostics(make("ppo", tmp_path), gold=vowels)
    RewardDiagnostics(make("ppo", tmp_path / "watched", reward_weights=[1.0, 0.0]), gold=vowels)


def test_gold_that_gives_the_same_scores_is_said(tmp_path):
    def same(completions, **columns):
        return vowels(completions)

    with pytest.warns(UserWarning, match="gives what training is paid by"):
        watched("grpo", tmp_path, gold=same, rewards=(vowels,))


def test_gold_that_lacks_a_column_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"RewardDiagnostics\(gold=…\): the reward 'judge' reads the column `right`"):

        def judge(completions, right): ...

        RewardDiagnostics(make("raft", tmp_path), gold=judge)


def test_another_trainer_is_refused(tmp_path):
    from checkpoint_case import make as make_other

    with pytest.raises(ValueError, match=r"RewardDiagnostics\(ImitationRewardTrainer\): expected a trainer that pays"):
        RewardDiagnostics(make_other("reward", tmp_path / "reward"))
    one, other = make("grpo", tmp_path / "one"), make("grpo", tmp_path / "other")
    other.add_callback(RewardDiagnostics(one))
    with pytest.raises(ValueError, match="added to another trainer"):
        other.train()
    for _ in range(2):
        one.add_callback(RewardDiagnostics(one))
    with pytest.raises(ValueError, match="has another one already"):
        one.train()
    with pytest.raises(ValueError, match=r"RewardDiagnostics\(every=0\)"):
        RewardDiagnostics(one, every=0)


def test_a_reward_model_is_gold(tmp_path):
    tiny_reward_model(byte_tokenizer()).save_pretrained(tmp_path / "judge")
    byte_tokenizer().save_pretrained(tmp_path / "judge")
    trainer, _ = watched("ppo", tmp_path / "run", gold=str(tmp_path / "judge"))
    assert "diagnostics/gold" in looks_logged(trainer)[-1]


def test_the_rooms_page_as_printed(tmp_path, monkeypatch, capsys):
    page = (Path(trl_ext.__file__).parent / "diagnostics" / "README.md").read_text()
    watch, look = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if ">>>" not in block)
    names = {"trainer": make("rloo", tmp_path / "rloo"), "judge": nearness}
    exec(watch, names)
    assert proxy_against_gold(names["trainer"].state.log_history).steps == [1, 2, 3, 4]
    monkeypatch.chdir(tmp_path)
    grown = make("raft", tmp_path / "run", num_stages=4)
    grown.train()
    exec(look, {"reward": PRODUCT, "prompts": grown.grower.dataset})
    assert "factor_share/length_incentive" in capsys.readouterr().out
