"""What `Exchange.mean` must do: part of the laws of `fatwood.testing.exchange`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fatwood.errors import ProtocolError
from fatwood.exchange import Exchange
from fatwood.testing.groups import MakeGroup, connected, errors_of, in_threads

__all__ = ["MEAN_LAWS", "mean_of_all"]

_SIZES: Final = (1, 2, 3, 4)


def mean_of_all(
    group: Sequence[Exchange], vectors: Sequence[NDArray[np.float32]], weights: Sequence[float]
) -> list[NDArray[np.float32]]:
    """Every worker gives its vector and weight."""
    return in_threads([partial(e.mean, v, w) for e, v, w in zip(group, vectors, weights, strict=True)])


def mean_is_the_weighted_mean(make_group: MakeGroup) -> None:
    """Against float64, within one rounding; bitwise equal on all workers; for any values, lengths and weights."""
    for size in _SIZES:
        with connected(make_group, size) as group:
            _check_mean(group)


def _check_mean(group: Sequence[Exchange]) -> None:
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    weight = st.one_of(st.just(0.0), st.integers(1, 1000).map(float), st.floats(0, 1e308))

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        n = data.draw(st.integers(0, 9))
        vectors = np.array(
            [data.draw(st.lists(value, min_size=n, max_size=n)) for _ in group], np.float32
        ).reshape(len(group), n)
        weights = [data.draw(weight) for _ in group]
        means = mean_of_all(group, list(vectors), weights)
        assert all(mean.dtype == np.float32 and mean.shape == (n,) for mean in means)
        assert all(mean.tobytes() == means[0].tobytes() for mean in means)
        expected, slack = _reference_mean(vectors, weights)
        assert np.all(np.abs(means[0] - expected) <= slack), (means[0], expected)

    check()


def _reference_mean(
    vectors: NDArray[np.float32], weights: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean in float64 with weights scaled to at most 1, and half a float32 step of it as allowance."""
    heaviest = max(weights)
    if heaviest == 0:
        zeros = np.zeros(vectors.shape[1])
        return zeros, zeros
    shares = np.array([weight / heaviest for weight in weights])
    expected = (shares[:, None] * vectors.astype(np.float64)).sum(axis=0) / shares.sum()
    rounding = np.abs(expected) * 2.0**-24 + 2.0**-150
    return expected, rounding + np.abs(vectors).max(axis=0, initial=0.0).astype(np.float64) * 1e-14


def mean_leaves_out_workers_of_weight_zero(make_group: MakeGroup) -> None:
    """Weight 0 leaves out even NaNs; all weights 0 give zeros; inf and NaN of the others pass through."""
    inputs = [([np.nan, 1.0, 3.0], 0.0), ([2.0, np.inf, 4.0], 1.0), ([6.0, 1.0, np.nan], 3.0)]
    with connected(make_group, 3) as group:
        vectors = [np.array(values, np.float32) for values, _ in inputs]
        means = mean_of_all(group, vectors, [weight for _, weight in inputs])
        assert np.array_equal(means[0], np.array([5.0, np.inf, np.nan], np.float32), equal_nan=True)
        assert all(mean.tobytes() == means[0].tobytes() for mean in means)
        zeros = mean_of_all(group, vectors, [0.0] * 3)
        assert all(mean.tolist() == [0.0, 0.0, 0.0] for mean in zeros)


def mean_sends_each_element_twice(make_group: MakeGroup) -> None:
    """2 n (W-1)/W x 4 bytes for each worker, give or take headers; the input is not touched."""
    n = 400_001
    for size in _SIZES:
        with connected(make_group, size) as group:
            vector = np.linspace(-1, 1, n, dtype=np.float32)
            means = mean_of_all(group, [vector * rank for rank in range(size)], [1.0] * size)
            np.testing.assert_allclose(means[0], vector * ((size - 1) / 2), rtol=1e-6)
            expected = 8 * n * (size - 1) / size
            for exchange in group:
                allowance = 100 * (size - 1)
                assert expected - allowance <= exchange.bytes_sent <= expected + allowance
            assert sum(e.bytes_sent for e in group) == sum(e.bytes_received for e in group)


def vectors_of_unequal_length_are_a_protocol_error(make_group: MakeGroup) -> None:
    """Also when one of them is empty."""
    for lengths in ((5, 6, 5), (0, 0, 1)):
        with connected(make_group, 3) as group:
            vectors = [np.ones(n, np.float32) for n in lengths]
            errors = errors_of([partial(e.mean, v, 1.0) for e, v in zip(group, vectors, strict=True)])
            assert all(isinstance(error, ProtocolError) for error in errors), errors
            assert all(re.search(rf"\b{n}\b", str(errors[0])) for n in lengths), errors[0]


MEAN_LAWS: Final[tuple[Callable[[MakeGroup], None], ...]] = (
    mean_is_the_weighted_mean,
    mean_leaves_out_workers_of_weight_zero,
    mean_sends_each_element_twice,
    vectors_of_unequal_length_are_a_protocol_error,
)
"""Every law of the mean; each takes a `MakeGroup` and raises when the law is broken."""
