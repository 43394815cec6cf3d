"""The pass over tensors: on every device that there is, the NumPy kernel's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import tensors
from fatwood.codec.kernel import Signed
from fatwood.codec.reference import NumpyKernel
from fatwood.errors import NotFiniteError
from fatwood.testing.strategies import float32_vectors

KERNEL = NumpyKernel()
LARGEST = float(np.finfo(np.float32).max)
SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)

every_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
        ),
    ],
)


@pytest.fixture(params=[16, 1 << 25], ids=["chunks", "whole"])
def chunk(request, monkeypatch):
    """Short vectors, too, are to cross from chunk to chunk."""
    monkeypatch.setattr(tensors, "_CHUNK", request.param)


def on(device, *vectors):
    return [torch.from_numpy(vector.copy()).to(device) for vector in vectors]


def same_bits(tensor, vector):
    return np.array_equal(tensor.cpu().numpy().view(np.uint32), vector.view(np.uint32))


@every_device
@pytest.mark.usefixtures("chunk")
class TestExtract:
    """Residual, positions, signs and clipped mass."""

    @settings(max_examples=50, deadline=None)
    @given(data=st.data())
    def test_equals_the_numpy_kernel_bit_for_bit(self, device, data):
        residual = data.draw(float32_vectors(st.integers(0, 80), largest=LARGEST / 4))
        delta = data.draw(float32_vectors(residual.size, largest=LARGEST / 4))
        sums = [m for m in np.abs(residual + delta).tolist() if m > 0]
        exact = [st.sampled_from(sums)] if sums else []
        tau = data.draw(
            st.one_of(st.floats(2.0**-7, 100, width=32), st.floats(SUBNORMAL, LARGEST / 8, width=32), *exact)
        )
        multiple = data.draw(st.none() | st.floats(1.0, 8.0))
        clip = None if multiple is None else max(tau, float(np.float32(min(multiple * tau, LARGEST))))
        there, update = on(device, residual, delta)
        found = tensors.extract(there, update, tau, clip)
        expected = KERNEL.extract(residual, delta, tau, clip)
        assert (found.positions.dtype, found.negative.dtype) == (np.int64, np.bool_)
        assert found.positions.tolist() == expected.positions.tolist()
        assert found.negative.tolist() == expected.negative.tolist()
        assert found.clipped_mass == pytest.approx(expected.clipped_mass, rel=1e-12)
        assert same_bits(there, residual)
        assert same_bits(update, delta)

    @settings(max_examples=30, deadline=None)
    @given(data=st.data(), tau=st.floats(2.0**-7, 100, width=32))
    def test_a_difference_equals_the_numpy_kernels(self, device, data, tau):
        residual = data.draw(float32_vectors(st.integers(0, 80), largest=LARGEST / 4))
        delta, base = (data.draw(float32_vectors(residual.size, largest=LARGEST / 4)) for _ in "db")
        there, update, start = on(device, residual, delta, base)
        found = tensors.extract(there, update, tau, base=start, put_back=True)
        assert same_bits(update, base)
        expected = KERNEL.extract(residual, delta, tau, base=base)
        assert found.positions.tolist() == expected.positions.tolist()
        assert same_bits(there, residual)

    @settings(max_examples=30, deadline=None)
    @given(
        n=st.integers(1, 70),
        places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
        bad=st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), min_size=4, max_size=4),
        clip=st.none() | st.just(2.0),
    )
    def test_the_first_number_that_is_not_finite_is_named(self, device, n, places, bad, clip):
        delta = np.random.default_rng(n).laplace(size=n).astype(np.float32)
        at = sorted({int(n * place) for place in places})
        delta[at] = bad[: len(at)]
        with pytest.raises(NotFiniteError) as expected:
            KERNEL.extract(np.zeros_like(delta), delta, 1.0, clip)
        with pytest.raises(NotFiniteError) as caught:
            tensors.extract(*on(device, np.zeros_like(delta), delta), 1.0, clip)
        assert str(caught.value) == str(expected.value)
        assert caught.value.position == at[0]

    def test_a_gradient_is_not_recorded(self, device):
        residual, delta = on(device, np.zeros(3, np.float32), np.array([1, 0, -2], np.float32))
        delta.requires_grad_()
        assert tensors.extract(residual, delta, 1.0).positions.tolist() == [0, 2]
        assert not residual.requires_grad


@every_device
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.sampled_from([0, 1, 50, 3000]))
def test_add_signed_equals_the_numpy_kernel_bit_for_bit(device, seed, n):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=n).astype(np.float32) * np.float32(rng.choice([1, 1e-38]))
    updates = []
    for density in rng.choice([0.0, 0.01, 0.5, 1.0], size=rng.integers(0, 4)):
        positions = np.flatnonzero(rng.random(n) < density)
        value = float(rng.choice([0.1, 1e-38, SUBNORMAL, -3e4]))
        updates.append(Signed(positions, rng.random(positions.size) < 0.5, value))
    (there,) = on(device, target)
    tensors.add_signed(there, updates)
    KERNEL.add_signed(target, updates)
    assert same_bits(there, target)


@every_device
@pytest.mark.usefixtures("chunk")
def test_add_signed_crosses_chunks_and_takes_read_only_positions(device):
    at = np.frombuffer(np.arange(0, 200, 4).tobytes(), np.int64)
    negative = np.frombuffer(bytes([0, 1] * 25), np.bool_)
    (target,) = on(device, np.zeros(200, np.float32))
    tensors.add_signed(target, [Signed(at, negative, 0.1)])
    assert target.cpu()[::4].tolist() == [float(np.float32(0.1)), float(np.float32(-0.1))] * 25
    assert target.count_nonzero() == 50


@every_device
def test_positions_above_two_to_the_24_stay_exact(device):
    n = 2**24 + 70
    at, signs = np.array([2**24 + 1, 2**24 + 3, n - 1]), np.array([False, True, False])
    vector = torch.zeros(n, device=device)
    tensors.add_signed(vector, [Signed(at, signs, 1.5)])
    found = tensors.extract(vector, vector, 3.0, 3.0)
    assert found.positions.tolist() == at.tolist()
    assert found.negative.tolist() == signs.tolist()
    assert not vector.any()


@every_device
def test_the_same_again_gives_the_same_bits(device):
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=200_000).astype(np.float32) for _ in "rd"]
    first, second = (tensors.extract(*on(device, *vectors), 2.0, 2.5) for _ in "12")
    assert first.clipped_mass == second.clipped_mass > 0
    assert np.array_equal(first.positions, second.positions)


FLOATS = torch.zeros(3)


@pytest.mark.parametrize(
    ("residual", "delta", "tau", "clip", "names"),
    [
        (FLOATS, torch.zeros(4), 1.0, None, "delta: expected 3 numbers on cpu .* received 4"),
        (FLOATS, torch.zeros(3, device="meta"), 1.0, None, "on meta"),
        (FLOATS.double(), FLOATS, 1.0, None, "expected contiguous float32 .* received torch.float64"),
        (FLOATS, FLOATS.half(), 1.0, None, "expected contiguous float32 .* received torch.float16"),
        (torch.zeros(3, 1), torch.zeros(3, 1), 1.0, None, r"\(3, 1\)"),
        (torch.zeros(6)[::2], FLOATS, 1.0, None, "contiguous"),
        (FLOATS, FLOATS, 0.0, None, "tau"),
        (FLOATS, FLOATS, 1e-60, None, "tau"),
        (FLOATS, FLOATS, 1e60, None, "tau"),
        (FLOATS, FLOATS, np.nan, None, "tau"),
        (FLOATS, FLOATS, 1.0, 0.5, "clip"),
        (FLOATS, FLOATS, 1.0, np.nan, "clip"),
    ],
)
def test_what_cannot_work_is_refused(residual, delta, tau, clip, names):
    with pytest.raises(ValueError, match=names):
        tensors.extract(residual, delta, tau, clip)


@pytest.mark.parametrize("target", [FLOATS.double(), torch.zeros(3, 1), torch.zeros(6)[::2]])
def test_add_signed_refuses_other_targets(target):
    with pytest.raises(ValueError, match="expected contiguous float32"):
        tensors.add_signed(target, [])
