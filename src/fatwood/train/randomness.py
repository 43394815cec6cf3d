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


def generator_state(device: torch.device | None = None) -> dict[str, Any]:
    """Their states, as numbers, tensors and arrays.

    Args:
        device: A GPU's generator is PyTorch's, too.
    """
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    own = {"cuda": torch.cuda.get_rng_state(device)} if device is not None and _is_cuda(device) else {}
    return {
        **own,
        "torch": torch.get_rng_state(),
        "numpy": (np.asarray(keys, np.int64), int(position), int(has_gauss), float(gauss)),
        "python": (version, np.asarray(words, np.int64), next_gauss),
    }


def load_generator_state(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Take up states that :func:`generator_state` gave.

    Args:
        state: Of a run on any kind of device.
        device: Of this one; a GPU's generator stays as it was seeded where that run had none.
    """
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device is not None and _is_cuda(device):
        torch.cuda.set_rng_state(state["cuda"], device)
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", np.asarray(keys, np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in words), next_gauss))


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"
