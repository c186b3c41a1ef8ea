"""Programs that a user copies stand on what a user may import."""

import doctest
import re
from pathlib import Path

import pytest
from public_names import private_imports

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("examples/*.py"), *ROOT.glob("examples/methods/*.py")])
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("trl_ext/**/README.md")])


def programs(page: Path) -> list[str]:
    """The Python of a page: its programs, and what a reader of its sessions types."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    written = [block.replace("…", "...") for block in blocks if ">>>" not in block]  # what a reader fills in
    return written + [example.source for example in doctest.DocTestParser().get_examples(text)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_public_names(script):
    assert private_imports(script.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_import_public_names(page):
    assert [name for block in programs(page) for name in private_imports(block)] == []


def test_a_session_is_read_too(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\n>>> from trl_ext.sequences.samples import Sample\n\n```\n")
    assert [name for block in programs(page) for name in private_imports(block)] == [
        "trl_ext.sequences.samples.Sample"
    ]


def test_an_inner_name_is_found():
    inner = "from trl_ext.demo.world import load_world\nfrom trl_ext.demo import load_world, no_such"
    assert private_imports(inner) == ["trl_ext.demo.world.load_world", "trl_ext.demo.no_such"]


def test_exported_names_are_there():
    from importlib import import_module

    for init in sorted(ROOT.glob("trl_ext/*/__init__.py")):
        room = import_module(f"trl_ext.{init.parent.name}")
        modules = {path.stem for path in init.parent.glob("*.py")}
        for name in getattr(room, "__all__", ()):
            getattr(room, name)
            assert name not in modules, f"{room.__name__}.{name} is a module once that is imported"
