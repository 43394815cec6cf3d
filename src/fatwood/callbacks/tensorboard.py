"""A fit as TensorBoard's event files."""

from __future__ import annotations

import os
from typing import Any

from fatwood.callbacks.figures import about, figures, require, summary
from fatwood.errors import OptionError
from fatwood.train import (
    Callback,
    EpochRecord,
    FitStats,
    History,
    Record,
    RunInfo,
    StepRecord,
    ValidationRecord,
)

__all__ = ["TensorBoard"]

_FLUSH_SECONDS = 5


class TensorBoard(Callback):
    """Writes scalars and options for TensorBoard, in a local folder of the driver.

    Steps count over the model's life, so further fits with the same folder go on with the same curves.

    Args:
        log_dir: The folder; made when there is none.
        every: A step is written when at least so many have passed since the last one.

    Raises:
        OptionError: ``every`` is no whole number of at least 1, or the extra ``tensorboard`` is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str], every: int = 1) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            text = f"TensorBoard: expected every= a whole number of at least 1, received {every!r}"
            raise OptionError(text)
        self._log_dir = os.fspath(log_dir)
        self._every = every
        self._next = 0
        self._last = 0
        self._writer: Any = None
        self._make = require("torch.utils.tensorboard", "tensorboard").SummaryWriter

    def on_start(self, run: RunInfo) -> None:
        """Begin a file with what the run is about."""
        self._next = 0
        self._writer = self._make(self._log_dir, flush_secs=_FLUSH_SECONDS)
        lines = [f"| {name} | {_cell(value)} |" for name, value in about(run).items()]
        self._writer.add_text("options", "\n".join(["| option | value |", "|---|---|", *lines]), 0)

    def on_step(self, record: StepRecord) -> None:
        """Write its loss, and what else there is."""
        self._last = record.step
        if record.step >= self._next:
            self._next = record.step + self._every
            self._write(record, record.step)

    def on_validation(self, record: ValidationRecord) -> None:
        """Write loss and accuracy."""
        self._write(record, record.step)

    def on_epoch(self, record: EpochRecord) -> None:
        """Write loss and rows a second, over the number of epochs."""
        self._write(record, record.epoch + 1)
        self._writer.flush()

    def on_end(self, history: History, stats: FitStats) -> None:  # noqa: ARG002
        """Write the figures of the whole fit."""
        for name, value in summary(stats).items():
            self._writer.add_scalar(name, value, self._last)
        self._writer.close()

    def on_error(self, error: BaseException) -> None:
        """Write what was raised."""
        if self._writer is not None:
            self._writer.add_text("error", f"{type(error).__name__}: {error}", self._last)
            self._writer.close()

    def _write(self, record: Record, step: int) -> None:
        for name, value in figures(record).items():
            self._writer.add_scalar(name, value, step)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
