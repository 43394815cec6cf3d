"""The commands of docs/how-to/submit.md print what the page says, line by line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from fatwood.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "submit.md"
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[str(i) for i in range(len(BLOCKS))])
def test_the_commands_print_these_lines_in_this_order(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyspark")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    Path("train.py").touch()
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ fatwood submit ")]
    assert len(commands) == 1
    _, name, *options = shlex.split(commands[0])
    done = CliRunner().invoke(cli, [name, "--dry-run", *(word for word in options if word != "--dry-run")])
    assert done.exception is None
    printed = iter(done.output.splitlines())
    shown = [line for line in block.splitlines() if not line.startswith("$ ")]
    missing = [
        line for line in shown if line not in printed
    ]  # an iterator: only what comes later is looked at
    assert missing == []


def test_the_page_has_a_block_for_each_kind_of_cluster() -> None:
    text = "".join(BLOCKS)
    assert len(BLOCKS) == 4
    assert all(f"--master {master}" in text for master in ("spark://", "yarn", "k8s://"))
