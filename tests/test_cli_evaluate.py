"""`trl-ext evaluate`, in process, with models of a few numbers."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_case import refused, write_rows
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_llama

from trl_ext import Evaluation, evaluate
from trl_ext.cli import main
from trl_ext.cli.command_arguments import DataArguments
from trl_ext.cli.data_rows import named_rows
from trl_ext.cli.evaluate import differences_table

PROMPTS = [{"prompt": f"say {i}", "reference": " yes"} for i in range(6)]
REWARDS = """
def even(completions, **columns):
    return [float(sum(ord(letter) % 2 == 0 for letter in text)) for text in completions]
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    tuned = get_peft_model(
        type(model).from_pretrained(tmp_path / "start"), LoraConfig(init_lora_weights=False, target_modules=["q_proj"])
    )
    tuned.save_pretrained(tmp_path / "tuned")
    write_rows(tmp_path / "held-out.jsonl", PROMPTS)
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


OPTIONS = ["--dataset_name", "held-out.jsonl", "--reward_funcs", "rewards.py:even", "--max_completion_length", "5"]


def test_two_policies_side_by_side(here, capsys):
    main(["evaluate", "--policies", "start", "tuned", *OPTIONS, "--reference", "start", "--output", "samples.parquet"])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    for words in ("reward/even", "kl_k1", "perplexity", "tuned less start", "±", "samples.parquet"):
        assert words in told
    samples = pq.read_table("samples.parquet").to_pylist()
    assert [sample["policy"] for sample in samples] == 6 * ["start"] + 6 * ["tuned"]
    rows = named_rows("held-out.jsonl", "train", DataArguments(), flag="")
    start = evaluate("start", rows, None, max_completion_length=5)
    assert [sample["completion"] for sample in samples[:6]] == start.samples["completion"][:]


def test_given_again_it_says_so_and_keeps(here, capsys, monkeypatch):
    given = ["evaluate", "--policies", "start", *OPTIONS, "--output", "samples.parquet"]
    main(given)
    before = (here / "samples.parquet").read_bytes()
    monkeypatch.setattr("trl_ext.cli.evaluate.evaluate", None)  # nothing is sampled once more
    capsys.readouterr()
    main(given)
    assert capsys.readouterr().out.startswith("Complete already. samples.parquet: by the same command.")
    told = refused(capsys, *given, "--seed", "1")
    assert "--output samples.parquet: it is what another command found; seed: 0 then, 1 now" in told
    write_rows(here / "held-out.jsonl", PROMPTS[:5])
    assert "rows: " in refused(capsys, *given)
    assert (here / "samples.parquet").read_bytes() == before
    Dataset.from_list(PROMPTS).to_parquet("samples.parquet")
    assert "a file that this command did not write" in refused(capsys, *given)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([1.0, 2.0], [1.0, 2.0], "equal"),
        ([2.0, 3.0], [1.0, 2.0], ""),  # by 1 on each prompt
        ([1.0, 2.0], [2.0, 1.0], "not resolved"),  # 0, and might well be another number
        ([1.0], [1.0], "not resolved"),  # of one prompt nothing is known
    ],
)
def test_what_is_said_of_a_difference(ours, theirs, said):
    one, other = (
        Evaluation({}, Dataset.from_list([]), {}, {"length": np.stack([sums, np.ones(len(sums))], axis=1)})
        for sums in (ours, theirs)
    )
    assert list(differences_table("one", one, "other", other).columns[3].cells) == [said]


def test_on_a_base_in_eight_bits(here, capsys):
    main(["evaluate", "--policies", "tuned", *OPTIONS, "--base", "start", "--load_in_8bit"])
    assert "reward/even" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--policies: expected"),
        (["--policies", "start", "start"], "named twice"),
        (["--policies", "start", "--load_in_8bit"], "expected --base"),
        (["--policies", "start", "--output", "x.csv"], "ends in .parquet"),
        (["--policies", "start", "--output", "rewards.py/x.parquet"], "rewards.py"),
        (["--policies", "nowhere"], "nowhere"),
        (["--policies", "start", "--num_samples", "0"], "num_samples"),
        (["--policies", "start", "--sead", "0"], "Did you mean --seed?"),
    ],
)
def test_what_is_refused(options, message, here, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["evaluate", *OPTIONS, *options])
    told = capsys.readouterr().err
    assert raised.value.code == 2 and message in told and "Traceback" not in told
