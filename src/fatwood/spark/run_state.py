"""What a model keeps on the driver between two fits."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from fatwood.errors import OptionError
from fatwood.train import Strategy

if TYPE_CHECKING:
    from fatwood.spark.plan import FitState

__all__ = ["RunState"]


class RunState:
    """What workers need to go on where the last fit ended: files in a directory that goes with this object."""

    def __init__(
        self, state: FitState | None = None, strategy: Strategy | None = None, directory: Path | None = None
    ) -> None:
        self._state = state
        self._strategy = strategy
        self._remove = weakref.finalize(self, _remove_directory, directory)

    @property
    def epochs(self) -> int:
        """Of all fits until now."""
        return 0 if self._state is None else self._state.epochs

    def state_for(self, strategy: Strategy) -> FitState | None:
        """What the last fit left."""
        if self._state is not None and strategy != self._strategy:
            text = f"strategy: the last fit was made with {self._strategy}, received {strategy}"
            raise OptionError(text, hint="call model.reset() to begin with fresh optimizers and residuals")
        return self._state

    def close(self) -> None:
        """Remove the files."""
        self._remove()


def _remove_directory(directory: Path | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
