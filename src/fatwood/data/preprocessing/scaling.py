"""Numbers brought to a common scale: `Standardize`, `MinMax`, `ImageScale`.

The map of a number ``x`` is ``(x - shift) * gain + offset``, computed in float64 and rounded to float32 once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch

from fatwood.data.preprocessing.measures import Extremes, Moments, Per
from fatwood.data.preprocessing.numbers import Numbers, damaged, entries
from fatwood.data.preprocessing.transform import Tally, Transform, named, own_shape, zero_padding
from fatwood.errors import OptionError, SchemaError

__all__ = ["ImageScale", "MinMax", "Standardize"]

_NUMBERS = (dict, type(None))
_BLOCK_NUMBERS = 1 << 16  # as float64 they stay in the cache


class _Fitted(Transform):
    """A map with numbers that are measured: of the shape of a row, or one for all."""

    per: Per

    @property
    @abstractmethod
    def measured(self) -> tuple[Numbers, Numbers] | None:
        """What was measured; None before."""

    @property
    @abstractmethod
    def line(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Shift, gain (0 where a feature is constant) and offset of the map."""

    @property
    def fitted(self) -> bool:
        """Whether it can be applied."""
        return self.measured is not None

    def apply(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See `Transform.apply`."""
        self.require_fits(own_shape(values, mask))
        shift, gain, offset = self._line()
        result = torch.empty(values.shape, dtype=torch.float32)
        rows = max(1, _BLOCK_NUMBERS // max(1, math.prod(values.shape[1:])))
        for part, into in zip(torch.split(values, rows), torch.split(result, rows), strict=True):
            into.copy_(part.to(torch.float64, copy=True).sub_(shift).mul_(gain).add_(offset))
        return zero_padding(result, mask)

    def inverse(self, values: torch.Tensor) -> torch.Tensor:
        """See `Transform.inverse`; the numbers of a constant feature become the one that it always had."""
        shift, gain, offset = self._line()
        own = tuple(shift.shape)
        if values.shape[values.dim() - len(own) :] != own:
            message = f"{self.name}.inverse: expected numbers of shape {('B', *own)}, received {tuple(values.shape)}"
            raise SchemaError(message)
        steps = torch.where(gain > 0, 1.0 / gain, 0.0)
        return values.to(torch.float64, copy=True).sub_(offset).mul_(steps).add_(shift).to(torch.float32)

    def require_fits(self, shape: tuple[int, ...]) -> None:
        """See `Transform.require_fits`."""
        if self.measured is None or self.per == "all":
            return
        own = self.measured[0].shape
        if own != shape:
            message = f"{self.name}: expected rows of shape {own}, which it was fitted with, received {shape}"
            raise SchemaError(message, hint="give it the columns it was fitted with, or fit a new one")

    def _line(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        if self.measured is None:
            raise self._unfitted()
        return self.line

    def _check(self, where: str) -> None:
        """The options that all have."""
        if self.per not in get_args(Per):
            message = f"{where}: per: expected 'feature' or 'all', received {self.per!r}"
            raise OptionError(message)
        if self.measured is not None and self.measured[0].shape != self.measured[1].shape:
            message = f"{where}: expected measures of one shape, received {self.measured[0].shape} and {self.measured[1].shape}"
            raise OptionError(message)

    def _tally_of(self, kind: type[Any], tally: Tally) -> Any:
        if not isinstance(tally, kind) or getattr(tally, "per", None) != self.per:
            message = f"{self.name}: expected its own tally, received one of {tally.kind}"
            raise OptionError(message)
        return tally


@named("standardize")
@dataclass(frozen=True)
class Standardize(_Fitted):
    """Mean 0 and standard deviation 1: ``(x - mean) / std``, with the population's std as in Deeplearning4j.

    A feature that was constant becomes 0, whatever it is later. (Deeplearning4j divides by 1e-5 there.)

    Args:
        per: ``"feature"`` for a mean and a standard deviation of each number of a row (of a step, where rows have steps);
            ``"all"`` for one of all, such as of all pixels.
        epsilon: The greatest standard deviation of a feature that counts as constant. At least 0.
        mean: What was measured; None before it is fitted.
        std: Likewise.

    Example:
        >>> standardize = Standardize()
        >>> tally = standardize.tally()
        >>> tally.update(np.array([[1.0, 7.0], [3.0, 7.0]], np.float32))
        >>> standardize.fitted_by(tally).apply(torch.tensor([[1.0, 7.0], [5.0, 8.0]]))
        tensor([[-1.,  0.],
                [ 3.,  0.]])
    """

    per: Per = "feature"
    epsilon: float = 0.0
    mean: Numbers | None = field(default=None, kw_only=True)
    std: Numbers | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon < math.inf:
            message = (
                f"Standardize: epsilon: expected a finite number of at least 0, received {self.epsilon!r}"
            )
            raise OptionError(message)
        if (self.mean is None) != (self.std is None) or (self.std is not None and (self.std.array < 0).any()):
            message = "Standardize: expected mean and std, which is at least 0, or neither"
            raise OptionError(message)
        self._check("Standardize")

    @property
    def measured(self) -> tuple[Numbers, Numbers] | None:
        """Mean and standard deviation."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    def tally(self) -> Moments | None:
        """See `Transform.tally`."""
        return None if self.fitted else Moments(self.per)

    def fitted_by(self, tally: Tally) -> Standardize:
        """See `Transform.fitted_by`."""
        mean, std = self._tally_of(Moments, tally).mean_and_std()
        return replace(self, mean=mean, std=std)

    @cached_property
    def line(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """See `_Fitted`."""
        assert self.mean is not None and self.std is not None  # noqa: PT018, S101  asked for when fitted
        return self.mean.tensor, _gain(self.std.tensor, 1.0, self.epsilon), 0.0

    def state(self) -> dict[str, Any]:
        """See `Transform.state`."""
        return {
            "per": self.per,
            "epsilon": self.epsilon,
            "mean": None if self.mean is None else self.mean.to_json(),
            "std": None if self.std is None else self.std.to_json(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Standardize:
        """See `Transform.from_state`."""
        found = entries(state, where, {"per": str, "epsilon": float, "mean": _NUMBERS, "std": _NUMBERS})
        mean, std = (_numbers(found[name], f"{where}, {name!r}") for name in ("mean", "std"))
        return cls(found["per"], float(found["epsilon"]), mean=mean, std=std)


@named("min_max")
@dataclass(frozen=True)
class MinMax(_Fitted):
    """The least number becomes `low`, the greatest `high`; those beyond, seen later, are not clipped.

    A feature that was constant becomes `low`, whatever it is later.

    Args:
        low: At least -3.4e38.
        high: Greater than `low`.
        per: ``"feature"`` for extremes of each number of a row (of a step, where rows have steps); ``"all"`` for those of all.
        least: What was measured; None before it is fitted.
        greatest: Likewise.

    Example:
        >>> scale = MinMax(-1.0, 1.0)
        >>> tally = scale.tally()
        >>> tally.update(np.array([10, 20, 15]))
        >>> scale.fitted_by(tally).apply(torch.tensor([10, 15, 25]))
        tensor([-1.,  0.,  2.])
    """

    low: float = 0.0
    high: float = 1.0
    per: Per = field(default="feature", kw_only=True)
    least: Numbers | None = field(default=None, kw_only=True)
    greatest: Numbers | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        limit = float(np.finfo(np.float32).max)
        if not -limit <= self.low < self.high <= limit:
            message = f"MinMax: expected finite low < high, received low={self.low!r} and high={self.high!r}"
            raise OptionError(message)
        self._check("MinMax")
        pair = self.measured
        unpaired = (self.least is None) != (self.greatest is None)
        if unpaired or (pair is not None and (pair[0].array > pair[1].array).any()):
            message = "MinMax: expected least, and greatest of at least that, or neither"
            raise OptionError(message)

    @property
    def measured(self) -> tuple[Numbers, Numbers] | None:
        """The least and the greatest number."""
        return None if self.least is None or self.greatest is None else (self.least, self.greatest)

    def tally(self) -> Extremes | None:
        """See `Transform.tally`."""
        return None if self.fitted else Extremes(self.per)

    def fitted_by(self, tally: Tally) -> MinMax:
        """See `Transform.fitted_by`."""
        least, greatest = self._tally_of(Extremes, tally).least_and_greatest()
        return replace(self, least=least, greatest=greatest)

    @cached_property
    def line(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """See `_Fitted`."""
        assert self.least is not None and self.greatest is not None  # noqa: PT018, S101  asked for when fitted
        spread = self.greatest.tensor - self.least.tensor
        return self.least.tensor, _gain(spread, self.high - self.low, 0.0), self.low

    def state(self) -> dict[str, Any]:
        """See `Transform.state`."""
        return {
            "low": self.low,
            "high": self.high,
            "per": self.per,
            "least": None if self.least is None else self.least.to_json(),
            "greatest": None if self.greatest is None else self.greatest.to_json(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> MinMax:
        """See `Transform.from_state`."""
        kinds: dict[str, type | tuple[type, ...]]
        kinds = {"low": float, "high": float, "per": str, "least": _NUMBERS, "greatest": _NUMBERS}
        found = entries(state, where, kinds)
        least, greatest = (_numbers(found[name], f"{where}, {name!r}") for name in ("least", "greatest"))
        low, high = float(found["low"]), float(found["high"])
        return cls(low, high, per=found["per"], least=least, greatest=greatest)


@named("image_scale")
@dataclass(frozen=True)
class ImageScale(Transform):
    """Images by channel, ``(x - mean) / std``, with numbers that are known; nothing is fitted.

    Computed in float32, as torchvision's ``Normalize`` does it. An `ImageColumn` has pixels in [0, 1] already.

    Args:
        mean: Of each channel, in the unit of the pixels; one number stands for all channels.
        std: Likewise; above 0.

    Example:
        >>> ImageScale(mean=(0.5, 0.25), std=(0.5, 0.25)).apply(torch.ones(1, 2, 1, 1)).flatten()
        tensor([1., 3.])
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, int | float) else tuple(given)
            if not values or not all(
                isinstance(value, int | float) and math.isfinite(value) for value in values
            ):
                message = f"ImageScale: {name}: expected a finite number, or one for each channel, received {given!r}"
                raise OptionError(message)
            object.__setattr__(self, name, tuple(float(value) for value in values))
        mean, std = self._pair
        if min(std) <= 0 or (len(mean) != len(std) and 1 not in (len(mean), len(std))):
            message = (
                f"ImageScale: expected as many std, above 0, as mean, received mean={mean} and std={std}"
            )
            raise OptionError(message)

    @property
    def _pair(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        assert isinstance(self.mean, tuple) and isinstance(self.std, tuple)  # noqa: PT018, S101  made so above
        return self.mean, self.std

    @cached_property
    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in self._pair)
        return mean, std

    def apply(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See `Transform.apply`."""
        self.require_fits(own_shape(values, mask))
        mean, std = self._tensors
        return zero_padding(values.to(torch.float32).sub(mean).div_(std), mask)

    def inverse(self, values: torch.Tensor) -> torch.Tensor:
        """See `Transform.inverse`."""
        self.require_fits(tuple(values.shape[1:]))
        mean, std = self._tensors
        return values.to(torch.float32).mul(std).add_(mean)

    def require_fits(self, shape: tuple[int, ...]) -> None:
        """See `Transform.require_fits`."""
        channels = max(map(len, self._pair))
        if len(shape) != 3 or channels not in (1, shape[0]):
            wanted = "(C, H, W)" if channels == 1 else f"({channels}, H, W)"
            message = f"ImageScale: expected images of shape {wanted}, received {shape}"
            raise SchemaError(message, hint="DenseColumn(column, shape=(C, H, W)) makes images of numbers")

    def state(self) -> dict[str, Any]:
        """See `Transform.state`."""
        mean, std = self._pair
        return {"mean": list(mean), "std": list(std)}

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> ImageScale:
        """See `Transform.from_state`."""
        found = entries(state, where, {"mean": list, "std": list})
        if any(type(value) not in (int, float) for value in (*found["mean"], *found["std"])):
            raise damaged(where, "numbers", f"{found!r:.60}")
        return cls(tuple(found["mean"]), tuple(found["std"]))


def _gain(spread: torch.Tensor, wanted: float, epsilon: float) -> torch.Tensor:
    """What brings a spread to the one that is wanted; 0 where it is not greater than epsilon."""
    return torch.where(spread > epsilon, wanted / spread, 0.0)


def _numbers(state: Any, where: str) -> Numbers | None:
    return None if state is None else Numbers.from_json(state, where)
