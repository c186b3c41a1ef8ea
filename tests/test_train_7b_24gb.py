"""The recipe `train_7b_24gb.py`: every stage for real on a tiny 8-bit base, reuse, refusal, and bad input."""

import json
import re
from pathlib import Path

import pytest
import train_7b_24gb
import train_7b_stages
from datasets import Dataset
from shared_case import base_path
from tiny import byte_tokenizer
from train_7b_data import fitting_prompts, load_rows

from trl_ext import memory_plan

QUICK = {
    "--batch": 4,
    "--prompt-length": 16,
    "--completion-length": 8,
    "--rollouts": 2,
    "--epochs": 1,
    "--stages": 1,
    "--stage-prompts": 4,
    "--samples": 2,
    "--rank": 2,
    "--sft-learning-rate": 1e-3,
}
LEARNS_TO_END = {"--sft-epochs": 30, "--sft-learning-rate": 3e-2, "--rank": 4}  # or RAFT would keep nothing


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    """Options with a tiny model and tiny files; some prompts are too long."""
    folder = tmp_path_factory.mktemp("recipe")
    prompts = [{"prompt": f"tell {i}", "other": i} for i in range(8)] + [{"prompt": "too long " * 9}]
    return QUICK | {
        "--model": base_path(folder),
        "--sft-data": json_lines(folder / "sft.jsonl", [{"prompt": f"{i}?", "completion": " ok"} for i in range(8)]),
        "--pairs": json_lines(
            folder / "pairs.jsonl", [{"prompt": f"{i}?", "chosen": " ok", "rejected": " no, no"} for i in range(9)]
        ),
        "--prompts": json_lines(folder / "prompts.jsonl", prompts),
        "--output-dir": folder / "out",
    }


def words(settings: dict, *others) -> list[str]:
    return [str(word) for word in (*(word for pair in settings.items() for word in pair), *others)]


@pytest.mark.slow
def test_every_stage_in_8_bit_and_then_raft_on_the_finished_ones(settings, capsys):
    settings = settings | LEARNS_TO_END
    row = train_7b_24gb.main(words(settings))
    printed = capsys.readouterr().out
    out = settings["--output-dir"]
    assert "prompts: 9, of which 1 are longer than 16 tokens" in printed
    assert "pairs: 9, of which 0 are longer than 24 tokens, or equal, and left out" in printed
    assert printed.count("memory plan (") == 3  # of each stage, once
    lines = (out / "evidence.json").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0]) == json.loads(json.dumps(row))
    assert row["card"] == "CPU" and row["versions"]["trl"] and row["settings"]["bits"] == 8
    assert list(row["stages"]) == ["sft", "reward", "ppo"]
    for name, measures in (("sft", ["loss"]), ("reward", ["accuracy", "eval_accuracy"]), ("ppo", ["score", "kl"])):
        assert (out / name / "adapter_model.safetensors").is_file()
        assert set(measures) <= set(row["stages"][name]["curve"])
        assert row["stages"][name]["peak_gib"] == "not measured on a CPU"
    assert [step for step, _ in row["stages"]["ppo"]["curve"]["score"]] == [1, 2]
    assert row["stages"]["ppo"]["curve"]["kl"][0][1] == 0.0

    again = train_7b_24gb.main(words(settings, "--method", "raft"))
    printed = capsys.readouterr().out
    assert "sft: finished before" in printed and "reward: finished before" in printed
    assert again["stages"]["sft"] == json.loads(json.dumps(row["stages"]["sft"]))
    assert again["stages"]["raft"]["curve"]["grow/score"]

    with pytest.raises(ValueError, match=r"stage 'sft' in .* was finished with --rank 4, and now it is 3. Give the"):
        train_7b_24gb.main(words(settings | {"--rank": 3}))


@pytest.mark.slow
def test_a_killed_stage_goes_on_from_its_checkpoint(settings, tmp_path, monkeypatch):
    options = settings | {"--output-dir": tmp_path, "--save-steps": 1}
    whole = train_7b_24gb.main(words(options | {"--output-dir": tmp_path / "whole"}))
    trainer, saves = train_7b_stages.SFTTrainer, []
    original = trainer._save_checkpoint

    def killed(self, *args, **kwargs):
        saves.append(args)
        if len(saves) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train_7b_24gb.main(words(options))
    assert (tmp_path / "sft" / "checkpoint-1").is_dir() and not (tmp_path / "sft" / "stage.json").exists()
    resumed = train_7b_24gb.main(words(options))
    for name in ("sft", "reward", "ppo"):
        assert resumed["stages"][name]["curve"] == whole["stages"][name]["curve"]


def test_what_does_not_fit_is_refused_unless_forced(settings, monkeypatch):
    class Begun(Exception):
        pass

    def begin(*args, **kwargs):
        raise Begun

    monkeypatch.setattr(train_7b_24gb.SharedBase, "from_pretrained", begin)
    small = settings | {"--card": 1e-4}
    with pytest.raises(SystemExit, match=r"expected stages that fit, and by the plan sft.*does not. What would help"):
        train_7b_24gb.main(words(small))
    for options in (words(small, "--force"), words(settings | {"--card": 24})):
        with pytest.raises(Begun):
            train_7b_24gb.main(options)


def test_a_card_that_is_not_here_is_planned_for(settings, capsys, monkeypatch):
    """On the CPU, where a plan for the CPU would be in fp32 and would not fit."""
    monkeypatch.setattr(train_7b_stages.torch.cuda, "is_available", lambda: False)
    options = settings | {"--model": "llama-2-7b", "--batch": 16, "--prompt-length": 512, "--completion-length": 512}
    assert train_7b_24gb.main(words(options | {"--card": "24GB"}, "--plan-only")) == {}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["sft", "reward", "ppo"] and "no GPU here" in lines[3]
    assert all("fits into 23.5 GiB" in line for line in lines[:3])
    found = train_7b_24gb.plans(train_7b_24gb.parse(words(options | {"--card": "24GB"})))
    assert {(plan.settings.device, plan.settings.dtype) for plan in found.values()} == {("cuda", "bfloat16")}
    assert found["ppo"].settings.value_model and found["reward"].settings.imitation
    with pytest.raises(SystemExit):
        train_7b_24gb.parse(words(options | {"--card": "big"}))
    assert "argument --card: 'big': expected e.g. 24GB" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"--model": "no/such"}, {"--batch": 0}])
def test_a_plan_that_cannot_be_made_is_bad_input_where_only_it_is_asked_for(settings, changes, capsys):
    options = words(settings | {"--card": 24} | changes)
    with pytest.raises(ValueError, match=r"^memory_plan\((model='no/such'|batch=0)"):
        train_7b_24gb.main([*options, "--plan-only"])
    assert capsys.readouterr().out == ""
    train_7b_24gb.check_plans(train_7b_24gb.plans(train_7b_24gb.parse(options)), train_7b_24gb.parse(options))
    printed = capsys.readouterr().out
    assert printed.startswith("no memory plan: memory_plan(") and "the plan for a card" not in printed


def test_what_would_help_are_its_own_options_where_it_has_them(settings):
    """Of the stage that needs most; taken, all stages fit."""
    options = settings | {"--model": "llama-2-7b", "--bits": 16, "--batch": 16, "--card": 7.5}
    options |= {"--prompt-length": 512, "--completion-length": 512}
    with pytest.raises(SystemExit, match=r"at once, --batch \d+ \(.*the base in 4 bits, --bits 4 \(") as ended:
        train_7b_24gb.main(words(options, "--plan-only"))
    own = dict(flag.split() for flag in re.findall(r", (--\S+ \d+) \(", str(ended.value)))
    assert train_7b_24gb.main(words(options | own, "--plan-only")) == {}


def test_pairs_that_are_left_out_are_counted(settings, tmp_path, capsys, monkeypatch):
    class Trained(Exception):
        pass

    def stop(*args, **kwargs):
        raise Trained

    monkeypatch.setattr(train_7b_stages.ImitationRewardTrainer, "train", stop)
    rows = [{"prompt": f"{i}?", "chosen": " ok", "rejected": " no"} for i in range(6)]
    rows += [{"prompt": "?", "chosen": " " + "long" * 9, "rejected": " no"}] * 2
    rows += [{"prompt": "?", "chosen": " ok", "rejected": " ok"}]
    pairs = json_lines(tmp_path / "pairs.jsonl", rows)
    options = train_7b_24gb.parse(words(settings | {"--pairs": pairs, "--output-dir": tmp_path / "out"}))
    base = train_7b_24gb.SharedBase.from_pretrained(settings["--model"])
    with pytest.warns(UserWarning, match="equal"), pytest.raises(Trained):
        train_7b_24gb.run_stage("reward", base, options, None)
    assert "pairs: 9, of which 3 are longer than 24 tokens, or equal, and left out" in capsys.readouterr().out


def test_micro_batches_are_what_the_plan_has_room_for(settings):
    options = train_7b_24gb.parse(words(settings | {"--model": "llama-2-7b", "--batch": 16, "--card": 12}))
    options.prompt_length = options.completion_length = 512
    found = train_7b_24gb.plan_of("sft", options)
    assert found.settings.micro_batch < 16 and found.verdict(12 * 2**30) == "fits"
    assert train_7b_24gb.halves(12) == [12, 6, 3]


def test_bad_data_is_named(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", [{"question": "b"}])
    with pytest.raises(ValueError, match=r"--prompts .*a.jsonl: expected the columns prompt, got question. Rename"):
        load_rows(str(path), "--prompts", [["prompt"]])
    with pytest.raises(ValueError, match=r"--pairs missing.parquet: there is no such file"):
        load_rows("missing.parquet", "--pairs", [["prompt", "chosen", "rejected"]])
    with pytest.raises(ValueError, match=r"none of 1 has at most 3 tokens. Raise --prompt-length"):
        fitting_prompts(Dataset.from_list([{"prompt": "long"}]), byte_tokenizer(), 3)


def test_prompts_of_another_shape_and_columns_that_nobody_reads(tmp_path):
    shared = Dataset.from_dict({"prompt": [[{"from": "human", "value": "Why?"}]]})
    with pytest.raises(ValueError, match=r"^--prompts: the prompt of row 0 is .* messages of ShareGPT's"):
        fitting_prompts(shared, byte_tokenizer(), 16)
    path = json_lines(tmp_path / "rows.jsonl", [{"prompt": "Sum up.", "input": "A long story."}])
    with pytest.warns(UserWarning, match="has a column 'input', of which nothing is read"):
        load_rows(str(path), "--prompts", [["prompt"]])


def test_a_parquet_file_and_its_columns(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_list([{"text": "a", "more": 1}]).to_parquet(path)
    assert load_rows(str(path), "--sft-data", [["prompt", "completion"], ["text"]]).to_list() == [{"text": "a"}]


def test_a_csv_files_text_stays_text(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\n12,NA\n13,2024-01-01\n")
    rows = [{"prompt": "12", "completion": "NA"}, {"prompt": "13", "completion": "2024-01-01"}]
    assert load_rows(str(tmp_path / "a.csv"), "--sft-data", [["prompt", "completion"], ["text"]]).to_list() == rows


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ("checkpoint-5/trainer_state.json", r"stage 'sft': .*sft' holds 'checkpoint-5', which this run did not write"),
        (
            "begun.json",
            r"stage 'sft': .*sft' holds what another run has written \(bits: None then, 8 now; model: None",
        ),
    ],
)
def test_another_runs_stage_is_not_gone_on_with(settings, tmp_path, left, message):
    (tmp_path / "sft" / left).parent.mkdir(parents=True)
    (tmp_path / "sft" / left).write_text("{}")
    with pytest.raises(ValueError, match=message):
        train_7b_24gb.main(words(settings | {"--output-dir": tmp_path}))


def test_what_would_help_is_in_the_programs_own_options():
    """It takes reentrant checkpoints in 8 bits by itself, and has no option of that name."""
    (advice,) = memory_plan("llama-2-7b", "sft").advice(10 * 2**30 * 98 // 100)
    assert advice.flag == "--bits 8 --reentrant" and train_7b_24gb.remedy(advice) == "--bits 8"
