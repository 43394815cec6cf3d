"""What ``encoding_debug`` measures of a message, and the two rules of thumb as findings.

The unit is tau: with ``r`` the residual and ``d`` the update, the figures are those of ``|r + d| / tau`` before
anything is taken out. One step sends at most ``tau`` of a value, so a value of ``m`` tau needs ``m`` steps.

Deeplearning4j prints the same figures with ``encodingDebugMode`` and its guide gives the rules; here they are applied:

1. many values at tens or hundreds of tau: tau is too small, what is sent runs behind what is learnt;
2. fewer than 1 in 10 000 values sent: tau is too large, the workers hardly speak.

Shapes: ``n`` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.codec.sampling import sample_places

__all__ = ["EncodingRecord", "Multiples", "findings", "multiples"]

_LEVELS = (0.5, 0.95, 0.99, 0.999, 0.9999)
_CHUNK = 1 << 18
"""Values looked at at once, so that their sums stay in the cache."""

_JUDGED_STEPS = 10
_JUDGED_VALUES = 100_000
_RARE = 1e-4
_TENS, _HUNDREDS = 10.0, 100.0


class Multiples(NamedTuple):
    """How large the values are in multiples of tau, before anything is taken out; all zero where there are none."""

    mean: float
    p50: float  # the median: half of the values are at most this
    p95: float
    p99: float
    p99_9: float
    p99_99: float
    max: float


@dataclass(frozen=True, kw_only=True)
class EncodingRecord:
    """What one worker sent at one step, and what it held back."""

    step: int
    """Counted from 0 over the model's life."""
    tau: float
    """The threshold, as sent."""
    n: int
    """Parameters."""
    count: int
    """Values that reached tau and were sent."""
    bytes: int
    """Length of the encoded message."""
    clipped_mass: float
    """Sum of the absolute values that clipping threw away, in the units of the parameters."""
    residual_norm: float
    """L2 norm of what is held back after the message, in the units of the parameters."""
    multiples: Multiples

    @property
    def sparsity(self) -> float:
        """The share of the parameters that was sent."""
        return self.count / self.n if self.n else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"multiples": self.multiples._asdict()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EncodingRecord:
        """From the values of `to_json`.

        Raises:
            TypeError: A value is missing or unknown, or is no number.
            KeyError: There are no multiples.
            ValueError: Tau is not positive.
        """
        given = {**values, "multiples": Multiples(**values["multiples"])}
        record = cls(**given)
        numbers = [value for name, value in given.items() if name != "multiples"]
        if not all(isinstance(number, int | float) for number in [*numbers, *record.multiples]):
            msg = f"encoding record: expected numbers, received {values!r:.200}"
            raise TypeError(msg)
        if not record.tau > 0.0:
            msg = f"encoding record: expected a positive tau, received {record.tau!r}"
            raise ValueError(msg)
        return record

    def __str__(self) -> str:
        m = self.multiples
        quantiles = f"{m.p50:.3g} {m.p95:.3g} {m.p99:.3g} {m.p99_9:.3g} {m.p99_99:.3g}"
        return (
            f"step {self.step}: tau {self.tau:.3g}, sent {self.count:,} of {self.n:,} ({self.sparsity:.2e}) in "
            f"{self.bytes:,} bytes; in tau: mean {m.mean:.3g}, quantiles 50/95/99/99.9/99.99 % {quantiles}, "
            f"max {m.max:.3g}, held back {self.residual_norm / self.tau:.3g}, clipped {self.clipped_mass / self.tau:.3g}"
        )


def multiples(
    residual: NDArray[np.float32] | torch.Tensor, delta: NDArray[np.float32] | torch.Tensor, tau: float
) -> Multiples:
    """Measures ``|residual + delta| / tau``; neither vector is changed.

    Mean and maximum are exact up to rounding. Quantiles interpolate linearly; of more than 262 144 values they
    are taken from a sample of so many, runs of eight neighbours from equal stretches. The places
    depend on ``n`` alone, so the same vectors give the same figures. Of a tensor on a GPU only the sample leaves it.

    Args:
        residual: (n,) float32, on any device.
        delta: (n,) float32, the update that will be added; on the residual's device.
        tau: The threshold, positive.

    >>> multiples(np.array([0.0, 0.5, 0.0], np.float32), np.array([0.5, 0.5, -3.0], np.float32), tau=0.5).max
    6.0
    """
    r, d = _tensor(residual), _tensor(delta)
    n = r.numel()
    if not n:
        return Multiples(*(0.0 for _ in Multiples._fields))
    total = torch.zeros((), dtype=torch.float64, device=r.device)
    largest = torch.zeros((), device=r.device)
    for start in range(0, n, _CHUNK):
        part = (r[start : start + _CHUNK] + d[start : start + _CHUNK]).abs_()
        total += part.sum(dtype=torch.float64)
        largest = torch.maximum(largest, part.max())
    places = sample_places(n)
    if places is not None:
        chosen = torch.from_numpy(places.copy()).to(r.device)
        r, d = r[chosen], d[chosen]
    sample = (r + d).abs_().double().cpu().numpy()
    with np.errstate(invalid="ignore"):  # the kernel finds and names what is not finite
        quantiles = np.quantile(sample, _LEVELS) / tau
    return Multiples(*[float(total) / n / tau, *quantiles.tolist(), float(largest) / tau])


def findings(records: Sequence[EncodingRecord]) -> list[str]:
    """What a worker's records say against its threshold, and what to do; empty when all is well.

    Only the second half of the records is judged, when tau has settled, and only 10 steps or more. Per step:

    1. too small: 1 value in 100 is at 10 tau or more, or 1 in 1 000 at 100 tau or more, in at least half of the steps;
    2. too large: all in all fewer than 1 value in 10 000 was sent, where there was occasion to send 100 000.

    `ResidualClipping` at its defaults keeps what is held back below 5 tau, so the first rule then means that single
    updates are that large. An adaptive threshold keeps off the second by itself, once it has had the steps.

    Args:
        records: Of one worker, in the order of the steps; some may be left out, evenly.
    """
    judged = records[len(records) // 2 :]
    if len(judged) < _JUDGED_STEPS:
        return []
    tau = median(record.tau for record in judged)
    over = f"over {len(judged)} steps up to step {judged[-1].step}, tau {tau:.3g}"
    p99 = median(record.multiples.p99 for record in judged)
    p99_9 = median(record.multiples.p99_9 for record in judged)
    if p99 >= _TENS or p99_9 >= _HUNDREDS:
        better = tau * max(p99 / _TENS, p99_9 / _HUNDREDS)
        return [
            f"many values are at tens or hundreds of tau: 1 in 100 at {p99:.3g} tau or more, 1 in 1 000 at {p99_9:.3g} "
            f"({over}); what is learnt is sent late: raise tau beyond {better:.2g} (an adaptive threshold: lower "
            "max_sparsity), or clip harder (a lower max_multiple of ResidualClipping)"
        ]
    values = sum(record.n for record in judged)
    share = sum(record.count for record in judged) / values if values else math.inf
    if values >= _JUDGED_VALUES and share < _RARE:
        rarity = f"1 in {1 / share:,.0f}" if share else "none"
        return [
            f"fewer than 1 value in 10 000 was sent: {rarity} ({over}); workers hardly learn of each other: lower tau, "
            f"1 in 1 000 reached {tau * p99_9:.2g} (an adaptive threshold: raise min_sparsity, or lower initial)"
        ]
    return []


def _tensor(vector: NDArray[np.float32] | torch.Tensor) -> torch.Tensor:
    if isinstance(vector, torch.Tensor):
        return vector.detach()
    return torch.from_numpy(vector if vector.flags.writeable else vector.copy())
