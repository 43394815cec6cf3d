"""The page docs/how-to/storage.md: its block that needs nothing runs."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "storage.md"


def test_the_block_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    try:
        exec(compile(blocks[0], str(PAGE), "exec"), {})
        assert fsspec.filesystem("memory").store.keys() == {"/reports/monday.json"}
    finally:
        fsspec.filesystem("memory").store.clear()
