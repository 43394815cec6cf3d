"""How dense the first steps are, and the threshold that sends a given share.

Early updates are large and change fast, so holding most of them back hurts most then. The density therefore starts
high and falls geometrically, as in Y. Lin, S. Han, H. Mao, Y. Wang, W. J. Dally, "Deep Gradient Compression: Reducing
the Communication Bandwidth for Distributed Training", ICLR 2018 (https://arxiv.org/abs/1712.01887, section 3.3).

Shapes: ``n`` parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.codec import kernel
from fatwood.codec.sampling import sample_places
from fatwood.codec.vectors import Difference, Update, Vector, computed, host
from fatwood.errors import OptionError

__all__ = ["DensityWarmup", "quantile_tau"]


@dataclass(frozen=True, kw_only=True)
class DensityWarmup:
    """Sends a falling share of the parameters in the first steps of a model's life.

    At step ``t < steps`` the share is::

        initial * (final / initial) ** (t / (steps - 1))

    and tau is where `quantile_tau` puts it. From step ``steps`` on the threshold's rule chooses tau, starting from the
    warm-up's last one (`FixedThreshold` has its own). Residual clipping waits until then: its bound is in units of
    tau, and here tau follows the residual.

    >>> [DensityWarmup(steps=3, initial=0.25, final=0.01).density(step) for step in range(4)]
    [0.25, 0.05, 0.01, None]
    """

    steps: int
    """How many steps are sent by density."""

    initial: float = 0.25
    """The share of step 0, at most 1. At 1 all values are sent as they are, rounded to float16 where they fit in."""

    final: float = 1e-2
    """The share of the last of these steps, at most ``initial``; with ``steps=1`` it is not used."""

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            msg = f"DensityWarmup.steps: expected a whole number of at least 1, received {self.steps!r}"
            raise OptionError(msg, hint="pass warmup=None for no warm-up")
        if not 0.0 < self.final <= self.initial <= 1.0:
            msg = (
                "DensityWarmup: expected 0 < final <= initial <= 1, "
                f"received initial={self.initial!r} and final={self.final!r}"
            )
            raise OptionError(msg, hint="both are shares of the parameters, for example 0.25 and 0.01")

    def density(self, step: int) -> float | None:
        """The share of the parameters to send at a step of the model's life; None when the warm-up is over."""
        if step >= self.steps:
            return None
        return float(self.initial * (self.final / self.initial) ** (step / max(1, self.steps - 1)))


def quantile_tau(residual: Vector, delta: Update, density: float) -> float | None:
    """The threshold that a given share of ``|residual + delta|`` reaches.

    With ``m`` magnitudes it is the ``round(density * m)``-th largest (at least the first), or the smallest above zero
    when fewer are. Exact up to 2**18 parameters; beyond, so many are looked at, always the same ones, runs of eight
    neighbours from equal stretches. The relative error of the share is about ``1 / sqrt(density * 2**18)``, 2 % at 1e-2,
    where neighbours are as independent as others, and up to ``sqrt(8)`` times that where they are alike.

    Args:
        residual: (n,) float32, left alone.
        delta: (n,) float32 of the same kind and device, left alone, or two whose difference is meant.
        density: Above 0, at most 1.

    Returns:
        A normal float32 number, the same for arrays and tensors; None when all finite sums are zero.

    Example:
        >>> quantile_tau(np.float32([0, 1, -2, 0]), np.float32([4, 2, -3, 0]), density=0.5)
        4.0
    """
    magnitudes = _sampled_magnitudes(residual, delta)
    rank = max(1, round(density * magnitudes.size))
    magnitudes = _positive(magnitudes)
    if not magnitudes.size:  # an update of a few rows of an embedding may slip through the sample
        magnitudes = _positive(_magnitudes(residual, delta))
        rank = magnitudes.size
    if not magnitudes.size:
        return None
    at = max(0, magnitudes.size - rank)
    tau = float(np.partition(magnitudes, at)[at])
    return max(tau, float(np.finfo(np.float32).tiny))


def _sampled_magnitudes(residual: Vector, delta: Update) -> NDArray[np.float32]:
    places = sample_places(residual.shape[0])
    if places is None:
        return _magnitudes(residual, delta)
    if isinstance(delta, Difference):
        return _magnitudes(
            _gather(residual, places), Difference(_gather(delta.after, places), _gather(delta.before, places))
        )
    return _magnitudes(_gather(residual, places), _gather(delta, places))


def _gather(vector: Vector, places: NDArray[np.int64]) -> Vector:
    if isinstance(vector, torch.Tensor):
        return vector[torch.from_numpy(places.copy()).to(vector.device)]
    return kernel.active().gather(vector, places)


def _magnitudes(residual: Vector, delta: Update) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # the encoder finds and names what is not finite
        return np.abs(host(residual + computed(delta)))


def _positive(magnitudes: NDArray[np.float32]) -> NDArray[np.float32]:
    return magnitudes[(magnitudes > 0.0) & (magnitudes < np.inf)]
