"""The bar is a callback like others; here it is drawn on a made-up terminal."""

from __future__ import annotations

import io
from functools import partial

import pytest
from tqdm import tqdm

from fatwood.errors import UserCodeError
from fatwood.spark.progress import ProgressBar


class Terminal(io.StringIO):
    """What tqdm takes for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr("fatwood.spark.progress.tqdm", partial(tqdm, file=screen, mininterval=0, ncols=120))
    return screen


def test_rows_of_all_epochs_with_losses(terminal, replay) -> None:
    replay(ProgressBar())
    lines = terminal.getvalue().replace("\n", "\r").split("\r")
    assert any(line.startswith("starting workers:   0%") for line in lines)
    assert any(line.startswith("epoch 1/2:  25%") and "loss=2.0000" in line for line in lines)
    last = [line for line in lines if line.strip()][-1]
    assert last.startswith("epoch 2/2: 100%")
    assert "16.0/16.0" in last
    assert "loss=0.6000, validation=0.2500" in last
    assert terminal.getvalue().endswith("\n")


def test_it_is_closed_when_the_fit_fails(terminal, replay) -> None:
    replay(ProgressBar(), UserCodeError("x"))
    assert terminal.getvalue().endswith("\n")


def test_nothing_is_drawn_where_there_is_no_terminal(capsys, replay) -> None:
    replay(ProgressBar())
    assert capsys.readouterr() == ("", "")
