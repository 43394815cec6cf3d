"""``fatwood pack`` as it is typed; what cannot work is told before a part is packed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fatwood.cli import cli
from fatwood.errors import OptionError, StorageError


def refusal(*arguments: str) -> Exception:
    done = CliRunner().invoke(cli, ["pack", *arguments])
    assert done.output == ""
    assert isinstance(done.exception, OptionError | StorageError)
    return done.exception


@pytest.mark.parametrize("name", ["e.tar", "e.zip", "e", "e.tar.bz2"])
def test_only_what_spark_unpacks_with_modes_and_links(name: str, tmp_path: Path) -> None:
    error = refusal(str(tmp_path / name))
    assert "expected a name that ends with .tar.gz or .tgz" in str(error)
    assert "the interpreter cannot be run then" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_to_exclude_gets_a_guess(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["pack", str(tmp_path / "e.tar.gz"), "--exclude", "Pyarow"])
    assert "hint: did you mean pyarrow?" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_another_platform_is_refused(tmp_path: Path) -> None:
    assert "in a container image" in str(refusal(str(tmp_path / "e.tar.gz"), "--platform", "win_amd64"))


def test_an_archive_that_is_not_there_is_no_archive(tmp_path: Path) -> None:
    assert "none.tar.gz" in str(refusal("--check", str(tmp_path / "none.tar.gz")))
