"""The guide's Python blocks, as they stand and in their order: they run, and do what the text beside them says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fatwood import Callback, EarlyStopping, Fit, GradientSharing, LookAhead, ResidualClipping
from fatwood.train import Strategy

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
SESSION = 'spark = SparkSession.builder.master("local[2]").getOrCreate()\n'


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run_one(block: str, names: dict[str, Any]) -> None:
    """As a script would; lines of a traceback are those of the guide."""
    line = GUIDE.read_text(encoding="utf-8").split(block)[0].count("\n")
    exec(compile("\n" * line + block, str(GUIDE), "exec"), names)


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_every_block_runs(spark, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = blocks()
    assert SESSION in first
    names: dict[str, Any] = {"__name__": "__main__", "spark": spark}
    fits: list[Fit] = []
    run_one(first.replace(SESSION, "\n"), names)
    for block in others:
        fits.append(names["fit"])
        run_one(block, names)
    fits.append(names["fit"])
    said = capsys.readouterr().out
    assert len({id(fit) for fit in fits}) == len(fits), "a block without a fit"
    for fit in fits:
        assert fit.stats.digest_equal
        assert fit.stats.rows_trained == fit.stats.rows_expected
        assert len(fit.stats.workers) == 2
    assert all(isinstance(strategy, Strategy) for strategy in names["strategies"])
    assert isinstance(names["Print"](), Callback)
    assert "epoch 1: loss" in said
    assert "validation loss" in said
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]


def test_the_defaults_that_the_guide_names_are_those_of_the_code() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    ahead = LookAhead()
    assert (
        f"LookAhead(residual={ahead.residual}, velocity={ahead.velocity}, momentum={ahead.momentum})" in text
    )
    rule = ResidualClipping()
    assert f"every {rule.every} steps residuals are cut to {rule.max_multiple:g} tau" in text
    assert f"| `patience={EarlyStopping().patience}` |" in text
    table = text.split("### `GradientSharing`", 1)[1].split("| option ", 1)[1].split("\n\n")[0]
    options = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", table, re.MULTILINE))
    code = GradientSharing()
    assert options.keys() == {f for f in code.__dataclass_fields__ if f != "every"}
    for name, shown in options.items():
        value = getattr(code, name)
        assert shown.replace('"', "'") in (repr(value), f"{type(value).__name__}()"), name
