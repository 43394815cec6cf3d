"""What comes of a fit, beside the trained network."""

from __future__ import annotations

from dataclasses import dataclass

from fatwood.train.records import History, ValidationRecord
from fatwood.train.stats import FitStats

__all__ = ["Fit"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What :meth:`SparkModel.fit` returns."""

    history: History
    """One record per epoch: loss, rows, seconds."""
    stats: FitStats
    """Rows, bytes, phases and digests of all workers."""
    validations: tuple[ValidationRecord, ...] = ()
    """In order; those at an epoch's end are in its record, too."""
    stopped: str | None = None
    """Why it ended before its last epoch; None where it did not."""

    def __str__(self) -> str:
        lines = [str(self.history), *([f"stopped: {self.stopped}"] if self.stopped else []), str(self.stats)]
        return "\n".join(lines)
