"""A live progress bar on the driver's terminal (tqdm)."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from fatwood.train import Callback, EpochRecord, FitStats, History, RunInfo, StepRecord, ValidationRecord

__all__ = ["ProgressBar"]


class ProgressBar(Callback):
    """Rows trained over all epochs, with the loss of the current one; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._run: RunInfo | None = None
        self._bar: Any = None
        self._figures: dict[str, str] = {}

    def on_start(self, run: RunInfo) -> None:
        """Draw it empty."""
        self._run = run
        self._bar = tqdm(total=run.rows * run.epochs, unit=" rows", unit_scale=True, disable=None)
        self._bar.set_description("starting workers")

    def on_step(self, record: StepRecord) -> None:
        """Move it."""
        self._show(record.epoch, record.rows_of_epoch, record.mean_loss)

    def on_validation(self, record: ValidationRecord) -> None:
        """Show the validation's loss from now on."""
        self._figures["validation"] = f"{record.loss:.4f}"

    def on_epoch(self, record: EpochRecord) -> None:
        """Move it to the epoch's end, which the last step told is not quite."""
        self._show(record.epoch, record.rows, record.loss)

    def on_end(self, history: History, stats: FitStats) -> None:  # noqa: ARG002
        """Leave it as it is, on a line of its own."""
        self._close()

    def on_error(self, error: BaseException) -> None:  # noqa: ARG002
        """The same."""
        self._close()

    def _show(self, epoch: int, rows: int, loss: float) -> None:
        assert self._run is not None  # noqa: S101  # it was started
        done = epoch - self._run.first_epoch
        self._bar.set_description(f"epoch {done + 1}/{self._run.epochs}", refresh=False)
        self._bar.set_postfix({"loss": f"{loss:.4f}", **self._figures}, refresh=False)
        self._bar.update(done * self._run.rows + rows - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
