"""``fatwood report``: from a file of statistics to a page."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fatwood.cli import cli, main
from fatwood.train import FitStats

STATS = FitStats(workers=(), rows_trained=5, rows_expected=5, parameters=0, seconds=1.0)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    STATS.save(tmp_path / "far" / "run.json")
    return tmp_path / "far" / "run.json"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(click, "launch", lambda url: found.append(url) or 0)
    return found


def test_the_page_is_beside_the_caller_and_is_opened(saved: Path, opened: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(saved)])
    assert (done.exit_code, done.output) == (0, "run.html\n")
    assert opened == [(tmp_path / "run.html").as_uri()]
    assert "5 of 5 rows trained" in (tmp_path / "run.html").read_text()


def test_the_page_goes_where_it_is_sent_and_stays_closed(
    saved: Path, opened: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "new" / "page.html"
    options = ["report", saved.as_uri(), "--output", str(page), "--no-open", "--title", "Monday"]
    assert CliRunner().invoke(cli, options).exit_code == 0
    assert "<title>Monday</title>" in page.read_text()
    assert opened == []


def test_without_a_browser_the_page_is_there(
    saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(click, "launch", lambda _: 1)
    done = CliRunner().invoke(cli, ["report", str(saved)])
    assert done.exit_code == 0
    assert done.stdout == "run.html\n"
    assert "no browser" in done.stderr
    assert (tmp_path / "run.html").exists()


@pytest.mark.parametrize("content", [None, "other"], ids=["absent", "other"])
def test_other_files_end_with_1_and_leave_nothing(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["fatwood", "report", "x.json"])
    with pytest.raises(SystemExit, match="1"):
        main()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "x.json" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["x.json"])
