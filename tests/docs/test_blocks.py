"""Every fenced block is run by a test, or is named here with the reason why not; names and keyword arguments exist."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from tests.docs.pages import PAGES, ROOT, Block, blocks_of, commands_of, name_of, without_blocks
from tests.docs.test_commands import DRY_RUN
from tests.docs.test_guides import GUIDES
from tests.docs.test_how_to import LEAST

BLOCKS = [block for page in PAGES for block in blocks_of(page)]

PYTHON = {
    "README.md": "tests/docs/test_readme.py",
    "docs/training.md": "tests/docs/test_training_guide.py",
    "docs/evaluation.md": "tests/docs/test_evaluation_guide.py",
    "docs/how-to/migrate.md": "tests/migrate/test_page.py",
    "docs/how-to/plan.md": "tests/planning/test_plan.py",
    "docs/how-to/storage.md": "tests/storage/test_page.py",
    **{f"docs/{name}.md": "tests/docs/test_guides.py" for name in GUIDES},
    **{f"docs/how-to/{name}.md": "tests/docs/test_how_to.py" for name in LEAST},
}
"""Pages with Python blocks, and the test that runs all of them."""

NOT_RUN = {
    ("docs/from-deeplearning4j.md", "java"): "shows the other library",
    ("docs/how-to/doctor.md", "python notest"): "needs HDFS; tests/doctor runs the function",
    (
        "docs/how-to/storage.md",
        "python notest",
    ): "needs S3; tests/storage does the same on a server of its own",
    ("docs/how-to/gpu.md", "python notest"): "needs a GPU and dynamic allocation",
    ("docs/protocol.md", "sh"): "the first takes hours; tests/train/test_protocol.py runs the simulation",
}
"""Blocks of other kinds, and why no test runs them."""

NOT_CODE = {"text"}  # drawings and output; README's are compared by tests/docs/test_readme.py

CONSOLE = {
    "docs/how-to/submit.md": "tests/submission/test_guide.py",
    "docs/how-to/migrate.md": "tests/migrate/test_page.py",
    "docs/how-to/plan.md": "tests/planning/test_plan.py",
    "docs/stats.md": "tests/docs/test_guides.py",
    **{f"docs/{name}.md": "tests/docs/test_commands.py" for name in DRY_RUN},
}
"""Pages with console blocks, and the test that runs all of their commands."""

COMMANDS = {
    "README.md": {
        'pip install ".[spark]"': "not run: installing is CI's first step",
        "fatwood --help": "tests/docs/test_readme.py",
        "fatwood demo": "tests/cli runs it; what is shown is compared with the job by tests/docs/test_readme.py",
    },
    "CONTRIBUTING.md": {"make check test": "not run: it is what CI runs"},
    "docs/how-to/install.md": {
        'pip install ".[spark]"': "not run: installing is CI's first step",
        "fatwood --version": "tests/docs/test_commands.py",
        "fatwood demo": "tests/cli",
    },
    "docs/how-to/doctor.md": {
        "fatwood doctor --master spark://10.0.0.1:7077 --storage s3://runs": "not run: needs that cluster; tests/doctor"
    },
    "docs/how-to/gpu.md": {
        "spark-submit --conf spark.executor.resource.gpu.amount=1 "
        "--conf spark.executor.resource.gpu.discoveryScript=/opt/spark/getGpus.sh "
        "--conf spark.task.resource.gpu.amount=1 train.py": "not run: needs a GPU; tests/submission reads the settings"
    },
    "docs/how-to/pack.md": {
        "fatwood pack environment.tar.gz --drop-tests": "not run: takes minutes; tests/packing/test_real.py",
        "fatwood pack --check environment.tar.gz": "not run: needs that archive; tests/packing/test_real.py",
        "spark-submit --archives environment.tar.gz#environment "
        "--conf spark.pyspark.python=./environment/bin/python train.py": "tests/packing/test_real.py does the same",
    },
    "docs/how-to/dependencies.md": {
        "fatwood doctor --master spark://head:7077": "not run: needs that cluster; tests/doctor",
        "pip freeze --exclude-editable > constraints.txt": "not run: pip's own",
        'pip install --constraint constraints.txt ".[spark]"': "not run: installing is CI's first step",
        "fatwood pack environment.tar.gz": "not run: takes minutes; tests/packing/test_real.py",
    },
    "docs/how-to/kill-user-processes.md": {"loginctl enable-linger USER": "not run: changes the machine"},
}
"""Single commands, and what runs them or why not."""


def unlisted(blocks: list[Block]) -> list[str]:
    """Where there is a block or a command that no list above knows."""
    found = []
    for block in blocks:
        page = name_of(block.page)
        if block.language == "python":
            known = page in PYTHON
        elif block.language == "console":
            single = COMMANDS.get(page, {})
            known = page in CONSOLE or all(command in single for command in commands_of(block))
        else:
            known = block.language in NOT_CODE or (page, block.language) in NOT_RUN
        if not known:
            found.append(f"{block.where}: {block.language}")
    return found


def test_every_block_is_run_or_named_with_a_reason() -> None:
    assert len(BLOCKS) > 80
    assert unlisted(BLOCKS) == []


def test_a_new_block_is_seen() -> None:
    page = ROOT / "docs" / "protocol.md"
    added = [Block(page, "python", "1", 1), Block(page, "console", "$ ls\n", 1), Block(page, "", "x", 1)]
    added += [Block(ROOT / "docs" / "how-to" / "install.md", "console", "$ fatwood --version\n$ ls\n", 1)]
    assert len(unlisted(added)) == len(added)


def test_the_lists_name_nothing_that_is_gone() -> None:
    languages = {(name_of(block.page), block.language) for block in BLOCKS}
    shown = {
        (name_of(b.page), command) for b in BLOCKS if b.language == "console" for command in commands_of(b)
    }
    assert {(page, "python") for page in PYTHON} - languages == set()
    assert {(page, "console") for page in [*CONSOLE, *COMMANDS]} - languages == set()
    assert NOT_RUN.keys() - languages == set()
    assert {(page, command) for page, single in COMMANDS.items() for command in single} - shown == set()


@pytest.mark.parametrize(("page", "test"), sorted({**PYTHON, **CONSOLE}.items()))
def test_the_tests_named_speak_of_the_page(page: str, test: str) -> None:
    text = (ROOT / test).read_text(encoding="utf-8")
    stem = page.rpartition("/")[2].removesuffix(".md")
    assert stem in text or page in text


# Names and keyword arguments, of every Python block and of every call in running text.

PACKAGES = ("fatwood", "callbacks", "codec", "data", "doctor", "evaluation", "migrate", "ml", "spark")


def known_names() -> dict[str, Any]:
    """What the pages call by name: the public names, and the methods of a model."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        module = import_module("fatwood" if package == "fatwood" else f"fatwood.{package}")
        found |= {name: getattr(module, name) for name in module.__all__}
    data, model = import_module("fatwood.data"), found["SparkModel"]
    found |= {name: getattr(data, name) for name in ("write_shards", "validate_shards")}
    methods = ("fit", "evaluate", "predict", "score", "mean_score", "save", "udf")
    return found | {f".{name}": getattr(model, name) for name in methods} | {".load": model.load}


NAMES = known_names()


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls of public names, of methods of what is called a model, and in running text ``fit(...)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                yield called.id, node
            elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                if called.value.id in ("model", "again", "SparkModel", "stage"):
                    yield f".{called.attr}", node
                elif called.value.id in ("fatwood", "evaluation"):
                    yield called.attr, node


def wrong_calls(text: str) -> list[str]:
    """Calls with a keyword that the function has not."""
    found = []
    for name, call in calls_of(ast.parse(text)):
        function = NAMES.get(name) or NAMES.get(f".{name}" if name in ("fit", "load", "save") else "")
        if function is None or not callable(function):
            continue
        parameters = inspect.signature(function).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        given = [keyword.arg for keyword in call.keywords if keyword.arg is not None]
        found += [f"{name}({keyword}=...)" for keyword in given if keyword not in parameters]
    return found


PYTHON_BLOCKS = [block for block in BLOCKS if block.language.startswith("python")]


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.where)
def test_blocks_compile_and_name_what_there_is(block: Block) -> None:
    block.compiled()
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fatwood":
            module = import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
    assert wrong_calls(block.text) == []


def spans(text: str) -> list[str]:
    """The calls in single backticks outside of blocks."""
    return re.findall(r"`([\w.]+\([^`\n]*\))`", without_blocks(text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_calls_in_the_text_have_these_arguments(page) -> None:
    wrong = []
    for span in spans(page.read_text(encoding="utf-8")):
        try:
            wrong += wrong_calls(span)
        except SyntaxError:
            if not re.search(r"=\W*[,)]", span):  # `Standardize(mean=, std=)` is a short way to write it
                continue
            wrong += wrong_calls(re.sub(r"=(?=[,)])", "=...", span))
    assert wrong == []


def test_a_wrong_keyword_is_seen() -> None:
    assert wrong_calls("model.fit(df, features='x', batchsize=3)") == [".fit(batchsize=...)"]
    assert wrong_calls("fit(worker=2)") == ["fit(worker=...)"]
    assert wrong_calls("DiLoCo(every=3, outer=0.5)") == ["DiLoCo(outer=...)"]
    assert wrong_calls("EarlyStopping(patience=3)") == []
    assert spans("`fit(a=1)` and\n```text\n`fit(b=1)`\n```\n") == ["fit(a=1)"]
