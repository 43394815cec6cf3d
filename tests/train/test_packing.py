"""State to bytes and back, without pickle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fatwood.errors import ProtocolError
from fatwood.train import pack, unpack

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_values_survive(value: object) -> None:
    assert unpack(pack({"value": value})) == {"value": value}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.float64]
)
def test_tensors_survive(dtype: torch.dtype) -> None:
    whole = torch.arange(12).reshape(3, 4).to(dtype)
    tensors = [whole, whole.t(), whole[1], torch.zeros((), dtype=dtype), torch.zeros(0, dtype=dtype)]
    for before, after in zip(tensors, unpack(pack(tensors)), strict=True):
        assert after.dtype == before.dtype
        assert torch.equal(after, before)


def test_arrays_and_optimizer_states_survive() -> None:
    array = np.arange(5, dtype=np.float32)
    assert np.array_equal(unpack(pack({0: array}))[0], array)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    fresh = torch.optim.AdamW(layer.parameters(), lr=0.5)
    fresh.load_state_dict(unpack(pack(optimizer.state_dict())))
    assert fresh.param_groups[0]["lr"] == 0.1
    assert fresh.param_groups[0]["betas"] == (0.9, 0.999)
    for name, value in optimizer.state[layer.weight].items():
        assert torch.equal(value, fresh.state[layer.weight][name])


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(TypeError, match=r"value\['a'\]\[1\].*received object"):
        pack({"a": [1, object()]})


@given(st.binary(max_size=200))
def test_other_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="packed state"):
        unpack(data)
