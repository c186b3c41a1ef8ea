"""Text is UTF-8 whatever the machine's own encoding is: on Windows that is another, and a Korean prompt would end a run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = ("open", "read_text", "write_text")
FILES = sorted([*ROOT.glob("trl_ext/**/*.py"), *ROOT.glob("examples/*.py"), *ROOT.glob("examples/methods/*.py")])


def without_encoding(code: str) -> list[int]:
    """Lines that open text without saying how it is encoded.

    >>> without_encoding("open(x); open(x, 'rb'); path.read_text(); path.write_text(y, encoding='utf-8'); os.open(x, 0)")
    [1, 1]
    """
    return [node.lineno for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and _opens_text(node)]


def _opens_text(call: ast.Call) -> bool:
    of = call.func
    name = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
    is_others = name == "open" and isinstance(of, ast.Attribute) and ast.unparse(of.value) in ("os", "Image", "gzip")
    modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    is_bytes = name == "open" and any(set(mode) <= set("rwabx+") and "b" in mode for mode in modes)
    return name in OWN and not is_others and not is_bytes and "encoding" not in [word.arg for word in call.keywords]


def test_by_hand():
    code = "open(x); open(x, 'rb'); path.read_text(); path.write_text(y, encoding='utf-8'); os.open(x, 0)"
    assert without_encoding(code) == [1, 1]


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_opened_with_its_encoding(file):
    assert without_encoding(file.read_text(encoding="utf-8")) == []
