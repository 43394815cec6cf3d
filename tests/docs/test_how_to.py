"""The how-to pages: their Python blocks run as they stand, and what they train learns something."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
LEAST = {  # what the page's model must reach on its rows; chance is a third, a half or a quarter
    "tables": 0.9,
    "joined": 0.75,
    "images": 0.9,
    "sequences": 0.8,
    "minibatch-files": 0.6,
    "shards": 0.6,
    "pipeline": 0.9,
    "save": 0.9,
}


def test_every_page_is_in_the_index_once() -> None:
    pages = {page.stem for page in PAGES.glob("*.md")} - {"README"}
    text = (PAGES / "README.md").read_text(encoding="utf-8").split("## Data in detail")[0]
    listed = re.findall(r"\| \[[^\]]+\]\(([\w-]+)\.md\) \|", text)
    twice = {"minibatch-files", "tables"}  # for two forms of data each
    assert set(listed) == pages
    assert {name for name in pages if listed.count(name) > 1} == twice


@pytest.mark.spark
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings(
    "ignore:unclosed running multiprocessing pool:ResourceWarning"
)  # of CrossValidator
@pytest.mark.parametrize("name", sorted(LEAST))
def test_the_blocks_run(spark, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGES / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__", "spark": spark}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.split(block)[0].count("\n")
        exec(compile("\n" * line + block, str(page), "exec"), names)
    stats = names["fit"].stats
    assert stats.digest_equal
    assert stats.rows_trained == stats.rows_expected
    assert stats.rows_lost == 0
    model, data = names["model"], names.get("files") if name == "minibatch-files" else None
    if data is None:
        data = {"joined": "joined"}.get(name, "df")
        data = names[data]
    assert model.evaluate(data, **names.get("columns", {})).accuracy >= LEAST[name]
