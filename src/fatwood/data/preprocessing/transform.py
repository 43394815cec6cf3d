"""What preprocessing is (`Transform`), and what is learnt of the rows to fit it (`Tally`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch

from fatwood.data.fields import Dtype
from fatwood.data.preprocessing.numbers import damaged
from fatwood.errors import OptionError, SchemaError

__all__ = ["Tally", "Transform", "named", "named_tally", "own_shape", "zero_padding"]

_VERSION = 1


class Tally(ABC):
    """What a transform must know of the rows to be fitted; it merges without rounding.

    Merging is associative and commutative to the last bit, whatever the rows and their split: so what is fitted depends
    on the rows alone.
    """

    kind: ClassVar[str]

    @abstractmethod
    def update(self, values: Any) -> None:
        """Count rows, in place.

        Args:
            values: ``(n, *shape)`` numbers as NumPy has them, or the steps of all rows ``(steps, *shape)``, or an Arrow
                column of texts or lists of texts. They were checked before: no null, NaN or infinity.

        Raises:
            DataError: There is one, or there are more different values than can be kept.
            SchemaError: Another type or shape than it takes, or than before.
        """

    @abstractmethod
    def merge(self, other: Tally) -> Tally:
        """The tally of both tallies' rows; neither is changed.

        Raises:
            SchemaError: They are of different kinds or shapes.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All of it but kind and version, as JSON values; equal tallies have equal ones."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Tally:
        """The inverse of `state`, every entry checked."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"tally": self.kind, "version": _VERSION, **self.state()}

    @staticmethod
    def from_json(state: Any) -> Tally:
        """The inverse of `to_json`.

        Raises:
            UserError: It is something else.
        """
        cls, rest = _dispatched(state, "tally", _TALLIES)
        where = f"tally {cls.kind!r}"
        return cls.from_state(rest, where)


class Transform(ABC):
    """Preprocessing of one field: a value that is fitted once, saved with the model and applied wherever rows are read.

    An unfitted transform is fitted like this: `tally` gives an empty tally, which counts rows; `fitted_by` makes a new, fitted
    transform of it. What `apply` does is then the same in training, evaluation and prediction.
    """

    kind: ClassVar[str]
    takes_text: ClassVar[bool] = False
    """Whether the column may hold texts or lists of texts."""
    takes_numbers: ClassVar[bool] = True
    """Whether the column may hold numbers."""

    @property
    def fitted(self) -> bool:
        """Whether it can be applied."""
        return True

    def tally(self) -> Tally | None:
        """A new, empty tally; None where nothing has to be fitted (any more)."""
        return None

    def fitted_by(self, tally: Tally) -> Transform:
        """This transform, fitted; this one is not changed.

        Args:
            tally: From `tally`, or several of them merged.

        Raises:
            DataError: It counted no rows.
            OptionError: It is another transform's.
        """
        message = f"{self.name}: expected nothing to fit, received a tally {tally.kind!r}"
        raise OptionError(message)

    @property
    def encodes(self) -> bool:
        """Whether the column holds texts, which `encode` makes numbers of."""
        return False

    def encode(self, column: Any) -> Any:
        """Numbers for a column of texts, before its rows are checked.

        Args:
            column: An Arrow array of the field's column, n rows.

        Returns:
            The column itself; or n int64, or lists of int64, null where a row is null or not to be used.

        Raises:
            OptionError: It is not fitted.
            SchemaError: The column has another type than the one it was fitted with.
        """
        return column

    def complaint(self, value: Any) -> str | None:
        """Why one row's value becomes null in `encode`; None when it does not, or is null itself."""
        del value
        return None

    @abstractmethod
    def apply(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the network is given.

        Args:
            values: ``(B, *shape)``, or steps ``(B, T, *shape)``; not changed.
            mask: For steps ``(B, T)`` bool, True where one is real. What is padded is zero in the result.

        Returns:
            ``(B, *output_shape)``, or ``(B, T, *output_shape)``.

        Raises:
            OptionError: It is not fitted.
            SchemaError: The values have another shape than those it was fitted with.
        """

    def inverse(self, values: torch.Tensor) -> torch.Tensor:
        """Back to the user's unit: ``inverse(apply(x)) = x``, but for rounding to float32.

        Args:
            values: ``(B, *shape)``, such as a network's outputs.

        Returns:
            The same shape, float32.

        Raises:
            OptionError: It is not fitted, or cannot be undone.
        """
        del values
        message = f"{self.name}.inverse: expected a transform that can be undone, received {self.name}"
        raise OptionError(message, hint="Standardize, MinMax and ImageScale can be undone")

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one row, or one step, of the result.

        Args:
            shape: Of one row, or one step, of the values.
        """
        return shape

    def output_dtype(self, dtype: Dtype) -> Dtype:
        """Of the result.

        Args:
            dtype: Of the values.
        """
        del dtype
        return "float32"

    def require_fits(self, shape: tuple[int, ...]) -> None:
        """Check that it can be applied to rows, or steps, of a shape.

        Raises:
            SchemaError: It cannot.
        """
        del shape

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All of it but kind and version, as JSON values."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Transform:
        """The inverse of `state`, every entry checked."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object, all numbers to the last bit."""
        return {"transform": self.kind, "version": _VERSION, **self.state()}

    @staticmethod
    def from_json(state: Any) -> Transform:
        """The inverse of `to_json`.

        Raises:
            UserError: It is something else, or of a newer version.
        """
        cls, rest = _dispatched(state, "transform", _TRANSFORMS)
        try:
            return cls.from_state(rest, cls.__name__)
        except OptionError as error:  # values that the constructor refuses
            place = f"saved preprocessing, {cls.__name__}"
            raise damaged(place, "its options", error.message) from error

    def _unfitted(self) -> OptionError:
        message = f"{self.name}: expected fitted preprocessing, received one that is not fitted"
        return OptionError(message, hint="pass it to fit, which fits it; or load a saved model")


_TRANSFORMS: dict[str, type[Transform]] = {}
_TALLIES: dict[str, type[Tally]] = {}
_T = TypeVar("_T", bound=type[Transform])
_U = TypeVar("_U", bound=type[Tally])
_V = TypeVar("_V")


def named(kind: str) -> Callable[[_T], _T]:
    """Decorates a transform that JSON may name."""

    def register(cls: _T) -> _T:
        cls.kind = kind
        _TRANSFORMS[kind] = cls
        return cls

    return register


def named_tally(kind: str) -> Callable[[_U], _U]:
    """Decorates a tally that JSON may name."""

    def register(cls: _U) -> _U:
        cls.kind = kind
        _TALLIES[kind] = cls
        return cls

    return register


def _dispatched(state: Any, key: str, classes: dict[str, _V]) -> tuple[_V, dict[str, Any]]:
    kind = state.get(key) if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in classes:
        raise damaged(key, f"an object with {key!r} one of {', '.join(sorted(classes))}", f"{state!r:.60}")
    version = state.get("version")
    if type(version) is not int or version != _VERSION:
        place = f"{key} {kind!r}"
        raise damaged(place, f"version {_VERSION}", f"{version!r:.60}")
    return classes[kind], {name: value for name, value in state.items() if name not in (key, "version")}


def own_shape(values: torch.Tensor, mask: torch.Tensor | None) -> tuple[int, ...]:
    """Of one row, or of one step where there is a mask.

    Raises:
        SchemaError: The mask is not one of these values.
    """
    if mask is not None and mask.shape != values.shape[:2]:
        message = f"mask: expected {tuple(values.shape[:2])} as the steps have, received {tuple(mask.shape)}"
        raise SchemaError(message)
    return tuple(values.shape[1 if mask is None else 2 :])


def zero_padding(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The same tensor, its padded steps made zero in place."""
    if mask is None:
        return values
    padded = ~mask.reshape(*mask.shape, *(1,) * (values.dim() - 2))
    return values.masked_fill_(padded, 0.0)
