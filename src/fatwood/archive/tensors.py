"""Named tensors as a part of an archive: the bytes of https://huggingface.co/docs/safetensors, written and read without a copy.

header size    8 bytes, little endian
header         JSON: {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}}, and spaces
data           tensor after tensor without a gap, those with larger numbers first, by name
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fatwood.archive.frame import ALIGNMENT
from fatwood.archive.kind import PIECE_BYTES, is_reasonable_json

__all__ = ["Tensors", "read_tensors"]

_MAX_HEADER_BYTES = 32 * 2**20
_MAX_DIMENSIONS = 64
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn,
        "I16": torch.int16,
        "U16": torch.uint16,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I32": torch.int32,
        "U32": torch.uint32,
        "F32": torch.float32,
        "I64": torch.int64,
        "U64": torch.uint64,
        "F64": torch.float64,
        "C64": torch.complex64,
    }
)
_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in _DTYPES.items()})


class Tensors:
    """Tensors to write.

    Args:
        tensors: By name, dense, on any device.

    Raises:
        ValueError: A dtype that the format does not know.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        unknown = sorted(
            {str(tensor.dtype) for tensor in tensors.values()} - {str(dtype) for dtype in _NAMES}
        )
        if unknown:
            message = f"expected dtypes that safetensors can hold, received {unknown}"
            raise ValueError(message)
        self._tensors = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of the part, in pieces of `PIECE_BYTES`; large tensors are not copied on their way."""
        waiting = bytearray()
        for content in self._contents():
            view = content
            if waiting:
                missing = PIECE_BYTES - len(waiting)
                waiting += view[:missing]
                view = view[missing:]
                if len(waiting) < PIECE_BYTES:
                    continue
                yield memoryview(waiting)
                waiting = bytearray()
            whole = len(view) - len(view) % PIECE_BYTES
            for start in range(0, whole, PIECE_BYTES):
                yield view[start : start + PIECE_BYTES]
            waiting += view[whole:]
        if waiting:
            yield memoryview(waiting)

    def _contents(self) -> Iterator[memoryview]:
        yield memoryview(self._header())
        for _, tensor in self._tensors:
            if tensor.numel():
                flat = (
                    tensor.detach()
                    .cpu()
                    .resolve_conj()
                    .resolve_neg()
                    .contiguous()
                    .reshape(-1)
                    .view(torch.uint8)
                )
                yield flat.numpy().data

    def _header(self) -> bytes:
        entries, at = {}, 0
        for name, tensor in self._tensors:
            size = tensor.numel() * tensor.element_size()
            entries[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, at + size],
            }
            at += size
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def read_tensors(memory: memoryview) -> dict[str, Tensor]:
    """The tensors of a part, each over its piece of the memory.

    Args:
        memory: The whole part; it can be written to, or the tensors cannot be trained.

    Returns:
        By name, in the order of their places.

    Raises:
        ValueError: The bytes are something else. No memory is taken for what they say of sizes.
    """
    tensors = {}
    start, entries = _read_header(memory)
    at, data_bytes = 0, len(memory) - start
    for name, entry in sorted(entries.items(), key=lambda item: _offsets(*item)):
        dtype, shape = _DTYPES.get(str(entry.get("dtype"))), entry.get("shape")
        begin, end = _offsets(name, entry)
        if dtype is None:
            message = f"{name!r:.100}: expected a dtype of safetensors, received {entry.get('dtype')!r:.40}"
            raise ValueError(message)
        if (
            not isinstance(shape, list)
            or len(shape) > _MAX_DIMENSIONS
            or not all(type(size) is int and 0 <= size < 2**63 for size in shape)
        ):
            message = f"{name!r:.100}: expected a shape, received {shape!r:.80}"
            raise ValueError(message)
        count = math.prod(shape)
        if count * dtype.itemsize != end - begin or begin != at or end > data_bytes:
            message = (
                f"{name!r:.100}: expected {count * dtype.itemsize} bytes from {at} within {data_bytes}, "
                f"received {begin} to {end}"
            )
            raise ValueError(message)
        at = end
        flat = (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=start + begin)
            if count
            else torch.empty(0, dtype=dtype)
        )
        tensors[name] = flat.reshape(shape)
    if at != data_bytes:
        message = f"expected {at} bytes of tensors, received {data_bytes}"
        raise ValueError(message)
    return tensors


def _read_header(memory: memoryview) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where the data begins, and what is there."""
    size = int.from_bytes(memory[:8], "little")
    if len(memory) < 8 or size > min(_MAX_HEADER_BYTES, len(memory) - 8):
        message = f"expected a safetensors header of at most {min(_MAX_HEADER_BYTES, max(len(memory) - 8, 0))} bytes, received {size}"
        raise ValueError(message)
    text = bytes(memory[8 : 8 + size])
    if not is_reasonable_json(text):
        message = f"expected fewer values in the safetensors header, received {size} bytes of them"
        raise ValueError(message)
    entries = json.loads(text.decode(), object_pairs_hook=_without_twins)
    if not isinstance(entries, dict):
        message = f"expected a JSON object as safetensors header, received {text[:80]!r}"
        raise ValueError(message)
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            message = f"{name!r:.100}: expected dtype, shape and data_offsets, received {entry!r:.80}"
            raise ValueError(message)
    return 8 + size, entries


def _offsets(name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    offsets = entry.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or [*map(type, offsets)] != [int, int]
        or not 0 <= offsets[0] <= offsets[1]
    ):
        message = f"{name!r:.100}: expected data_offsets [begin, end], received {offsets!r:.80}"
        raise ValueError(message)
    return offsets[0], offsets[1]


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = f"expected different names, received {sorted(name for name, _ in pairs)!r:.100}"
        raise ValueError(message)
    return found
