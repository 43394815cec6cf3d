"""One suite for the contract of `Kernel`: every kernel that this machine can run must pass all of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import native
from fatwood.codec.kernel import Signed, available
from fatwood.errors import NotFiniteError
from fatwood.testing.strategies import float32_vectors, sparse_vectors

KERNELS = available()


@pytest.fixture(autouse=True, scope="module")
def _ranges_of_threads_are_small():
    """Threads share what otherwise one would do alone, so that their seams are tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_PER_THREAD", 1 << 18)
        yield


REFERENCE = KERNELS["numpy"]
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)

N = 64
LARGEST = float(np.finfo(np.float32).max)
SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)
# Widths around words, tiles, chunks and groups of any of the kernels, with one parameter less and one more.
EDGES = [
    edge + by
    for edge in (1, 8, 16, 64, 512, 2048, 4096, 65536, 131072, 524288)
    for by in (-1, 0, 1)
    if edge + by != 524289
] + [524288 + 65536 + 9]

vectors = float32_vectors(N)
wild = float32_vectors(st.integers(0, 200), largest=LARGEST / 4)
taus = st.floats(2.0**-10, 100.0, width=32)


def same_bits(one, other):
    return one.dtype == other.dtype == np.float32 and np.array_equal(
        one.view(np.uint32), other.view(np.uint32)
    )


def plain_loop(residual, delta, tau, clip):
    """The contract, one element at a time, in float32."""
    residual, tau = residual.copy(), np.float32(tau)
    positions, negative, clipped = [], [], 0.0
    for i in range(residual.size):
        r = residual[i] + delta[i]
        if abs(r) >= tau:
            positions.append(i)
            negative.append(bool(r < 0))
            r = r - tau if r > 0 else r + tau
        if clip is not None and abs(r) > np.float32(clip):
            clipped += float(abs(r)) - float(np.float32(clip))
            r = np.sign(r) * np.float32(clip)
        residual[i] = r
    return residual, positions, negative, clipped


def whole_vector(residual, delta, tau, clip):
    """The contract without chunks, tiles or words: for vectors that are too long for `plain_loop`."""
    after = residual + delta
    positions = np.flatnonzero(np.abs(after) >= np.float32(tau))
    negative = after[positions] < 0
    after[positions] -= np.where(negative, -np.float32(tau), np.float32(tau))
    if clip is None:
        return after, positions, negative, 0.0
    bounded = np.clip(after, -np.float32(clip), np.float32(clip))
    return bounded, positions, negative, np.abs(after.astype(np.float64) - bounded).sum()


def laplace(n):
    """Two vectors."""
    rng = np.random.default_rng(n)
    return [
        np.copysign(rng.standard_exponential(n, np.float32), rng.random(n, np.float32) - 0.5) for _ in "rd"
    ]


def check(kernel, residual, delta, tau, clip=None, expectation=whole_vector, **options):
    """Runs a kernel and compares all that it returns and leaves behind, bit by bit."""
    expected, positions, negative, clipped = expectation(residual, delta, tau, clip)
    after, untouched = residual.copy(), delta.copy()
    found = kernel.extract(after, delta, tau, clip, **options)
    assert found.positions.dtype == np.int64
    assert found.negative.dtype == np.bool_
    assert np.array_equal(found.positions, positions)
    assert np.array_equal(found.negative, negative)
    assert same_bits(after, expected)
    assert found.clipped_mass == pytest.approx(clipped, rel=1e-12)
    assert same_bits(delta, untouched)
    return found


def decoded(found, n, tau):
    """What a message would say, as float64."""
    dense = np.zeros(n)
    dense[found.positions] = np.where(found.negative, -np.float32(tau), np.float32(tau))
    return dense


class TestExtract:
    """Every element, every bit."""

    @every_kernel
    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_equals_the_plain_loop_bit_for_bit(self, kernel, data):
        """Subnormal and huge numbers and both zeros among them; often tau is exactly one of the magnitudes."""
        residual = data.draw(wild)
        delta = data.draw(float32_vectors(residual.size, largest=LARGEST / 4))
        sums = [m for m in np.abs(residual + delta).tolist() if m > 0]
        exact = [st.sampled_from(sums)] if sums else []
        tau = data.draw(st.one_of(taus, st.floats(SUBNORMAL, LARGEST / 8, width=32), *exact))
        multiple = data.draw(st.none() | st.floats(1.0, 8.0))
        clip = None if multiple is None else max(tau, float(np.float32(min(multiple * tau, LARGEST))))
        check(kernel, residual, delta, tau, clip, plain_loop)

    @every_kernel
    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), clip=st.none() | st.floats(1.0, 8.0))
    def test_a_difference_is_what_its_own_vector_is(self, kernel, data, clip):
        """An update counted from a base, small numbers of all sizes beside large ones."""
        residual = data.draw(wild)
        delta, base = (data.draw(float32_vectors(residual.size, largest=LARGEST / 4)) for _ in "db")
        tau = data.draw(taus)
        bound = None if clip is None else clip * tau
        untouched = base.copy()
        expected = residual.copy()
        alone = kernel.extract(expected, delta - base, tau, bound)
        found = kernel.extract(residual, delta, tau, bound, base=base)
        assert np.array_equal(found.positions, alone.positions)
        assert np.array_equal(found.negative, alone.negative)
        assert found.clipped_mass == alone.clipped_mass
        assert same_bits(residual, expected)
        assert same_bits(base, untouched)
        kept = delta.copy()
        again = kernel.extract(np.zeros_like(residual), delta, tau, bound, base=base)
        assert same_bits(delta, kept)
        put_back = kernel.extract(np.zeros_like(residual), delta, tau, bound, base=base, put_back=True)
        assert np.array_equal(put_back.positions, again.positions)
        assert same_bits(delta, base)

    @every_kernel
    @pytest.mark.parametrize("n", EDGES)
    def test_a_difference_of_every_length(self, kernel, n):
        residual, delta = (vector[1:] for vector in laplace(n + 1))
        base = delta[::-1].copy()
        expected = residual.copy()
        alone = kernel.extract(expected, delta - base, 4.0, 6.0)
        found = kernel.extract(residual, delta, 4.0, 6.0, base=base, put_back=True, threads=2)
        assert np.array_equal(found.positions, alone.positions)
        assert same_bits(residual, expected)
        assert same_bits(delta, base)

    @every_kernel
    @pytest.mark.parametrize("n", EDGES)
    def test_every_length(self, kernel, n):
        """From memory that is aligned to single numbers only."""
        residual, delta = (vector[1:] for vector in laplace(n + 1))
        check(kernel, residual, delta, 4.0, 6.0)

    @every_kernel
    @pytest.mark.parametrize("n", [n for n in EDGES if n > 1])
    def test_the_first_and_the_last_are_found(self, kernel, n):
        delta = np.zeros(n, np.float32)
        delta[[0, -1]] = [-1, 1]
        found = kernel.extract(np.zeros(n, np.float32), delta, 1.0)
        assert found.positions.tolist() == [0, n - 1]
        assert found.negative.tolist() == [True, False]

    @every_kernel
    @pytest.mark.parametrize("tau", [1e-30, 0.01, 1.0, 3.0, 9.0, 1e30])
    @pytest.mark.parametrize("expected", [0, 1, 70_000, 2**40])
    def test_any_density_and_any_guess_of_it(self, kernel, tau, expected):
        check(kernel, *laplace(70_000), tau, 2 * tau, expected=expected)

    @every_kernel
    def test_dense_and_empty_stretches_in_turn(self, kernel):
        residual, delta = laplace(1_200_000)
        stretches = np.arange(residual.size) // 50_000 % 3
        check(kernel, residual, delta * np.float32([0.01, 1, 30])[stretches], 5.0)

    @every_kernel
    @pytest.mark.parametrize("threads", [2, 3])
    def test_any_number_of_threads_gives_the_same(self, kernel, threads):
        check(kernel, *laplace(1_700_003), 5.0, 6.0, threads=threads)

    @every_kernel
    def test_more_threads_than_parameters(self, kernel):
        check(kernel, *laplace(3), 0.5, threads=8)
        check(kernel, *laplace(0), 0.5, threads=8)

    @every_kernel
    def test_exactly_tau_is_sent_and_just_below_is_not(self, kernel):
        below = np.nextafter(np.float32(0.1), np.float32(0))
        residual = np.zeros(4, np.float32)
        found = kernel.extract(residual, np.array([0.1, below, -0.1, -below], np.float32), 0.1)
        assert found.positions.tolist() == [0, 2]
        assert residual.tolist() == [0.0, below, 0.0, -below]

    @every_kernel
    def test_zeros_and_subnormal_numbers_survive(self, kernel):
        kept = np.array([0.0, -0.0, SUBNORMAL, -SUBNORMAL, 1e-39, -1e-39] * 12, np.float32)
        residual = kept.copy()
        assert kernel.extract(residual, np.full_like(kept, -0.0), 1e-38).positions.size == 0
        assert same_bits(residual, kept)
        check(kernel, kept, np.zeros_like(kept), SUBNORMAL, expectation=plain_loop)

    @every_kernel
    def test_positions_above_two_to_the_24_stay_exact(self, kernel):
        """A trap on record: (index + 1) * sign in float32 loses indices above 16 777 216."""
        n = 2**24 + 70
        at, signs = np.array([2**24 + 1, 2**24 + 3, n - 1]), np.array([False, True, False])
        vector = np.zeros(n, np.float32)
        kernel.add_signed(vector, [Signed(at, signs, 1.5)])
        found = kernel.extract(vector, vector, 3.0, 3.0)
        assert found.positions.tolist() == at.tolist()
        assert found.negative.tolist() == signs.tolist()
        assert not vector.any()


class TestWeighted:
    """A sum of three vectors, into two."""

    @every_kernel
    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), a=st.floats(-4, 4, width=32), b=st.floats(-4, 4, width=32))
    def test_is_numpys_to_the_bit(self, kernel, data, a, b):
        first = data.draw(wild)
        second, third = (data.draw(float32_vectors(first.size, largest=LARGEST / 64)) for _ in "23")
        out, also = np.empty_like(first), np.empty_like(first)
        kernel.weighted(first, ((a, second), (b, third)), out, also)
        with np.errstate(over="ignore"):
            expected = first + np.float32(a) * second + np.float32(b) * third
        assert same_bits(out, expected)
        assert same_bits(also, expected)

    @every_kernel
    def test_of_what_is_written_there_is_no_second_name(self, kernel):
        vectors = [np.zeros(8, np.float32) for _ in range(5)]
        first, second, third, out, also = vectors
        for wrong in ((out, out), (first, also), (out, third)):
            with pytest.raises(ValueError, match="memory of its own"):
                kernel.weighted(first, ((1.0, second), (2.0, third)), *wrong)
        with pytest.raises(ValueError, match="expected"):
            kernel.weighted(first, ((1.0, second), (2.0, third)), out, also[:-1])


class TestGather:
    """Places, near each other and far apart."""

    @every_kernel
    @given(vector=float32_vectors(st.integers(1, 300)), seed=st.integers(0, 99), count=st.integers(0, 400))
    def test_is_what_numpy_takes(self, kernel, vector, seed, count):
        places = np.random.default_rng(seed).integers(0, vector.size, count)
        assert same_bits(kernel.gather(vector, places), vector[places])


class TestConservation:
    """delta + residual before = decoded + residual after + clipped."""

    @every_kernel
    @settings(max_examples=30, deadline=None)
    @given(residual=vectors, delta=vectors, tau=taus)
    def test_mass_is_conserved(self, kernel, residual, delta, tau):
        summed = residual + delta  # float32: the one rounding that adding to a residual cannot avoid
        rebuilt = decoded(kernel.extract(residual, delta, tau), N, tau) + residual
        # Never more than half a unit in the last place; nothing at all up to two tau (Sterbenz).
        assert np.all(np.abs(rebuilt - summed) <= np.spacing(np.abs(summed)).astype(np.float64) / 2)
        near = np.abs(summed) <= 2 * np.float32(tau)
        assert np.array_equal(rebuilt[near], summed[near].astype(np.float64))

    @every_kernel
    @settings(max_examples=30, deadline=None)
    @given(residual=vectors, delta=vectors, exponent=st.integers(-9, 9))
    def test_exactly_when_tau_is_a_power_of_two(self, kernel, residual, delta, exponent):
        summed = residual + delta
        rebuilt = decoded(kernel.extract(residual, delta, 2.0**exponent), N, 2.0**exponent) + residual
        assert np.array_equal(rebuilt, summed.astype(np.float64))

    @every_kernel
    @settings(max_examples=30, deadline=None)
    @given(residual=vectors, delta=vectors, tau=taus, multiple=st.floats(1.0, 5.0))
    def test_clipped_mass_is_what_clipping_took(self, kernel, residual, delta, tau, multiple):
        clip = max(tau, float(np.float32(multiple * tau)))
        unclipped = residual.copy()
        without = kernel.extract(unclipped, delta, tau)
        found = kernel.extract(residual, delta, tau, clip)
        lost = unclipped.astype(np.float64) - residual
        assert without.clipped_mass == 0.0
        assert np.array_equal(found.positions, without.positions)
        assert np.all(np.abs(residual) <= clip)
        assert np.all(residual[lost != 0] == np.copysign(np.float32(clip), lost[lost != 0]))
        assert found.clipped_mass == pytest.approx(np.abs(lost).sum(), rel=1e-12)

    @every_kernel
    @settings(max_examples=30, deadline=None)
    @given(residual=vectors, delta=vectors, tau=taus)
    def test_signs_are_treated_alike(self, kernel, residual, delta, tau):
        mirrored = -residual
        found = kernel.extract(residual, delta, tau, 2 * tau)
        mirror = kernel.extract(mirrored, -delta, tau, 2 * tau)
        assert np.array_equal(mirror.positions, found.positions)
        assert np.array_equal(mirror.negative, ~found.negative)
        assert np.array_equal(mirrored, -residual)
        assert mirror.clipped_mass == found.clipped_mass

    @every_kernel
    def test_all_of_it_arrives_in_the_end(self, kernel):
        residual, target = laplace(5_000)
        residual *= 5
        before = residual.astype(np.float64) + target
        for _ in range(200):
            found = kernel.extract(residual, np.zeros_like(residual), 0.25)
            kernel.add_signed(target, [Signed(found.positions, found.negative, 0.25)])
        assert found.positions.size == 0
        assert np.abs(target - before).max() < 0.25 + 1e-4


class TestNotFinite:
    """An error that names the first bad parameter."""

    @every_kernel
    @settings(max_examples=40, deadline=None)
    @given(
        n=st.integers(1, 5000),
        places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
        bad=st.lists(st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]), min_size=4, max_size=4),
        tau=st.sampled_from([0.1, 3.0, LARGEST]),
        clip=st.booleans(),
        in_delta=st.booleans(),
    )
    def test_the_first_is_named(self, kernel, n, places, bad, tau, clip, in_delta):
        residual, delta = laplace(n)
        at = sorted({int(n * place) for place in places})
        (delta if in_delta else residual)[at] = bad[: len(at)]
        with pytest.raises(NotFiniteError, match=rf"parameter {at[0]} \(of {n}\)") as caught:
            kernel.extract(residual, delta, tau, tau if clip else None)
        assert (caught.value.position, caught.value.n) == (at[0], n)
        np.testing.assert_equal(caught.value.value, abs(bad[0]) if np.isnan(bad[0]) else bad[0])

    @every_kernel
    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize("at", [[0], [1_699_999], [900_000, 1_600_000], [600_000, 600_001]])
    def test_the_first_is_named_whatever_thread_finds_it(self, kernel, threads, at):
        delta = np.zeros(1_700_000, np.float32)
        delta[at] = [np.inf, np.nan][: len(at)]
        with pytest.raises(NotFiniteError, match="received inf") as caught:
            kernel.extract(np.zeros_like(delta), delta, 1.0, threads=threads)
        assert caught.value.position == at[0]

    @every_kernel
    def test_a_sum_that_overflows_is_found(self, kernel):
        large = np.full(2, 3e38, np.float32)
        with pytest.raises(NotFiniteError, match=r"parameter 0 .*received inf"):
            kernel.extract(large.copy(), large, 1.0)

    @every_kernel
    def test_infinities_that_cancel_are_found(self, kernel):
        large = np.full(2, np.inf, np.float32)
        with pytest.raises(NotFiniteError, match=r"parameter 0 .*received nan"):
            kernel.extract(-large, large, 1.0)

    @every_kernel
    def test_finite_numbers_whose_total_overflows_are_fine(self, kernel):
        large = np.full(70, 3e38, np.float32)
        check(kernel, large, np.zeros_like(large), 1e38, 1e38)


class TestAddSigned:
    """Several messages in one sweep, in the order given."""

    @every_kernel
    @pytest.mark.parametrize("threads", [1, 2, 3])
    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**32), n=st.sampled_from([0, 1, 64, 1000, 70_001, 300_000]))
    def test_adds_in_float32_and_in_order(self, kernel, threads, seed, n):
        rng = np.random.default_rng(seed)
        target = rng.normal(size=n).astype(np.float32)
        expected, updates = target.copy(), []
        for density in rng.choice([0.0, 1e-3, 0.1, 0.9, 1.0], size=rng.integers(0, 5)):
            positions = np.flatnonzero(rng.random(n) < density)
            negative = rng.random(positions.size) < 0.5
            value = float(rng.choice([0.1, 1e-20, 3e4, SUBNORMAL, -0.3]))
            expected[positions] += np.where(negative, -np.float32(value), np.float32(value))
            updates.append(Signed(positions, negative, value))
        kernel.add_signed(target, updates, threads=threads)
        assert same_bits(target, expected)

    @every_kernel
    def test_order_matters_and_is_kept(self, kernel):
        at, plus, minus = np.array([5]), np.array([False]), np.array([True])
        updates = [Signed(at, plus, 2.0**25), Signed(at, plus, 1.0), Signed(at, minus, 2.0**25)]
        for order, expected in ((updates, 0.0), (updates[::2] + updates[1:2], 1.0)):
            target = np.zeros(9, np.float32)
            kernel.add_signed(target, order)
            assert target[5] == expected

    @every_kernel
    def test_read_only_updates_and_none_at_all(self, kernel):
        at = np.frombuffer(np.array([0, 3]).tobytes(), np.int64)
        target = np.zeros(4, np.float32)
        kernel.add_signed(target, [Signed(at, np.frombuffer(b"\1\0", np.bool_), 1.0)])
        kernel.add_signed(target, [])
        assert target.tolist() == [-1, 0, 0, 1]


FLOATS = np.zeros(3, np.float32)


class TestRefusals:
    """What cannot work is said before anything is touched."""

    @every_kernel
    @pytest.mark.parametrize(
        ("residual", "delta", "tau", "clip", "names"),
        [
            (FLOATS, np.zeros(4, np.float32), 1.0, None, "delta: expected 3 .* received 4"),
            (np.zeros(3), FLOATS, 1.0, None, "expected contiguous float32 .* received float64"),
            (FLOATS, np.zeros(3), 1.0, None, "expected contiguous float32 .* received float64"),
            (np.zeros((3, 1), np.float32), np.zeros((3, 1), np.float32), 1.0, None, r"\(3, 1\)"),
            (np.zeros(6, np.float32)[::2], FLOATS, 1.0, None, "contiguous"),
            (FLOATS, FLOATS, 0.0, None, "tau"),
            (FLOATS, FLOATS, -1.0, None, "tau"),
            (FLOATS, FLOATS, 1e-60, None, "tau"),
            (FLOATS, FLOATS, np.nan, None, "tau"),
            (FLOATS, FLOATS, np.inf, None, "tau"),
            (FLOATS, FLOATS, 1.0, 0.5, "clip"),
            (FLOATS, FLOATS, 1.0, np.nan, "clip"),
        ],
    )
    def test_extract(self, kernel, residual, delta, tau, clip, names):
        with pytest.raises(ValueError, match=names):
            kernel.extract(residual, delta, tau, clip)

    @every_kernel
    @pytest.mark.parametrize("base", [FLOATS[:-1], FLOATS.astype(np.float64)])
    def test_a_base(self, kernel, base):
        with pytest.raises(ValueError, match="expected"):
            kernel.extract(FLOATS.copy(), FLOATS, 1.0, base=base)

    @every_kernel
    def test_nothing_to_put_back_into(self, kernel):
        residual, delta, base = (FLOATS.copy() for _ in "rdb")
        for vectors in ((residual, residual, base), (residual, base, base)):
            with pytest.raises(ValueError, match="memory of its own"):
                kernel.extract(vectors[0], vectors[1], 1.0, base=vectors[2], put_back=True)
        delta.flags.writeable = False
        with pytest.raises(ValueError, match=r"writ|read-only"):
            kernel.extract(residual, delta, 1.0, base=base, put_back=True)

    @every_kernel
    @pytest.mark.parametrize("places", [[-1], [0, FLOATS.size], [2**62]])
    def test_gather(self, kernel, places):
        with pytest.raises(ValueError, match="places: expected"):
            kernel.gather(FLOATS, np.array(places))

    @every_kernel
    @pytest.mark.parametrize(
        "target", [np.zeros(3), np.zeros((3, 1), np.float32), np.zeros(6, np.float32)[::2]]
    )
    def test_add_signed(self, kernel, target):
        with pytest.raises(ValueError, match="expected contiguous float32"):
            kernel.add_signed(target, [])


class TestCoders:
    """All kernels write the same bytes, and read each other's."""

    @every_kernel
    @settings(max_examples=40, deadline=None)
    @given(mask=sparse_vectors(max_n=3000))
    def test_rice(self, kernel, mask):
        if not mask.positions.size:
            return
        plan = kernel.rice_plan(mask.positions, mask.negative)
        expected = REFERENCE.rice_plan(mask.positions, mask.negative)
        assert plan.k.dtype == np.uint8
        assert plan.k.tolist() == expected.k.tolist()
        assert plan[1:] == expected[1:]
        payload = kernel.rice_pack(mask.positions, mask.negative, plan)
        assert payload == REFERENCE.rice_pack(mask.positions, mask.negative, plan)
        assert len(payload) == plan.bytes
        positions, negative = kernel.rice_unpack(memoryview(payload), mask.positions.size, mask.n)
        assert positions.tolist() == mask.positions.tolist()
        assert negative.tolist() == mask.negative.tolist()

    @every_kernel
    @settings(max_examples=40, deadline=None)
    @given(mask=sparse_vectors(max_n=3000))
    def test_ternary(self, kernel, mask):
        if not mask.positions.size:
            return
        histogram = kernel.ternary_histogram(mask.positions, mask.n)
        bytes_of_mask = np.packbits(np.isin(np.arange(mask.n), mask.positions))
        ones = np.unpackbits(bytes_of_mask).reshape(-1, 8).sum(axis=1)
        assert histogram.dtype == np.int64
        assert histogram.tolist() == np.bincount(ones, minlength=9).tolist()
        payload = kernel.ternary_pack(mask.positions, mask.negative, mask.n)
        assert payload == REFERENCE.ternary_pack(mask.positions, mask.negative, mask.n)
        positions, negative = kernel.ternary_unpack(memoryview(payload), mask.positions.size, mask.n)
        assert positions.tolist() == mask.positions.tolist()
        assert negative.tolist() == mask.negative.tolist()
