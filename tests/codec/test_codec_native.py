"""The compiled extraction and sum: the bits of plain NumPy for any input, on every instruction set of this machine."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fatwood.codec import native
from fatwood.codec.kernel import Extracted, Kernel, Signed
from fatwood.codec.native import NativeKernel, native_kernels
from fatwood.errors import NotFiniteError

KERNELS = native_kernels()


@pytest.fixture(autouse=True, scope="module")
def _ranges_of_threads_are_small():
    """Threads share what otherwise one would do alone, so that their seams are tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_PER_THREAD", 1 << 18)
        yield


TAU = 0.5
TILE = 131_072
pytestmark = pytest.mark.skipif(
    not KERNELS, reason="no compiled kernel; tests/house/test_build.py says whether there should be"
)
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)

ODD = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1.1754942e-38,
    3.4028235e38,
    -3.4028235e38,
    TAU,
    -TAU,
    np.nextafter(np.float32(TAU), np.float32(0)),
]
finite = st.one_of(
    st.sampled_from(ODD),
    st.floats(-4, 4, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
anything = st.one_of(finite, st.floats(width=32))


def vectors(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return st.integers(0, 200).flatmap(lambda n: hnp.arrays(np.float32, (2, n), elements=elements))


def expected_of(
    residual: np.ndarray, delta: np.ndarray, tau: float, clip: float = np.inf
) -> tuple[Extracted, np.ndarray]:
    """The contract, written down with whole vectors."""
    quantum = np.float32(tau)
    with np.errstate(over="ignore", invalid="ignore"):
        after = residual + delta
    positions = np.flatnonzero(~(np.abs(after) < quantum))
    negative = after[positions] < 0
    rest = after[positions] - np.copysign(quantum, after[positions])
    after[positions] = np.clip(rest, -np.float32(clip), np.float32(clip))
    lost = np.abs(rest.astype(np.float64)) - np.abs(after[positions].astype(np.float64))
    return Extracted(positions, negative, float(lost.sum())), after


def check(kernel: Kernel, residual: np.ndarray, delta: np.ndarray, tau: float, **options: float) -> Extracted:
    expected, after = expected_of(residual, delta, tau, options.get("clip") or np.inf)
    before = delta.copy()
    extracted = kernel.extract(residual, delta, tau, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(extracted.positions, expected.positions)
    np.testing.assert_array_equal(extracted.negative, expected.negative)
    assert (extracted.positions.dtype, extracted.negative.dtype) == (np.int64, np.bool_)
    assert residual.tobytes() == after.tobytes()  # -0.0 and subnormals, too
    assert delta.tobytes() == before.tobytes()
    assert extracted.clipped_mass == pytest.approx(expected.clipped_mass, rel=1e-12, abs=0)
    return extracted


@each_kernel
@given(
    data=vectors(anything),
    tau=st.sampled_from([1e-45, 1e-38, 0.3, TAU, 3e38]),
    multiple=st.sampled_from([None, 1.0, 5.0]),
)
@settings(max_examples=60, deadline=None)
def test_any_numbers_give_numpys_bits(
    kernel: Kernel, data: np.ndarray, tau: float, multiple: float | None
) -> None:
    clip = None if multiple is None else min(float(np.float32(tau)) * multiple, 3.4e38)
    residual, delta = data[0].copy(), data[1].copy()
    with np.errstate(over="ignore", invalid="ignore"):
        sums = residual + delta
    bad = np.flatnonzero(~np.isfinite(sums))
    if bad.size == 0:
        check(kernel, residual, delta, tau, clip=clip)  # type: ignore[arg-type]
        return
    with pytest.raises(NotFiniteError) as raised:
        kernel.extract(residual, delta, tau, clip)
    assert (raised.value.position, raised.value.n) == (bad[0], residual.size)
    np.testing.assert_equal(raised.value.value, float(sums[bad[0]]))


@each_kernel
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 2 * TILE - 1, 2 * TILE, 3 * TILE + 77, (1 << 19) + 5])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.2, 1.0])
def test_sizes_densities_and_threads(kernel: Kernel, n: int, density: float) -> None:
    random = np.random.default_rng(n)
    delta = random.normal(size=n).astype(np.float32)
    tau = (
        1e-30
        if density == 1.0
        else 1e30
        if density == 0.0
        else float(np.float32(3.29 if density < 0.01 else 1.28))
    )
    for threads, expected in [(1, 0), (1, n), (2, int(n * density))]:
        extracted = check(
            kernel, np.zeros(n, np.float32), delta, tau, threads=threads, expected=expected, clip=2 * tau
        )
        assert extracted.positions.size == pytest.approx(n * density, abs=0.02 * n + 5)


@each_kernel
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_grows_when_the_hits_come_late(kernel: Kernel, threads: int) -> None:
    n = 1 << 19
    delta = np.zeros(n, np.float32)
    delta[n // 4 : n // 3] = -1.0
    delta[-n // 8 :] = 1.0
    extracted = check(kernel, np.zeros(n, np.float32), delta, TAU, threads=threads)
    assert extracted.positions.size == n // 3 - n // 4 + n // 8


@each_kernel
def test_memory_follows_the_guess(kernel: Kernel) -> None:
    n = 1 << 20
    delta = np.zeros(n, np.float32)
    delta[::1000] = 1.0
    extracted = kernel.extract(np.zeros(n, np.float32), delta, TAU, expected=1049)
    assert extracted.positions.size == 1049
    assert extracted.positions.base is not None  # one piece, not joined
    assert extracted.positions.base.size <= max(2 * 1049, n // 128) + TILE


@each_kernel
def test_positions_above_two_to_the_24_are_exact(kernel: Kernel) -> None:
    n = (1 << 24) + 1000
    places = [0, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, (1 << 24) + 3, n - 1]
    residual, delta = np.zeros(n, np.float32), np.zeros(n, np.float32)
    delta[places] = 1.0
    assert kernel.extract(residual, delta, TAU).positions.tolist() == places
    positions = np.array(places)
    kernel.add_signed(residual, [Signed(positions, np.zeros(len(places), np.bool_), TAU)])
    assert np.flatnonzero(residual).tolist() == places


@each_kernel
@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_number_that_is_not_finite_is_named(kernel: Kernel, threads: int) -> None:
    n = 3 << 18
    delta = np.ones(n, np.float32)
    delta[[n // 2 + 9, n - 1]] = np.nan, np.inf
    residual = np.zeros(n, np.float32)
    residual[n // 2] = delta[n // 2] = -3e38
    with pytest.raises(NotFiniteError) as raised:
        kernel.extract(residual, delta, TAU, threads=threads)
    assert (raised.value.position, raised.value.n, raised.value.value) == (n // 2, n, -np.inf)


@each_kernel
@pytest.mark.parametrize(
    "bad", [(700, 300), (300, 700), (999, 500, 3), (80, 64), (TILE + 90_000, TILE + 20_000)]
)
def test_the_first_is_named_whichever_lane_meets_one_first(kernel: Kernel, bad: tuple[int, ...]) -> None:
    delta = np.full(1000 if max(bad) < 1000 else 2 * TILE + 5, 2 * TAU, np.float32)
    delta[list(bad)] = np.nan
    with pytest.raises(NotFiniteError) as caught:
        kernel.extract(np.zeros_like(delta), delta, TAU, 3 * TAU)
    assert caught.value.position == min(bad)


@each_kernel
def test_a_residual_may_be_its_own_update(kernel: Kernel) -> None:
    vector = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    _, after = expected_of(vector, vector.copy(), TAU)
    kernel.extract(vector, vector, TAU)
    assert vector.tobytes() == after.tobytes()


@each_kernel
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_sum_of_messages_has_the_bits_of_one_after_another(kernel: Kernel, data: st.DataObject) -> None:
    n = data.draw(st.sampled_from([1, 50, 4096, 4097, 10_000]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    updates = []
    for _ in range(data.draw(st.integers(0, 4))):
        hits = random.random(n) < random.choice([0.0, 0.01, 0.5, 1.0])
        positions = np.flatnonzero(hits)
        updates.append(Signed(positions, random.random(positions.size) < 0.5, data.draw(finite)))
    check_sum(kernel, random.normal(size=n).astype(np.float32), updates, 1)


def check_sum(kernel: Kernel, target: np.ndarray, updates: list[Signed], threads: int) -> None:
    expected = target.copy()
    with np.errstate(over="ignore"):
        for positions, negative, value in updates:
            expected[positions] += np.where(negative, -np.float32(value), np.float32(value))
    kernel.add_signed(target, updates, threads=threads)
    assert target.tobytes() == expected.tobytes()


@each_kernel
@pytest.mark.parametrize("threads", [2, 5])
def test_a_sum_in_threads_has_the_same_bits(kernel: Kernel, threads: int) -> None:
    random = np.random.default_rng(7)
    n = (1 << 20) + 13
    updates = []
    for density in (0.0, 0.001, 0.3):
        positions = np.flatnonzero(random.random(n) < density)
        updates.append(Signed(positions, random.random(positions.size) < 0.5, 0.1))
    check_sum(kernel, random.normal(size=n).astype(np.float32), updates, threads)


@each_kernel
@pytest.mark.parametrize("positions", [[-1], [100], [3, 200], [0, 10**15, 7], [-(2**63), 2**63 - 1]])
def test_a_sum_never_leaves_the_target(kernel: Kernel, positions: list[int]) -> None:
    memory = np.zeros(300, np.float32)
    with pytest.raises(ValueError, match="ascending numbers in range"):
        kernel.add_signed(
            memory[100:200], [Signed(np.array(positions), np.zeros(len(positions), np.bool_), 1.0)]
        )
    assert not memory[:100].any()
    assert not memory[200:].any()


@each_kernel
def test_arrays_that_c_cannot_use_are_refused(kernel: Kernel) -> None:
    n = 100
    delta, positions, negative = np.ones(n, np.float32), np.arange(3), np.zeros(3, np.bool_)
    frozen = np.zeros(n, np.float32)
    frozen.flags.writeable = False
    odd = np.frombuffer(bytearray(4 * n + 1), np.float32, n, offset=1)
    for target in (frozen, odd):
        with pytest.raises(ValueError, match="aligned and can be written"):
            kernel.extract(target, delta, TAU)
        with pytest.raises(ValueError, match="aligned and can be written"):
            kernel.add_signed(target, [Signed(positions, negative, 1.0)])
    assert not frozen.any()
    check(kernel, np.ones(n, np.float32), odd, TAU)  # reading is possible
    check_sum(kernel, np.ones(n, np.float32), [Signed(np.arange(6)[::2], np.zeros(6, np.bool_)[::2], 1.0)], 1)
    with pytest.raises(ValueError, match="expected int64, received int32"):
        kernel.add_signed(delta, [Signed(positions.astype(np.int32), negative, 1.0)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected shape \(3,\) as the positions, received \(2,\)"):
        kernel.add_signed(delta, [Signed(positions, negative[:2], 1.0)])


@each_kernel
def test_add_is_a_plain_sum(kernel: Kernel) -> None:
    assert isinstance(kernel, NativeKernel)
    vector, delta = np.random.default_rng(0).normal(size=(2, 1003)).astype(np.float32)
    expected = vector + delta
    kernel.add(vector, delta)
    assert vector.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="expected shape"):
        kernel.add(vector, delta[1:])


def test_the_fastest_comes_first() -> None:
    order = ["avx512", "avx2", "portable"]
    names = [kernel.name for kernel in KERNELS]
    assert names == [name for name in order if name in names]
    assert names[-1] == "portable"


def test_a_library_that_does_not_fit_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(native, "_ABI", 10**6)
        assert native_kernels() == []
    broken = tmp_path / "_fatwood_kernel.so"
    broken.write_bytes(b"not a library")
    for path in (None, broken, Path(ctypes.util.find_library("c") or "libc.dylib")):
        monkeypatch.setattr(native, "_library_path", lambda path=path: path)
        assert native_kernels() == []
