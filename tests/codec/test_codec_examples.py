"""The examples in the codec's docstrings print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "diagnostics",
    "encoder",
    "flat",
    "residual",
    "rice",
    "sampling",
    "ternary",
    "threshold",
    "varint",
    "warmup",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"fatwood.codec.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
