"""Mutated codec messages: whatever happened to the bytes, a decoder refuses them cleanly or returns a sound message.

A mutant whose checksum was left alone is nearly always stopped by it, so most mutants get a fresh checksum, as an
attacker would give them: then the coders themselves are what is tested.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fatwood.codec import Coder, decode, encode, encode_values
from fatwood.errors import ProtocolError

__all__ = ["Seed", "decodes_soundly", "mutants", "reseal", "seed_messages"]

_TAU = 0.125  # float16 holds it, so all coders decode to the same numbers


class Seed(NamedTuple):
    """A sound message to begin with."""

    message: bytes
    n: int


def seed_messages(generator: np.random.Generator, largest: int = 2_000) -> list[Seed]:
    """Sound messages of every coder and form: scattered, clustered and full masks, random and constant signs.

    Args:
        generator: Decides on masks and signs.
        largest: The most parameters of the smaller ones; two have over 65,536, so that the dense form has segments.
    """
    seeds = [Seed(encode(0, 0, 1.0, np.empty(0, np.int64), np.empty(0, np.bool_)), 0)]
    for n in (1, 9, 64, largest // 3, largest):
        for density in (0.003, 0.03, 0.3, 1.0):
            mask = generator.random(n) < density
            if density == 0.03:
                mask[n // 2 : n // 2 + n // 8] = generator.random(n // 8) < 0.8
            positions = np.flatnonzero(mask)
            for negative in (generator.random(positions.size) < 0.5, positions > n // 2):
                for coder in Coder:
                    seeds.append(Seed(encode(7, n, _TAU, positions, negative, coder=coder), n))
        seeds.append(Seed(encode_values(7, generator.standard_normal(n).astype(np.float32))[0], n))
    n = 2**16 + 321
    for density in (0.001, 0.2):
        positions = np.flatnonzero(generator.random(n) < density)
        seeds.append(Seed(encode(2**40, n, _TAU, positions, generator.random(positions.size) < 0.5), n))
    return seeds


def mutants(seeds: list[Seed], count: int, chooser: random.Random) -> Iterator[Seed]:
    """Messages with one to four mutations each, three quarters of them with a checksum that fits again.

    Args:
        seeds: To begin with; small ones are taken more often than long ones.
        count: How many.
        chooser: Decides on everything.
    """
    weights = [1 / (200 + len(seed.message)) for seed in seeds]
    for start in range(0, count, 1000):
        for seed in chooser.choices(seeds, weights, k=min(1000, count - start)):
            octets = bytearray(seed.message)
            for _ in range(chooser.choice((1, 1, 2, 4))):
                _mutate(octets, chooser, seeds)
            mutated = reseal(octets, seed.n) if chooser.random() < 0.75 else bytes(octets)
            yield Seed(mutated, seed.n)


def decodes_soundly(message: bytes, n: int) -> bool:
    """Whether a message is accepted; a message that is accepted must be sound.

    Returns:
        False when it was refused by a `ProtocolError`.

    Raises:
        AssertionError: It was accepted and is not sound. Any other exception is a defect of the decoder, too.
    """
    try:
        received = decode(message, n)
    except ProtocolError:
        return False
    if received.values is not None:
        assert received.values.shape == (n,)
        assert np.isfinite(received.values).all()
        return True
    positions, negative = received.positions, received.negative
    assert positions.shape == negative.shape
    assert negative.dtype == np.bool_
    assert negative.view(np.uint8).max(initial=0) <= 1
    if positions.size:
        assert int(positions[0]) >= 0
        assert int(positions[-1]) < n
        assert (np.diff(positions) > 0).all()
    assert 0 < received.tau < np.inf
    return True


def reseal(octets: bytearray, n: int) -> bytes:
    """The message with the checksum that fits its bytes, or as it is where no checksum can be found."""
    end = 1
    for _ in range(2):  # step; count and coder
        while end < len(octets) and octets[end] & 0x80:
            end += 1
        end += 1
    end += 4  # tau
    if end + 4 > len(octets):
        return bytes(octets)
    seal = zlib.crc32(octets[end + 4 :], zlib.crc32(octets[:end], zlib.crc32(struct.pack("<Q", n))))
    return bytes(octets[:end]) + struct.pack("<I", seal) + bytes(octets[end + 4 :])


def _mutate(octets: bytearray, chooser: random.Random, seeds: list[Seed]) -> None:
    if not octets:
        octets.append(chooser.randrange(256))
        return
    # The first bytes carry the lengths and parameters that everything after depends on.
    at = chooser.randrange(min(len(octets), 24)) if chooser.random() < 0.5 else chooser.randrange(len(octets))
    kind = chooser.randrange(8)
    if kind <= 2:
        octets[at] ^= 1 << chooser.randrange(8)
    elif kind == 3:
        octets[at] = chooser.choice((0x00, 0x01, 0x7F, 0x80, 0xFF, chooser.randrange(256)))
    elif kind == 4:
        del octets[at : at + chooser.choice((1, 1, 2, 7, 8, len(octets)))]
    elif kind == 5:
        octets[at:at] = chooser.randbytes(chooser.choice((1, 1, 2, 8, 40)))
    elif kind == 6:
        other = chooser.choice(seeds).message
        start = chooser.randrange(len(other) + 1)
        octets[at:] = other[start : start + len(octets)]
    else:
        octets[at : at + 8] = bytes([chooser.choice((0x00, 0xFF))]) * min(8, len(octets) - at)
