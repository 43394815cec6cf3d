"""Commands on the how-to pages that need no cluster answer as shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.docs.pages import DOCS, Block, blocks_of, commands_of

from fatwood.cli import cli

DRY_RUN = {"how-to/clusters", "how-to/memory"}
"""Pages whose commands are all `fatwood submit --dry-run`, shown with some lines of their output."""
BLOCKS = [block for name in sorted(DRY_RUN) for block in blocks_of(DOCS / f"{name}.md", "console")]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_dry_runs_print_these_lines_in_this_order(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyspark")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    Path("train.py").touch()
    *before, command = commands_of(block)
    assert all(line.startswith("export ") for line in before)
    program, *arguments = shlex.split(command)
    assert program == "fatwood"
    assert arguments[:2] == ["submit", "--dry-run"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exception is None, done.output
    printed = iter(done.output.splitlines())
    shown = [line for line in block.text.splitlines() if not line.startswith("$ ")]
    assert shown
    assert [line for line in shown if line not in printed] == []  # an iterator: in this order


def test_the_version_is_printed() -> None:
    (command,) = [
        command
        for block in blocks_of(DOCS / "how-to" / "install.md", "console")
        for command in commands_of(block)
        if "--version" in command
    ]
    program = Path(sys.executable).with_name(command.split()[0])
    done = subprocess.run(
        [str(program), *command.split()[1:]],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert re.search(r"\d+\.\d+", done.stdout)
