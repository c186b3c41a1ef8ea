"""The demo's chain at the smallest scale, and what it measures."""

import json
from statistics import mean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import byte_tokenizer, tiny_reward_model

from trl_ext.cli import main
from trl_ext.demo import curves, evaluation, stages
from trl_ext.demo.answers import sample_questions
from trl_ext.demo.conclusions import CLOSED, KL, R3, WORDS, conclusions
from trl_ext.demo.world import ASSETS, load_world
from trl_ext.sequences.texts import wordpunct
from trl_ext.trainer_kit.run_log import LOG

TINY = stages.Scale(sft_rows=64, pairs=64, rollouts=2, batch=8, stages=2, stage_batch=8, held_out=16)


@pytest.mark.slow
def test_the_chain_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "QUICK", TINY)
    monkeypatch.chdir(tmp_path)
    main(["demo", "--quick", "--output-dir", "out", "--seed", "3"])
    printed = capsys.readouterr().out
    for text in (
        "SFT:",
        "reward model:",
        "PPO, R³",
        "RAFT, R³",
        "ReST, R³",
        "Held-out questions",
        "What to conclude",
        "before",
        "control",
        "curves.png",
        "report.html",
    ):
        assert text in printed
    assert "{'loss'" not in printed  # one line per stage, not Trainer's logs
    out = tmp_path / "out"
    measures = json.loads((out / "measures.json").read_text())
    assert set(measures) == {"before", "PPO", "RAFT", "ReST", "control"}
    assert (
        measures["before"]["KL to SFT per answer (nats)"] == 0.0 < abs(measures["PPO"]["KL to SFT per answer (nats)"])
    )
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    html = (out / "report.html").read_text()
    assert "ppo beside raft beside rest beside control" in html and "Of the three " in html
    assert html.index("What to conclude") < html.index("Curves")
    assert len((out / "answers.jsonl").read_text().splitlines()) == TINY.held_out
    for folder in ("sft", "reward", "reward_without_imitation", "ppo", "raft", "rest", "control"):
        assert (out / folder / "model.safetensors").is_file()


def figures(before: float, after: float, *, spread: float, questions: int = 100):
    """Means and scores of R³, of a run that moves each question by as much, give or take."""
    noise = np.tile([-spread, spread], questions // 2)
    return np.full(questions, before), np.full(questions, after) + noise


def concluded(ppo=0.5, control=0.2, *, spread=0.1, words=40.0) -> list[str]:
    ends = {"PPO": ppo, "RAFT": 0.4, "ReST": 0.3, "control": control}
    before, _ = figures(0.3, 0.3, spread=spread)
    scores = {"before": {R3: before, CLOSED: before}}
    scores |= {run: dict.fromkeys((R3, CLOSED), figures(0.3, end, spread=spread)[1]) for run, end in ends.items()}
    measured = {run: {R3: end, CLOSED: end, KL: 2.0, WORDS: words} for run, end in ends.items()}
    measured["before"] = {R3: 0.3, CLOSED: 0.3, KL: 0.0, WORDS: 9.0}
    return conclusions(measured, scores, dict.fromkeys(ends, 1234))


def test_conclusions_follow_from_the_numbers():
    said = concluded()
    assert said[0].startswith("PPO raised R³") and "from 0.300 to 0.500 (+0.200 ± 0.010)" in said[0]
    assert said[2].startswith("ReST did not resolvably change R³")
    assert "PPO has the highest R³, 0.100 ± 0.000 above RAFT, which is resolved" in said[3]
    assert (
        "went from 9.0 to 40.0 words" in said[4] and "it lowered the share" in said[4] and "is got around" in said[4]
    )
    assert "PPO sampled 1,234 answers and moved by 2.0 nats per answer, 0.100 of R³ per nat" in said[5]


def test_other_numbers_are_concluded_otherwise():
    worse = concluded(ppo=0.1)
    assert worse[0].startswith("PPO lowered R³") and "Of the three RAFT has the highest" in worse[3]
    assert "was not got around measurably" in concluded(control=0.5)[4]
    assert "was not got around measurably" in concluded(words=8.0)[4]
    assert concluded(spread=2.0)[0].startswith("PPO did not resolvably change R³")


def test_curves_are_of_all_runs_over_what_they_sampled(tmp_path):
    """RAFT's by its Grows, of which the second is sampled after the first; KL by its ends."""
    begin = {"kind": "begin", "time": 0.0, "step": 0}
    for run, names in (("ppo", ("score", "kl_per_completion")), ("raft", ("grow/score",))):
        (tmp_path / run).mkdir()
        logs = [{"kind": "log", "time": 0.0, "step": n} | dict.fromkeys(names, float(n)) for n in range(2)]
        (tmp_path / run / LOG).write_text("".join(json.dumps(line) + "\n" for line in [begin, *logs]))
    for stage in range(2):
        columns = {"reward/R3Reward": [0.0, float(stage)], "reward/closed_right": [None, float(stage)]}
        pq.write_table(pa.table(columns), tmp_path / "raft" / f"grow-00{stage}.parquet")
    found = curves.curves({"PPO": tmp_path / "ppo", "RAFT": tmp_path / "raft"}, TINY)
    assert found["PPO"]["score that each run was paid"] == ([0, 8], [0.0, 1.0])
    assert found["RAFT"]["score that each run was paid"] == ([0, 64], [0.0, 1.0])
    assert found["RAFT"]["R³ (watched in the control)"] == ([0, 64], [0.0, 0.5])
    assert found["RAFT"]["closed questions answered right"][1][1] == 1.0
    sampled = curves.sampled_answers(TINY)
    assert sampled == {"PPO": 16, "RAFT": 128, "ReST": 128, "control": 16}
    ends = curves.with_ends(found, {"PPO": 9.0, "RAFT": 2.0}, sampled)
    assert ends["RAFT"][KL] == ([0, 128], [0.0, 2.0]) and ends["PPO"][KL] == ([0, 8], [0.0, 1.0])


@pytest.fixture
def begun(monkeypatch):
    """A demo that ends with its first stage, which leaves a model."""

    def supervised(world, folder, scale, *, seed):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(f"{scale.sft_rows} rows, seed {seed}")
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "supervised", supervised)


def demo(*options, folder):
    with pytest.raises(SystemExit, match="130"):
        main(["demo", "--output-dir", str(folder), *options])


def refused(capsys, message, *options, folder):
    before = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as raised:
        main(["demo", "--output-dir", str(folder), *options])
    assert raised.value.code == 2 and message in capsys.readouterr().err
    assert {path: path.read_text() for path in folder.rglob("*") if path.is_file()} == before


def test_only_the_same_demo_begins_anew_in_a_used_folder(begun, tmp_path, capsys):
    demo(folder=tmp_path)
    refused(capsys, "sft_rows: 1600 then, 800 now", "--quick", folder=tmp_path)
    refused(
        capsys,
        "holds what another run has written (seed: 0 then, 1 now). Give another",
        "--seed",
        "1",
        folder=tmp_path,
    )
    demo(folder=tmp_path)


@pytest.mark.parametrize("name", ["sft", "reward", "reward_without_imitation", "ppo", "control", "raft", "rest"])
def test_a_demo_writes_over_nobodys_models(begun, tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").write_text("mine")
    refused(capsys, f"holds '{name}', which this run did not write and would write over", folder=tmp_path)


def test_a_demo_beside_other_files(begun, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    demo("--quick", folder=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "measures.json").write_text("mine")
    refused(capsys, "holds 'measures.json'", folder=tmp_path / "own")


def test_measures_of_a_policy_beside_itself(tmp_path):
    tokenizer = byte_tokenizer()
    for part in (tokenizer, tiny_reward_model(tokenizer)):
        part.save_pretrained(tmp_path / "judge")
    questions = sample_questions(load_world(), held_out=True, count=6, seed=0)
    looked = evaluation.look(ASSETS / "policy", ASSETS / "policy", questions, tmp_path / "judge", seed=0)
    found, texts = evaluation.measures(looked, questions, tmp_path / "judge"), looked.samples["completion"][:]
    assert found["KL to SFT per answer (nats)"] == 0.0 and len(texts) == 6
    columns = {name: [row[name] for row in questions] for name in ("query_type", "reference")}
    scores = stages.r3()(prompts=[row["prompt"] for row in questions], completions=texts, **columns)
    assert found["R³"] == pytest.approx(mean(scores))
    words = [len(wordpunct(text)) for text, row in zip(texts, questions, strict=True) if row["query_type"] == "open"]
    assert found["words per open answer"] == mean(words)


def test_closed_right_grades_closed_questions_only():
    scores = stages.closed_right(
        completions=[" Mia's cat is black.", " Mia's cat is white.", " Mia has a cat."],
        attribute=["pet.color", "pet.color", None],
        answer=["black", "black", None],
    )
    assert scores == [1.0, 0.0, None]


def test_control_ignores_what_was_asked():
    completions, columns = ["a b c d"] * 2, {"prompts": ["x", "y"], "query_type": ["open", "closed"]}
    assert stages.control()(completions=completions, **columns) == [0.04, 0.04]


def test_curves_are_drawn_only_with_matplotlib(tmp_path, monkeypatch):
    from trl_ext.demo import report

    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert report.draw_curves(tmp_path / "curves.png", {}) is None
