"""The tensors of a minibatch that the user made, one by one: found to be usable, their real steps counted.

Shapes: ``B`` rows, ``T`` steps of the longest sequence among them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.data.batch import Batch, each
from fatwood.data.fields import Dtype, Field, Form
from fatwood.data.layout import weight_field
from fatwood.errors import DataError, SchemaError

__all__ = ["Part", "devices", "form_of", "parts_of", "tell_of_devices"]

_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
_INTEGERS = frozenset({"int64", "int32", "int16", "int8", "uint16", "uint32"})
_MASK_HINT = (
    "real steps come first and padding behind; for steps in between that the loss shall leave out, "
    "set their labels to its ignore_index"
)


class Part(NamedTuple):
    """One tensor of a minibatch, its type and shape found to be usable."""

    field: Field
    tensor: Any
    """(B, ...), or (B, T, ...) with lengths; a tensor or a NumPy array."""
    lengths: NDArray[np.int64] | None
    """(B,) real steps; None without a mask."""


def parts_of(batch: Batch) -> list[Part]:
    """The tensors of features, labels and weight, in this order.

    Args:
        batch: Tensors or NumPy arrays, of B rows each.

    Returns:
        At least one of the features; the weight last.

    Raises:
        DataError: The numbers of rows differ, or a mask is not one of real steps before padding.
        SchemaError: A tensor is missing, or of a type or shape that cannot be trained on.
    """
    parts = _group_parts("features", batch.features, batch.feature_mask)
    if not parts:
        message = "features: expected at least one tensor, received none"
        raise SchemaError(message, hint="Batch(features=...) is what the network is called with")
    parts += _group_parts("label", batch.label, batch.label_mask)
    if batch.weight is not None:
        kind, shape = _kind("weight", batch.weight), tuple(batch.weight.shape)
        if len(shape) != 1 or kind == "bool":
            message = (
                f"weight: expected one number for each row, shape (B,), received {kind} of shape {shape}"
            )
            raise SchemaError(message)
        parts.append(Part(weight_field("weight"), batch.weight, None))
    rows, first = len(parts[0].tensor), parts[0].field.name
    found = [(part.field.name, len(part.tensor)) for part in parts] + [("row_ids", len(batch))]
    for name, received in found:
        if received != rows:
            message = f"{name}: expected {rows} rows as in {first}, received {received}"
            raise DataError(
                message, hint="the first dimension of every tensor of a Batch is that of its rows"
            )
    return parts


def _group_parts(group: str, tensors: Any, masks: Any) -> list[Part]:
    if isinstance(tensors, Mapping):
        for key in tensors:
            if not isinstance(key, str) or not key:
                message = f"{group}: expected names as keys, received {key!r}"
                raise SchemaError(message)
    real = _by_name(group, masks)
    named = _by_name(group, tensors)
    uneven = isinstance(masks, tuple | list) and len(real) != len(named)
    if masks is not None and (
        form_of(masks) != form_of(tensors) or not real.keys() <= named.keys() or uneven
    ):
        argument = "feature_mask" if group == "features" else "label_mask"
        message = (
            f"{argument}: expected masks in the form of {group} ({_shown(tensors)}), received {_shown(masks)}"
        )
        raise SchemaError(message)
    return [_part(group, name, tensor, real.get(name)) for name, tensor in named.items()]


def _part(group: str, name: str, tensor: Any, mask: Any) -> Part:
    kind, shape = _kind(name, tensor), tuple(tensor.shape)
    before = 1 if mask is None else 2
    if len(shape) < before or 0 in shape[before:]:
        wanted = "(B, ...)" if mask is None else "(B, T, ...)"
        message = f"{name}: expected a shape {wanted} without empty dimensions, received {shape}"
        raise SchemaError(message)
    lengths = None if mask is None else _lengths(name, mask, shape[:2])
    own = shape[before:]
    field = Field(
        name=name, title=name, dtype=_dtype(group, kind, own, mask), shape=own, ragged=mask is not None
    )
    return Part(field, tensor, lengths)


def _by_name(group: str, tensors: Any) -> dict[str, Any]:
    if isinstance(tensors, Mapping):
        return {f"{group}/{key}": tensor for key, tensor in tensors.items()}
    if isinstance(tensors, tuple | list):
        return {f"{group}/{i}": tensor for i, tensor in enumerate(tensors)}
    return {} if tensors is None else {group: tensors}


def form_of(tensors: Any) -> Form:
    """Whether tensors or masks are a single one, several by position or several by name."""
    if isinstance(tensors, Mapping):
        return "dict"
    return "tuple" if isinstance(tensors, tuple | list) else "one"


def _shown(tensors: Any) -> str:
    if isinstance(tensors, Mapping):
        return f"a dict of {', '.join(map(str, tensors))}"
    if isinstance(tensors, tuple | list):
        return f"{len(tensors)} by position"
    return "none" if tensors is None else "a single one"


def _kind(name: str, tensor: Any) -> str:
    """The type of a tensor's numbers, such as ``float16``."""
    kind = None
    if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and not tensor.is_nested:
        kind = str(tensor.dtype).removeprefix("torch.")
    elif isinstance(tensor, np.ndarray):
        kind = tensor.dtype.name
    if kind not in _FLOATS | _INTEGERS | {"uint8", "bool"}:
        received = f"{type(tensor).__name__}" + (f" of {tensor.dtype}" if hasattr(tensor, "dtype") else "")
        message = f"{name}: expected a dense tensor or NumPy array of numbers, received {received}"
        raise SchemaError(message, hint="numbers are floats of at most 64 bits, integers or booleans")
    return str(kind)


def _dtype(group: str, kind: str, shape: tuple[int, ...], mask: Any) -> Dtype:
    several = bool(shape) or (group == "features" and mask is not None)
    if kind in _FLOATS or (kind == "bool" and (group == "features" or several)):
        return "float32"
    return "uint8" if kind == "uint8" and group == "features" and several else "int64"


def _lengths(name: str, mask: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """(B,) how many steps are real, the mask found to be runs of them."""
    kind = _kind(f"the mask of {name}", mask)
    array = mask.detach().cpu().float().numpy() if isinstance(mask, torch.Tensor) else mask
    if array.shape != shape:
        message = f"the mask of {name}: expected shape (B, T) = {shape}, received {tuple(array.shape)}"
        raise DataError(message)
    real = array.astype(np.bool_)
    if kind != "bool" and not np.array_equal(real, array):
        message = f"the mask of {name}: expected booleans, received {kind} with other numbers than 0 and 1"
        raise DataError(message)
    lengths: NDArray[np.int64] = real.sum(axis=1, dtype=np.int64)
    wrong = (real != (np.arange(shape[1]) < lengths[:, None])).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        step = int(np.argmin(real[row]))
        message = f"the mask of {name}, row {row}: expected real steps, then padding, received padding at step {step} before a real one"
        raise DataError(message, hint=_MASK_HINT)
    return lengths


def devices(batch: Batch) -> frozenset[str]:
    """Where else than in the main memory the tensors of a minibatch are, such as ``cuda:0``."""
    tensors = [batch.features, batch.label, batch.weight, batch.feature_mask, batch.label_mask]
    found = (tensor for given in tensors for _, tensor in each(given) if isinstance(tensor, torch.Tensor))
    return frozenset(str(tensor.device) for tensor in found if tensor.device.type != "cpu")


def tell_of_devices(found: frozenset[str]) -> None:
    """Warn where tensors are on devices; see `devices`."""
    if found:
        text = (
            f"the tensors of a Batch are on {', '.join(sorted(found))} and are copied to the main memory: a tensor on a device "
            "cannot be cached by Spark or sent to another machine, and fills its device's memory meanwhile; "
            "build Batches of CPU tensors"
        )
        warnings.warn(text, stacklevel=2)
