"""`trl-ext reward` with soft labels and ranked lists from files."""

import pytest
from cli_case import folder_here, refused, write_rows  # noqa: F401 - the fixture `here`
from test_cli_dry_run import REWARD, place, unloaded  # noqa: F401 - fixtures
from test_cli_training import FITS
from tiny import byte_tokenizer

from trl_ext.cli import main, train_reward
from trl_ext.memory_planning import memory_plan

LISTS = [{"prompt": f"say {i}", "answers": [" no", " yes, and so", " well"], "ranks": [3, 1, 2.5]} for i in range(8)]
SOFT = [{"prompt": f"say {i}", "chosen": " yes", "rejected": " no", "chosen_probability": 0.75} for i in range(8)]


def command(name: str) -> list[str]:
    return [*REWARD.replace("pairs.jsonl", name).split(), "--max_length", "200"]


@pytest.mark.usefixtures("unloaded")
def test_the_first_list_is_shown_with_its_ranks(here, capsys):
    write_rows(here / "lists.jsonl", LISTS)
    main([*command("lists.jsonl"), "--columns", "completions=answers"])
    told = capsys.readouterr().out
    end = byte_tokenizer().eos_token
    lines = [line.split("⟦")[0].strip() for line in told.splitlines() if "⟦" in line]
    assert lines == ["prompt", *(f"rank {rank}, with its end" for rank in ("3", "1", "2.5"))]
    assert f"⟦ yes, and so{end}⟧" in told and "⟦say 0⟧" in told


@pytest.mark.usefixtures("unloaded")
def test_the_plan_counts_its_completions(here, capsys, monkeypatch):
    """Eight rows of three are twelve pairs."""
    write_rows(here / "lists.jsonl", LISTS)
    asked = {}
    monkeypatch.setattr(
        train_reward, "memory_plan", lambda *args, **given: asked.update(given) or memory_plan(*args, **given)
    )
    main([*command("lists.jsonl"), "--columns", "completions=answers", "--per_device_train_batch_size", "8"])
    assert asked["micro_batch"] == 12


@pytest.mark.usefixtures("unloaded")
def test_the_label_is_shown(here, capsys):
    write_rows(here / "soft.jsonl", SOFT)
    main(command("soft.jsonl"))
    assert any(line.split() == ["chosen_probability", "0.75"] for line in capsys.readouterr().out.splitlines())


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [*SOFT[:3], SOFT[0] | {"chosen_probability": "0.9"}],
            "its column 'chosen_probability' holds values of different",
        ),
        (
            [*SOFT[:3], SOFT[0] | {"chosen_probability": 2}],
            "error: --dataset_name, row 3: the chosen_probability is 2.0: expected a number from 0 to 1",
        ),
        (
            [*SOFT[:3], {"prompt": "a", "chosen": "b", "rejected": "c"}],
            "error: --dataset_name, row 3: the chosen_probability is None",
        ),
        (
            [LISTS[0] | {"completions": ["a", "b"], "ranks": [2, 2]}],
            "error: row 0 of --dataset_name has the ranks [2, 2], which are ties only",
        ),
        (
            [LISTS[0] | {"completions": ["a", "b"], "ranks": "21"}],
            "expected 'ranks' to be a list of 2 numbers, got '21'",
        ),
    ],
)
def test_what_is_refused(rows, message, here, capsys):
    write_rows(here / "rows.jsonl", rows)
    assert message in refused(capsys, *command("rows.jsonl"))


@pytest.mark.slow
def test_a_run_of_lists(place, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "lists.jsonl", [{"completions": row["answers"]} | row for row in LISTS])
    words = [
        "--model_name_or_path",
        str(place / "model"),
        "--dataset_name",
        "lists.jsonl",
        "--output_dir",
        "out",
        *FITS,
    ]
    main(["reward", *words, "--max_steps", "1", "--report_to", "none"])
    assert "Saved in out." in capsys.readouterr().out
