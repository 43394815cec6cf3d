"""What a model keeps on the driver between two fits."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fatwood.checkpoint import SavedRun
from fatwood.data import Layout
from fatwood.errors import OptionError, StorageError
from fatwood.train import Strategy

if TYPE_CHECKING:
    from fatwood.data.fields import Field

__all__ = ["FitState", "RunState", "schema_of"]


@dataclass(frozen=True, kw_only=True)
class FitState:
    """What a further fit needs to go on where one ended."""

    workers: int
    epochs: int
    """Of the model's life until now."""
    states: Mapping[int, Path]
    """Each worker's optimizer, residual and threshold, as files; a worker that was lost at the end has none."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    """Names, dtypes and shapes of what was trained on, as JSON values."""


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

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """Of what the last fit trained on, as JSON values."""
        return self._state.schema if self._state is not None and self._state.schema else None

    def state_for(self, strategy: Strategy) -> FitState | None:
        """What the last fit left."""
        if self._state is not None and strategy != self._strategy:
            text = f"strategy: the last fit was made with {self._strategy}, received {strategy}"
            raise OptionError(text, hint="call model.reset() to begin with fresh optimizers and residuals")
        return self._state

    def saved(self) -> SavedRun | None:
        """What a file must hold so that another process can go on; None before the first fit."""
        if self._state is None:
            return None
        about = {
            "workers": self._state.workers,
            "epochs": self._state.epochs,
            "strategy": repr(self._strategy),
        }
        return SavedRun(about=about, states=self._state.states)

    @classmethod
    def of(
        cls, saved: SavedRun, strategy: Strategy, directory: Path, schema: Mapping[str, Any] | None
    ) -> RunState:
        """The inverse of `saved`.

        Args:
            saved: What was read.
            strategy: Of the model that goes on.
            directory: Where the files are; it goes with the object.
            schema: Of the model.

        Raises:
            OptionError: The run was made with another strategy.
            StorageError: It is no run.
        """
        workers, epochs = saved.about.get("workers"), saved.about.get("epochs")
        if type(workers) is not int or type(epochs) is not int or workers < 1 or epochs < 0:
            text = (
                f"the saved run: expected numbers of workers and epochs, received {dict(saved.about)!r:.200}"
            )
            raise StorageError(text, hint="save the model again, or load it with run=False")
        expected = saved.about.get("strategy")
        if repr(strategy) != expected:
            text = f"strategy: expected {expected} as in the saved run, received {strategy!r}"
            raise OptionError(
                text, hint="SparkModel.load(uri, strategy=...) as it was, or run=False to begin anew"
            )
        state = FitState(workers=workers, epochs=epochs, states=dict(saved.states), schema=schema or {})
        return cls(state, strategy, directory)

    def close(self) -> None:
        """Remove the files."""
        self._remove()


def schema_of(layout: Layout) -> dict[str, Any]:
    """Names, dtypes and shapes of a model's inputs and of what its outputs are compared with, as JSON values.

    Args:
        layout: Of the rows that were trained on.
    """
    groups = {"features": layout.features, "label": layout.label}
    described = {
        name: {"form": group.form, "fields": [_described(part) for part in group.fields]}
        for name, group in groups.items()
        if group is not None
    }
    return described if layout.weight is None else {**described, "weight": _described(layout.weight)}


def _described(part: Field) -> dict[str, Any]:
    return {
        "name": part.name,
        "column": part.title,
        "dtype": part.dtype,
        "shape": list(part.shape),
        "steps": part.ragged,
        "divisor": part.divisor,
    }


def _remove_directory(directory: Path | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
