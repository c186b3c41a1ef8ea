"""A command in process: the rows it reads, and how it is refused."""

import json
from pathlib import Path

import pytest

from trl_ext.cli import main

# Of the commands that train.
PROMPTS = [{"question": f"say {word}", "wanted": 3} for word in ("it", "that", "so", "more")] * 4
PAIRS = [{"prompt": f"say {i}", "chosen": " yes, and so", "rejected": " no"} for i in range(8)]
REWARDS = """
def nearness(completions, wanted, **columns):
    return [-float(abs(len(text) - want)) for text, want in zip(completions, wanted, strict=True)]
"""


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(name="here")
def folder_here(place, tmp_path, monkeypatch) -> Path:
    """A new folder that sees what is in the module's `place`, and that a command is run in."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *argv) -> str:
    """What a command says on stderr that ends with code 2, and without a traceback."""
    with pytest.raises(SystemExit) as raised:
        main(argv)
    told = capsys.readouterr().err
    assert raised.value.code == 2 and "Traceback" not in told, told
    return told
