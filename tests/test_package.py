import gc
import re
import runpy
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import trl_ext


def test_import_is_lazy():
    # of the names that load torch, the one that loads least
    code = (
        "import sys, trl_ext; assert 'torch' not in sys.modules; trl_ext.RoutedProduct; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("end", ["", "1 / 0"])
def test_no_garbage_is_looked_for_during_an_import(tmp_path, monkeypatch, is_on, end):
    """And afterwards it is as before, also where the import fails."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / f"lazy_{is_on}_{len(end)}"
    folder.mkdir()
    lines = [
        "from typing import TYPE_CHECKING",
        "from trl_ext.trainer_kit.lazy import lazy_exports",
        "if TYPE_CHECKING:",
    ]
    lines += [f"    from {folder.name}.part import seen as seen", "lazy_exports(__name__)"]
    (folder / "__init__.py").write_text("\n".join(lines))
    (folder / "part.py").write_text(f"import gc\nseen = gc.isenabled()\n{end}")
    (gc.enable if is_on else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError) if end else nullcontext():
            assert import_module(folder.name).seen is False
        assert gc.isenabled() == is_on
    finally:
        gc.enable()


@pytest.mark.parametrize("name", trl_ext.__all__)
def test_public_names(name):
    assert getattr(trl_ext, name).__name__ == name
    assert getattr(trl_ext, name).__doc__


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'PPO'; its public names are"):
        trl_ext.PPO  # noqa: B018


def test_dir_lists_public_names():
    assert set(trl_ext.__all__) <= set(dir(trl_ext))


def test_star_imports_the_public_names():
    names: dict = {}
    exec("from trl_ext.shared_base import *", names)
    assert set(names) - {"__builtins__"} == {"SharedBase"}


def test_one_version():
    """A release's tag, its metadata and how it is cited are of one version."""
    root = Path(__file__).parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert cited and cited[1] == version


@pytest.mark.parametrize(("platform", "is_asked_for"), [("linux", True), ("win32", True), ("darwin", False)])
def test_bitsandbytes_is_asked_for_where_it_has_always_been_built(platform, is_asked_for):
    """By the markers themselves; what else a run needs is asked for everywhere."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    needed = {each.name: each.marker for each in map(Requirement, project["dependencies"])}
    asked = {name for name, marker in needed.items() if marker is None or marker.evaluate({"sys_platform": platform})}
    assert asked == needed.keys() - (set() if is_asked_for else {"bitsandbytes"})


def test_on_the_index_no_link_of_the_first_page_is_relative():
    """Nothing lies beside it there: pictures come raw, files as they are shown."""
    root = Path(__file__).parents[1]
    for_the_index = runpy.run_path(str(root / ".ci" / "index_page"))["for_the_index"]
    page = for_the_index((root / "README.md").read_text(encoding="utf-8"), "an/owner", "v1")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) > 20 and all(link.startswith("https://") for link in links)
    pictures = [link for link in links if link.endswith(".png")]
    assert pictures and all(link.startswith("https://raw.githubusercontent.com/an/owner/v1/") for link in pictures)
    here = "https://github.com/an/owner/blob/v1/"
    paths = [link.removeprefix(here).split("#")[0] for link in links if link.startswith(here)]
    assert paths and all((root / path).exists() for path in paths)


def test_links_on_the_index_by_hand():
    for_the_index = runpy.run_path(str(Path(__file__).parents[1] / ".ci" / "index_page"))["for_the_index"]
    text = "![a](b/c.png) [`d`](e.md#f) [g\nh](https://i.org) [j](#k)"
    assert for_the_index(text, "o/p", "v1") == (
        "![a](https://raw.githubusercontent.com/o/p/v1/b/c.png) [`d`](https://github.com/o/p/blob/v1/e.md#f) "
        "[g\nh](https://i.org) [j](#k)"
    )
