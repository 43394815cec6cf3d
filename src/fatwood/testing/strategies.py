"""Hypothesis strategies for sparse updates at any density.

They need hypothesis, which only tests need: ``pip install hypothesis``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

__all__ = ["SparseVector", "densities", "float32_vectors", "sparse_vectors"]


class SparseVector(NamedTuple):
    """Signed positions in a vector of ``n`` elements."""

    n: int
    positions: NDArray[np.int64]  # (count,) ascending, unique, in range(n)
    negative: NDArray[np.bool_]  # (count,)


def densities() -> st.SearchStrategy[float]:
    """Shares of elements that are set: 0 and 1 included, small ones as likely as large ones."""
    return st.one_of(
        st.sampled_from([0.0, 1.0, 0.5, 1e-4, 1e-3, 1e-2]),
        st.floats(-4.0, 0.0).map(lambda exponent: float(10.0**exponent)),
        st.floats(0.0, 1.0),
    )


@st.composite
def sparse_vectors(draw: st.DrawFn, *, max_n: int = 5000, clustered: bool | None = None) -> SparseVector:
    """Signed positions of any density, spread evenly or in clusters.

    The positions come from a drawn seed, so an example of thousands of elements is as cheap as one of three.

    Args:
        draw: Given by hypothesis.
        max_n: The longest vector.
        clustered: Whether the positions gather at the vector's start; None draws that too.
    """
    n = draw(st.one_of(st.integers(0, 20), st.integers(0, max_n)))
    density = draw(densities())
    gather = draw(st.booleans()) if clustered is None else clustered
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Density to a rising power: 0 stays 0, 1 stays 1, and what lies between thins out towards the end.
    local_density = density ** np.linspace(0.5, 4.0, n) if gather else np.full(n, density)
    positions = np.flatnonzero(rng.random(n) < local_density)
    share = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    return SparseVector(n, positions, rng.random(positions.size) < share)


def float32_vectors(
    n: int | st.SearchStrategy[int] = 100, *, largest: float = 1e3
) -> st.SearchStrategy[NDArray[np.float32]]:
    """Finite float32 vectors, exact zeros and tiny values included.

    Args:
        n: The length, or a strategy for it.
        largest: Bound on the absolute values.
    """
    bound = float(np.float32(largest))
    return hnp.arrays(np.float32, n, elements=st.floats(-bound, bound, width=32))
