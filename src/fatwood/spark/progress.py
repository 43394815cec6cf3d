"""A live progress bar on the driver's terminal (tqdm)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

__all__ = ["ProgressBar"]


class ProgressBar:
    """Rows trained over all epochs, with the loss of the current one; nothing where there is no terminal.

    Args:
        epochs: Of this fit.
        first_epoch: Its number.
        rows: Of an epoch.
        shown: ``False`` never shows the bar; ``True`` shows it on a terminal or in a notebook.
    """

    def __init__(self, *, epochs: int, first_epoch: int, rows: int, shown: bool) -> None:
        self._epochs = epochs
        self._first_epoch = first_epoch
        self._rows = rows
        self._bar: Any = tqdm(
            total=rows * epochs, unit=" rows", unit_scale=True, disable=None if shown else True
        )
        self._bar.set_description("starting workers")

    def update(self, epoch: int, rows: int, loss: float) -> None:
        """Show that ``rows`` rows of an epoch are trained, with this mean loss."""
        done = epoch - self._first_epoch
        self._bar.set_description(f"epoch {done + 1}/{self._epochs}", refresh=False)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update(done * self._rows + rows - self._bar.n)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
