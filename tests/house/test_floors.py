"""The house of docs/architecture.md: who may import whom, and how large a room may grow."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import fatwood

PACKAGE = Path(fatwood.__file__).parent
FLOORS = {
    "errors": 0,
    "archive": 1,
    "blueprint": 1,
    "codec": 1,
    "data": 1,
    "exchange": 1,
    "nd4j": 1,
    "program": 1,
    "report": 1,
    "storage": 1,
    "checkpoint": 2,
    "evaluation": 2,
    "files": 2,
    "migrate": 3,
    "shards": 2,
    "snapshots": 2,
    "pieces": 3,
    "rebuilding": 3,
    "train": 3,
    "callbacks": 4,
    "spark": 4,
    "doctor": 5,
    "model": 6,
    "packing": 5,
    "submission": 5,
    "demo": 7,
    "ml": 7,
    "planning": 7,
    "testing": 6,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    return parts[0] if parts else "__init__"


def imports(path: Path) -> list[tuple[int, str]]:
    """Every module that a file imports, wherever in it, with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "fatwood" else [module]
            found += [(node.lineno, name) for name in names]
    return found


def forbidden(path: Path) -> list[str]:
    own = room(path.relative_to(PACKAGE).with_suffix("").parts)
    wrong = []
    for line, module in imports(path):
        top, _, rest = module.partition(".")
        if top in ("pyspark", "py4j") and own not in ("ml", "spark") and not _only_for_types(path, line):
            wrong.append(f"{path.name}:{line}: {own} imports {module}; only ml/ and spark/ may")
        if top != "fatwood":
            continue
        other = room(tuple(rest.split("."))) if rest else "__init__"
        if other != own and FLOORS[other] >= FLOORS[own]:
            wrong.append(
                f"{path.name}:{line}: {own} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})"
            )
    return wrong


def _only_for_types(path: Path, line: int) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        guarded = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if guarded and node.lineno < line <= (node.end_lineno or 0):
            return True
    return False


def test_a_module_imports_only_from_lower_floors() -> None:
    assert [edge for path in MODULES for edge in forbidden(path)] == []


def test_the_rule_sees_a_forbidden_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    bad = tmp_path / "codec" / "bad.py"
    bad.parent.mkdir()
    bad.write_text(
        "def f():\n    from fatwood.exchange import Exchange\n    import pyspark.sql\n    from fatwood import errors\n"
    )
    assert forbidden(bad) == [
        "bad.py:2: codec (floor 1) imports exchange (floor 1)",
        "bad.py:3: codec imports pyspark.sql; only ml/ and spark/ may",
    ]


def test_rooms_stay_liveable() -> None:
    lines = {str(path.relative_to(PACKAGE)): path.read_text().count("\n") for path in MODULES}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert statistics.median(lines.values()) <= 150
    long = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_lines(node) > 80:
                long[f"{path.name}:{node.name}"] = _body_lines(node)
    assert long == {}


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without docstring and signature: `SparkModel.fit` has one option a line."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return (node.end_lineno or 0) - ((first.end_lineno or 0) if is_docstring else first.lineno - 1)


def test_the_public_list_is_what_is_there() -> None:
    assert sorted(fatwood.__all__) == list(fatwood.__all__) == dir(fatwood)
    for name in fatwood.__all__:
        assert getattr(fatwood, name) is not None
    guarded = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.name for node in ast.walk(guarded) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(fatwood.__all__) - {"__version__"} == typed - {
        "annotations",
        "import_module",
        "TYPE_CHECKING",
        "Any",
    }
    with pytest.raises(AttributeError, match="no attribute 'SparkModle'"):
        fatwood.SparkModle  # noqa: B018


def test_importing_the_package_needs_no_spark() -> None:
    code = (
        "import sys; sys.modules['pyspark'] = sys.modules['pandas'] = None; import fatwood, fatwood.cli, fatwood.demo;"
        "assert not any(m.startswith('pyspark.') for m in sys.modules); assert 'torch' not in sys.modules;"
        "import fatwood.model; assert not any(m.startswith('pyspark.') for m in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
