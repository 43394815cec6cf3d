"""The benchmark's rivals do what they stand for: else a comparison with them says nothing."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "codec_peers.py"
    spec = importlib.util.spec_from_file_location("codec_peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def loop_flexible(residual: NDArray[np.float32], tau: np.float32) -> list[int]:
    """The description in a plain loop."""
    entries = []
    for i, value in enumerate(residual):
        if value >= tau:
            entries.append(i + 1)
            residual[i] -= tau
        elif value <= -tau:
            entries.append(-(i + 1))
            residual[i] += tau
    return [len(entries), len(residual), struct.unpack("<i", struct.pack("<f", tau))[0], 0, *entries]


def loop_bitmap(residual: NDArray[np.float32], tau: np.float32) -> list[int]:
    n = len(residual)
    words = [0] * (n // 16 + 1)
    for i, value in enumerate(residual):
        if abs(value) >= tau:
            words[i // 16] |= 1 << i % 16
            if value < 0:
                words[i // 16] |= 1 << (i % 16 + 16)
                residual[i] += tau
            else:
                residual[i] -= tau
        elif abs(value) >= tau / 2 and value < 0:
            words[i // 16] |= 1 << (i % 16 + 16)
            residual[i] += tau / 2
    signed = [word - (1 << 32) if word >> 31 else word for word in words]
    return [n, n, struct.unpack("<i", struct.pack("<f", tau))[0], 1, *signed]


def test_a_flexible_message_worked_out_by_hand(peers: ModuleType) -> None:
    residual = np.array([0.5, -0.25, 0.75, -1.5, 0.0], np.float32)
    message = peers.dl4j_flexible(residual, 0.5)
    assert message.tobytes() == struct.pack("<iifiiii", 3, 5, 0.5, 0, 1, 3, -4)
    assert residual.tolist() == [0.0, -0.25, 0.25, -1.0, 0.0]


def test_a_bitmap_worked_out_by_hand(peers: ModuleType) -> None:
    residual = np.zeros(17, np.float32)
    residual[[0, 1, 2, 3, 16]] = 1.25, -1.0, 0.75, -0.5, -3.0
    message, count = peers.dl4j_bitmap(residual, 1.0)
    assert count == 4  # 0.75 stays: there is no half step up
    assert message.tobytes() == struct.pack("<iifiII", 17, 17, 1.0, 1, 0b1010 << 16 | 0b0011, 1 << 16 | 1)
    assert residual[[0, 1, 2, 3, 16]].tolist() == [0.25, 0.0, 0.75, 0.0, -2.0]


@pytest.mark.parametrize("n", [2, 15, 16, 17, 1000, 4096 + 5])
def test_both_encodings_are_the_loops_of_their_description(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr(peers, "CHUNK", 256)
    tau = np.float32(0.7)
    update = normal(n)
    update[:2] = 1.0, -1.0
    for loop, encode in ((loop_flexible, peers.dl4j_flexible), (loop_bitmap, peers.dl4j_bitmap)):
        expected_residual, residual = update.copy(), update.copy()
        expected = loop(expected_residual, tau)
        encoded = encode(residual, float(tau))
        message = encoded[0] if isinstance(encoded, tuple) else encoded
        assert message.tolist() == expected
        assert residual.tobytes() == expected_residual.tobytes()
        decoded = np.zeros(n, np.float32)
        peers.dl4j_apply(message, decoded)
        np.testing.assert_allclose(decoded + residual, update, rtol=0, atol=1e-6)
        assert np.count_nonzero(decoded) == (encoded[1] if isinstance(encoded, tuple) else message[0])


def test_sizes_are_those_of_the_table_in_ints(peers: ModuleType) -> None:
    assert peers.dl4j_bytes(25_000_000, 250_000) == 4 * 250_004
    assert peers.dl4j_bytes(25_000_000, 2_500_000) == 4 * (25_000_000 // 16 + 5)
    residual = normal(3200)
    assert peers.dl4j_bitmap(residual.copy(), 0.5)[0].size == 3200 // 16 + 5
    assert peers.dl4j_flexible(residual, 0.5, limit=200).size == 204


def test_a_lone_hit_is_not_sent(peers: ModuleType) -> None:
    residual = np.array([0.1, 3.0, 0.1], np.float32)
    assert peers.dl4j_flexible(residual, 1.0) is None
    assert residual[1] == 3.0


def test_naive_torch_sends_the_same_entries_and_keeps_indices_above_2_to_the_24(peers: ModuleType) -> None:
    old, delta = normal(1000, 1), normal(1000, 2)
    residual = torch.from_numpy(old.copy())
    entries = peers.naive_torch(residual, torch.from_numpy(delta), 1.0)
    expected_residual = old + delta
    message = peers.dl4j_flexible(expected_residual, 1.0)
    assert entries == message[4:].tobytes()
    assert residual.numpy().tobytes() == expected_residual.tobytes()

    large = torch.zeros(2**24 + 3)
    large[-1] = -1.0
    assert peers.naive_torch(large, torch.zeros(1).expand(2**24 + 3), 0.5) == struct.pack("<i", -(2**24 + 3))


def test_top_k_sends_the_largest_whole(peers: ModuleType) -> None:
    old, delta = normal(1000, 1), normal(1000, 2)
    residual = torch.from_numpy(old.copy())
    sent = peers.topk_torch(residual, torch.from_numpy(delta), 10)
    assert len(sent) == 10 * 8
    positions, values = np.frombuffer(sent[:40], "<i4"), np.frombuffer(sent[40:], "<f4")
    total = old + delta
    assert sorted(positions) == sorted(np.argsort(-np.abs(total))[:10])
    assert values.tolist() == total[positions].tolist()
    assert np.count_nonzero(residual.numpy()) == 990


def test_what_zstd_gets_holds_the_positions_and_signs(peers: ModuleType) -> None:
    positions = np.array([0, 1, 5, 2**24 + 1], np.int64)
    negative = np.array([True, False, False, True])
    assert struct.unpack("<4i", peers.int32_entries(positions, negative)) == (-1, 2, 6, -(2**24 + 2))
    words = struct.unpack("<4I", peers.delta_entries(positions, negative, shuffled=False))
    assert words == (1, 0, 6, 2 * (2**24 - 5) + 1)
    shuffled = np.frombuffer(peers.delta_entries(positions, negative, shuffled=True), np.uint8)
    assert shuffled.reshape(4, 4).T.tobytes() == struct.pack("<4I", *words)
