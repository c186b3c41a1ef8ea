"""The notebooks run through, from the first cell to the last, with their fast setting and in a folder of their own."""

import importlib.util
import json
import math
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path
from string import Template
from types import SimpleNamespace

import nbformat
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.public_names import private_imports
from trl_ext.demo.world import ASSETS

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ONE_BASE = FOLDER / "one_base_rlhf.ipynb"  # with tests of its own
OTHERS = [path for path in NOTEBOOKS if path != ONE_BASE]
ON_A_CARD = [path for path in OTHERS if "ON_A_CARD" in path.read_text(encoding="utf-8")]
URLS = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"].get("urls", {})
ADDRESS = next(iter(URLS.values()), None)

# What every notebook's first cell of code begins with; then comes its plan for 7B on 15 GiB
FIRST_LINES = """
from importlib.metadata import version
from importlib.util import find_spec

if find_spec("trl_ext") is None:  # a torch that is installed stays
    kept = f"torch=={version('torch')}" if find_spec("torch") else "torch"
    %pip install -q "SOURCE" $kept

import torch

from trl_ext import memory_plan

GPU = torch.cuda.is_available()
BF16 = GPU and torch.cuda.is_bf16_supported(including_emulation=False)  # a T4 has fp16 alone
HALF = {"bf16": BF16, "fp16": GPU and not BF16}
""".strip().replace("SOURCE", f"trl-ext[notebooks] @ git+{ADDRESS}" if ADDRESS else "..[notebooks]")

OUTCOME = """
import json

Path("outcome.json").write_text(json.dumps({
    "measures": measures,
    "accuracy": accuracy,
    "memory": memory,
    "kl": list(ppo_log["kl_per_completion"]),
    "raft_kl": list(raft_log["kl"]),
    "dtype": str(base.model.model.layers[0].mlp.up_proj.weight.dtype),
    "same": tokenizer.decode(ids[0], skip_special_tokens=True).startswith(held_out_prompts["prompt"][0]),
}))
"""
WITHOUT_GARBAGE = """
def load():  # what the notebook imports, out of the way of the garbage collection that each training begins with
    import gc

    gc.disable()
    import trl_ext

    for name in trl_ext.__all__:
        getattr(trl_ext, name)
    gc.freeze()
    gc.enable()

load()
del load
"""
CPU_SECONDS = """
import time
from pathlib import Path

Path("seconds.json").write_text(str(time.process_time()))
"""
CHECKS = {  # what a notebook claims of its numbers, where they do not depend on how long it trains
    "from_trl_ppo": """
pd.testing.assert_frame_equal(here.iloc[:, :3], TRL_1_12.iloc[:, :3], atol=2e-5, rtol=0, check_index_type=False)
pd.testing.assert_series_equal(here["policy loss"], (64 / 63) ** 0.5 * TRL_1_12["policy loss"], atol=2e-5, check_index_type=False)
""",
}
HUB = """
import datasets
from trl_ext.demo import load_world, preference_rows, sft_rows

def load_dataset(name):
    make = {"trl-lib/tldr": lambda: sft_rows(load_world(), count=200, seed=0)}.get(
        name, lambda: preference_rows(load_world(), held_out=False, count=200, seed=0)
    )
    return datasets.DatasetDict({split: datasets.Dataset.from_list(make()) for split in ("train", "validation")})

datasets.load_dataset = load_dataset
"""


def execute(notebook, folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRL_EXT_NOTEBOOK_FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the models are smaller than the cost of sharing them
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


def run_one_base(folder: Path, monkeypatch, *, before: str = "", changes: dict[str, str] | None = None) -> dict:
    """What came of the notebook on SharedBase, with code before it and changes of its settings cell."""
    notebook = nbformat.read(ONE_BASE, as_version=4)
    settings = next(cell for cell in notebook.cells if cell.id == "settings")
    for old, new in (changes or {}).items():
        assert settings.source.count(old) == 1, old
        settings.source = settings.source.replace(old, new)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(WITHOUT_GARBAGE + before))
    notebook.cells.append(nbformat.v4.new_code_cell(OUTCOME))
    execute(notebook, folder, monkeypatch)
    return json.loads((folder / "outcome.json").read_text())


def check_outcome(outcome: dict, folder: Path) -> None:
    measures, memory = outcome["measures"], outcome["memory"]
    assert list(measures) == ["sft", "ppo", "raft"]
    assert all(math.isfinite(value) for row in measures.values() for value in row.values())
    assert outcome["kl"][0] == pytest.approx(0, abs=1e-5) and outcome["raft_kl"][0] == pytest.approx(0, abs=1e-5)
    assert outcome["kl"][-1] != 0 and measures["ppo"]["KL per answer (nats)"] != 0
    assert measures["sft"]["KL per answer (nats)"] == pytest.approx(0, abs=1e-5)
    assert set(memory) == {"base", "policy sft", "reward reward", "value reward"}
    assert memory["policy sft"] == pytest.approx(2 * memory["value reward"], rel=0.05)  # its reference beside it
    assert all(0 < memory[role] < memory["base"] for role in memory if role != "base")
    (out,) = folder.glob("one_base_rlhf-*")
    assert all((out / name / "adapter_model.safetensors").is_file() for name in ("sft", "reward", "ppo", "raft"))
    assert outcome["same"]


def save_like_llama_2(path: Path) -> None:
    """The shipped policy with what Llama 2 has otherwise: no pad token, a head of its own, a window of 4096."""
    tokenizer, model = (auto.from_pretrained(ASSETS / "policy") for auto in (AutoTokenizer, AutoModelForCausalLM))
    tokenizer.pad_token = model.config.pad_token_id = model.generation_config.pad_token_id = None
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings, model.config.max_position_embeddings = False, 4096
    for part in (tokenizer, model):
        part.save_pretrained(path)


@pytest.mark.slow
def test_one_base_as_it_stands(tmp_path, monkeypatch):
    outcome = run_one_base(tmp_path, monkeypatch)
    check_outcome(outcome, tmp_path)
    weights = (ASSETS / "policy" / "model.safetensors").stat().st_size
    assert outcome["memory"]["base"] == pytest.approx(weights, rel=0.02)  # of all roles, once
    assert outcome["accuracy"] > 0.6


@pytest.mark.slow
def test_one_base_with_the_settings_for_a_card(tmp_path, monkeypatch):
    """8 bits, gradient checkpointing, passes of one row; the model is a stand-in, and so are the data of the hub."""
    save_like_llama_2(tmp_path / "Llama-2-7b-hf")
    changes = {"ON_A_CARD = False": "ON_A_CARD = True", "meta-llama/Llama-2-7b-hf": "Llama-2-7b-hf"}
    outcome = run_one_base(tmp_path, monkeypatch, before=HUB, changes=changes)
    check_outcome(outcome, tmp_path)
    assert outcome["dtype"] == "torch.int8"


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_every_other_as_it_stands(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(WITHOUT_GARBAGE))
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS.get(path.stem, "") + CPU_SECONDS))
    execute(notebook, tmp_path, monkeypatch)
    assert json.loads((tmp_path / "seconds.json").read_text()) < 60  # 25, where nothing else runs


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def plain(source: str) -> str:
    """A cell's source in Python, its magics as calls."""
    return TransformerManager().transform_cell(source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_public_names_are_imported(path):
    assert private_imports("".join(plain(cell.source) for cell in code_cells(path))) == []


def badge(name: str) -> str | None:
    """What opens a notebook in Colab, once the repository has an address on GitHub."""
    if ADDRESS is None:
        return None
    colab, (owner, project) = "https://colab.research.google.com", ADDRESS.rstrip("/").split("/")[-2:]
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{owner}/{project}/blob/main/notebooks/{name})"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_badge_as_soon_as_there_is_an_address(path):
    wanted, title = badge(path.name), nbformat.read(path, as_version=4).cells[0]
    assert title.cell_type == "markdown"
    assert ("colab" not in path.read_text(encoding="utf-8").lower()) if wanted is None else (wanted in title.source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_begins_alike_and_says_whether_7b_fits(path):
    first = code_cells(path)[0]
    assert first.source.startswith(FIRST_LINES)
    assert "memory_plan(" in first.source and ".verdict(15 * 2**30)" in first.source
    (output,) = first.outputs
    assert re.fullmatch(r".*15 GiB.*(fits|does not fit|tight).*\n?", output.text)


def begin(monkeypatch, *, missing: tuple[str, ...] = (), card: str | None = None) -> tuple[list[str], dict]:
    """What the first lines install, and what they set, where modules are missing, on a card or none."""
    find, installed = importlib.util.find_spec, []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    # as torch on a T4: it would compute bf16, by emulation
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or card != "T4"
    )
    names = {}
    shell = SimpleNamespace(run_line_magic=lambda _, line: installed.append(Template(line).substitute(names)))
    names["get_ipython"] = lambda: shell
    exec(plain(FIRST_LINES), names)
    return installed, names["HALF"]


def test_the_first_lines_install_only_what_is_missing(monkeypatch):
    assert begin(monkeypatch)[0] == []


def test_the_first_lines_keep_the_torch_that_is_there(monkeypatch):
    ((line,), _) = begin(monkeypatch, missing=("trl_ext",))
    assert line.startswith("install ") and line.endswith(f" torch=={version('torch')}")


def test_the_first_lines_bring_a_torch_where_there_is_none(monkeypatch):
    ((line,), _) = begin(monkeypatch, missing=("trl_ext", "torch"))
    assert line.endswith(" torch")


@pytest.mark.parametrize(("card", "half"), [(None, None), ("T4", "fp16"), ("L4", "bf16")])
def test_the_first_lines_choose_the_half_precision_of_the_card(monkeypatch, card, half):
    assert begin(monkeypatch, card=card)[1] == {name: name == half for name in ("bf16", "fp16")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_run_s_folder_is_no_part_of_the_repository(path):
    """Where git is, and this is a checkout."""
    if not (FOLDER.parent / ".git").exists():
        pytest.skip("no checkout")
    (name,) = re.findall(r"""OUT = Path\(f"(.*?)\{time""", "".join(cell.source for cell in code_cells(path)))
    run = FOLDER / f"{name}20261129-105046" / "sft" / "adapter_config.json"
    assert subprocess.run(["git", "check-ignore", "-q", str(run)], cwd=FOLDER).returncode == 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_and_clean(path):
    """After `jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False`."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not any(path in text for path in (str(FOLDER.parent), str(Path.home()) + "/", "/home/", "/Users/"))
    assert notebook.metadata.kernelspec.name == "python3" and set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # run once, from top to bottom
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"


def said_to_be_resolved(path: Path) -> list[tuple[float, float, bool]]:
    """Of each stored row that says it: the difference, the smallest that could have been seen, and what is said."""
    outputs = [output for cell in code_cells(path) for output in cell.outputs if "data" in output]
    tables = [output.data["text/plain"] for output in outputs if "text/plain" in output.data]
    number = r"(-?[\d.]+)"
    row = re.compile(rf"{number} +{number} +{number} +(True|False)$", re.M)
    found = [
        row.findall(table) for table in tables if re.match(r".*difference +error +detectable +resolved$", table, re.M)
    ]
    return [(float(each[0]), float(each[2]), each[3] == "True") for rows in found for each in rows]


@pytest.mark.parametrize(("name", "rows"), [("r3_in_grpo", 6), ("raft_and_rest", 20)])
def test_resolved_is_what_could_have_been_seen(name, rows):
    """The rule of `compare` and of every other table here, in which the smallest such difference stands beside it."""
    said = said_to_be_resolved(FOLDER / f"{name}.ipynb")
    assert len(said) == rows and all((abs(value) > seen) == resolved for value, seen, resolved in said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_resolves_by_two_errors(path):
    assert not re.search(r"> 2 \* (error|table)|twice its error", path.read_text(encoding="utf-8"))
