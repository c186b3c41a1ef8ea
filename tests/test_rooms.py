"""Who may import whom, and that the READMEs name files that are there."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_ext"
ROOMS = {  # each room, and those that it may import from
    "trainer_kit": set(),
    "sequences": {"trainer_kit"},
    "rewards": {"sequences", "trainer_kit"},
    "memory_planning": {"rewards", "sequences", "trainer_kit"},
    "shared_base": {"rewards", "sequences", "trainer_kit"},
    "generation": {"sequences", "trainer_kit"},
    "query_types": {"generation", "sequences", "trainer_kit"},
    "ai_feedback": {"generation", "reward_evaluation", "rewards", "sequences", "shared_base", "trainer_kit"},
    "self_instruct": {"generation", "query_types", "sequences", "trainer_kit"},
    "reward_evaluation": {"generation", "rewards", "sequences", "shared_base", "trainer_kit"},
    "reward_modeling": {"memory_planning", "rewards", "sequences", "trainer_kit"},
    "ppo": {"generation", "memory_planning", "rewards", "sequences", "trainer_kit"},
    "self_training": {"generation", "memory_planning", "rewards", "sequences", "trainer_kit"},
    "evaluation": {"generation", "rewards", "self_training", "sequences", "shared_base", "trainer_kit"},
    "diagnostics": {"rewards", "sequences", "trainer_kit"},
    "reporting": {"trainer_kit"},
}
ABOVE_ALL = {"demo", "cli"}
FILES = {
    ".".join(("trl_ext", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, those for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & FILES.keys() - {"trl_ext"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_folder_is_a_room():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == ROOMS.keys() | ABOVE_ALL
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_below_only(room):
    arrows = {
        (module, other)
        for module, path in FILES.items()
        if module.startswith(f"trl_ext.{room}")
        for other in imported(path)
    }
    upwards = {(module, other) for module, other in arrows if room_of(other) not in ROOMS[room] | {room}}
    assert not upwards


def test_no_circles():
    list(TopologicalSorter(ROOMS).static_order())
    modules = {module: imported(path) - {module} for module, path in FILES.items() if module != "trl_ext"}
    list(TopologicalSorter(modules).static_order())  # raises CycleError with the circle


def test_basenames_are_unique():
    """So that a name in a message, a test or a search means one file."""
    names = sorted(path.name for path in FILES.values() if path.name != "__init__.py")
    assert names == sorted(set(names))


READMES = [ROOT / "README.ko.md", ROOT / "examples" / "MIGRATION.md"] + [
    path for path in ROOT.rglob("README.md") if path.relative_to(ROOT).parts[0] in ("README.md", "trl_ext", "examples")
]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_readme_names_is_there(readme):
    """Files, modules that are run, and links, with the heading that they lead to."""
    text = readme.read_text()
    named = re.findall(r"`((?:trl_ext|tests|examples|notebooks|\.ci)/[\w./-]+\.\w+)`", text)
    named += [f"{name.replace('.', '/')}.py" for name in re.findall(r"-m (examples\.[\w.]+\w)", text)]
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text)
    broken = [link for link in links if not leads_somewhere(readme, *link)]
    assert not broken


def leads_somewhere(readme: Path, path: str, heading: str) -> bool:
    file = readme.parent / path if path else readme
    if not heading:
        return file.exists()
    titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
    return heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
