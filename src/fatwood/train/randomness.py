"""The random generators that user code draws from: PyTorch's, NumPy's and Python's own, all process-wide."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["generator_state", "load_generator_state", "seed_generators"]


def seed_generators(entropy: Sequence[int]) -> None:
    """Seed all of them.

    Args:
        entropy: Numbers of any size, at least 0; the same numbers, the same draws.
    """
    seeds = np.random.SeedSequence(entropy).generate_state(3, np.uint64)
    torch.manual_seed(int(seeds[0]))
    np.random.seed(int(seeds[1] % 2**32))
    random.seed(int(seeds[2]))


def generator_state() -> dict[str, Any]:
    """Their states, as numbers, tensors and arrays."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": (np.asarray(keys, np.int64), int(position), int(has_gauss), float(gauss)),
        "python": (version, np.asarray(words, np.int64), next_gauss),
    }


def load_generator_state(state: Mapping[str, Any]) -> None:
    """Take up states that :func:`generator_state` gave."""
    torch.set_rng_state(state["torch"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", np.asarray(keys, np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in words), next_gauss))
