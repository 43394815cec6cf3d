from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Permutation, permutation_key
from fatwood.errors import OptionError

keys = st.integers(0, 2**64 - 1)


@given(n=st.integers(0, 3000), key=keys)
@settings(max_examples=60, deadline=None)
def test_it_is_a_bijection(n: int, key: int) -> None:
    order = Permutation(n, key)[:]
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


@given(n=st.integers(1, 2**62), key=keys, data=st.data())
@settings(max_examples=40, deadline=None)
def test_values_of_a_huge_permutation_are_distinct_and_in_range(
    n: int, key: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=50))
    values = Permutation(n, key)[np.array(positions, dtype=np.int64)].tolist()
    assert all(0 <= value < n for value in values)
    assert len(set(values)) == len(positions)


@given(n=st.integers(1, 500), key=keys, data=st.data())
@settings(max_examples=30, deadline=None)
def test_slices_and_positions_agree(n: int, key: int, data: st.DataObject) -> None:
    order = Permutation(n, key)
    whole = order[:]
    part = slice(
        data.draw(st.integers(0, n)), data.draw(st.integers(0, n)), data.draw(st.sampled_from([1, 3, -1]))
    )
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), dtype=np.int64)
    assert len(order) == n
    assert order[part].tolist() == whole[part].tolist()
    assert order[positions].tolist() == whole[positions].tolist()


def test_the_order_is_the_same_on_every_machine_and_in_every_release() -> None:
    assert permutation_key(7, 2, 1) == 16578209580919892231
    assert Permutation(10, 42)[:].tolist() == [6, 7, 2, 8, 1, 9, 0, 4, 3, 5]
    assert Permutation(1000, 42)[:5].tolist() == [743, 59, 798, 894, 814]


def test_keys_differ_by_seed_rank_and_epoch() -> None:
    assert len({permutation_key(s, r, e) for s in (-1, 0, 1) for r in range(5) for e in range(5)}) == 75


@pytest.mark.parametrize("n", [2, 3, 4])
def test_small_permutations_are_all_about_equally_likely(n: int) -> None:
    draws = 720
    counts = Counter(
        tuple(Permutation(n, permutation_key(0, 0, epoch))[:].tolist()) for epoch in range(draws)
    )
    expected = draws / len(list(permutations(range(n))))
    assert min(counts.values()) > 0.3 * expected
    assert max(counts.values()) < 2.0 * expected
    assert len(counts) == len(list(permutations(range(n))))


def test_a_large_permutation_looks_random() -> None:
    n = 20_000
    order = Permutation(n, 3)[:]
    # For a random order each of these is normal with deviation about 1/sqrt(n) = 0.007.
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.03
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert 0.9 < np.abs(np.diff(order)).mean() / (n / 3) < 1.1
    assert (order == np.arange(n)).sum() < 10


@pytest.mark.parametrize("positions", [[10], [-1], [2**40]])
def test_positions_outside_are_refused(positions: list[int]) -> None:
    with pytest.raises(IndexError, match=r"range\(10\)"):
        Permutation(10, 0)[np.array(positions)]


@pytest.mark.parametrize("index", [np.zeros((2, 2), np.int64), np.array([0.5]), np.array(3)])
def test_other_indices_are_refused(index: np.ndarray) -> None:
    with pytest.raises(IndexError, match="1-d integer"):
        Permutation(10, 0)[index]


@pytest.mark.parametrize("n", [-1, 2**62 + 1])
def test_sizes_outside_are_refused(n: int) -> None:
    with pytest.raises(OptionError, match="expected n between"):
        Permutation(n, 0)
