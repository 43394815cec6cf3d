"""Which numbers of a run go to a tracker, and under which names."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

from fatwood.errors import OptionError
from fatwood.train import EpochRecord, FitStats, Record, RunInfo, StepRecord

__all__ = ["about", "figures", "require", "summary"]

_COUNTS = ("step", "epoch", "rows", "rows_of_epoch", "mean_loss")
"""Numbers of a step that are places, or follow from the others."""


def about(run: RunInfo) -> dict[str, Any]:
    """What a fit is about by name, as JSON values."""
    return {
        "workers": run.workers,
        "rows": run.rows,
        "parameters": run.parameters,
        "strategy": run.strategy,
        **run.options,
    }


def figures(record: Record) -> dict[str, float]:
    """The numbers of a record by name, such as ``loss/step``; those that it does not have are left out."""
    if isinstance(record, StepRecord):
        others = [f.name for f in fields(record) if f.name not in _COUNTS]
        found = {f"{name}/step": getattr(record, name) for name in others}
    elif isinstance(record, EpochRecord):
        rate = record.rows / record.seconds if record.seconds > 0 else None
        found = {"loss/epoch": record.loss, "rows_per_second/epoch": rate}
    else:
        found = {"loss/validation": record.loss, "accuracy/validation": record.accuracy}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def summary(stats: FitStats) -> dict[str, float]:
    """The numbers of a whole fit by name."""
    return {
        "bytes_per_step/fit": float(stats.bytes_per_step),
        "bytes_sent/fit": float(sum(worker.bytes_sent for worker in stats.workers)),
        "rows_trained/fit": float(stats.rows_trained),
        "seconds/fit": float(stats.seconds),
        "workers_lost/fit": float(stats.workers_lost),
    }


def require(module: str, extra: str) -> Any:
    """A module of an optional package.

    Raises:
        OptionError: It is not installed; the hint names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        text = f"callbacks: expected the package {extra} on the driver: {error}"
        raise OptionError(text, hint=f'pip install "fatwood[{extra}]"') from error
