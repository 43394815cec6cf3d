"""Hostile bytes: every decoder refuses them cleanly or returns a sound message."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fatwood.codec import kernel
from fatwood.testing.fuzzing import decodes_soundly, mutants, seed_messages


@pytest.fixture(params=list(kernel.available()))
def _kernel(request, monkeypatch):
    monkeypatch.setenv(kernel.ENVIRONMENT, request.param)
    kernel.active.cache_clear()
    yield
    kernel.active.cache_clear()


@pytest.mark.usefixtures("_kernel")
def test_seeds_decode_and_mutants_are_refused_or_sound():
    seeds = seed_messages(np.random.default_rng(0), largest=400)
    assert all(decodes_soundly(*seed) for seed in seeds)
    accepted = sum(decodes_soundly(*mutant) for mutant in mutants(seeds, 4000, random.Random(0)))
    assert 0 < accepted < 3000  # the mutations reach past the checksum, and most are refused


@pytest.mark.usefixtures("_kernel")
def test_random_bytes_are_refused():
    chooser = random.Random(1)
    assert not any(decodes_soundly(chooser.randbytes(chooser.randrange(200)), 1000) for _ in range(1000))


def test_all_kernels_accept_and_refuse_the_same(monkeypatch):
    seeds = seed_messages(np.random.default_rng(2), largest=300)
    candidates = list(mutants(seeds, 2000, random.Random(2)))
    verdicts = {}
    for name in kernel.available():
        monkeypatch.setenv(kernel.ENVIRONMENT, name)
        kernel.active.cache_clear()
        verdicts[name] = [decodes_soundly(*candidate) for candidate in candidates]
    kernel.active.cache_clear()
    assert len(set(map(tuple, verdicts.values()))) == 1
