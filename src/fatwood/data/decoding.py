"""Values that are made in the task: images of bytes, and whatever a function makes of a column."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.data.fields import Field

__all__ = ["Decoder", "image_decoder"]

_NUMPY = {"float32": np.float32, "int64": np.int64, "uint8": np.uint8}
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Decoder:
    """Makes a field's values of a column's, row by row."""

    function: Callable[[Any], Any]
    """Given one row's value (bytes, text, a number, a list), returns numbers: a tensor, an array, or what NumPy makes one of."""

    def decoded(self, column: Any, field: Field) -> tuple[Any, dict[int, str]]:
        """A column of lists of the field's numbers, in Arrow.

        Args:
            column: Of the user's type, n rows.
            field: What its rows become.

        Returns:
            n lists, null where a row could not be decoded, and by row what was wrong.
        """
        arrays: list[NDArray[Any] | None] = []
        faults: dict[int, str] = {}
        for row, value in enumerate(column.to_pylist()):
            array = None
            try:
                if value is not None:
                    array = _numbers(self.function(value), field)
            except Exception as error:
                faults[row] = f"column {field.title!r}: cannot be decoded: {type(error).__name__}: {error}"
            arrays.append(array)
        lengths = np.array([0 if array is None else array.size for array in arrays], np.int64)
        there = [array.reshape(-1) for array in arrays if array is not None]
        values = np.concatenate(there) if there else np.zeros(0, _NUMPY[field.dtype])
        if not field.listed:
            found = np.zeros(len(arrays), values.dtype)
            found[lengths > 0] = values
            return pa.array(found, mask=lengths == 0), faults
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
        mask = pa.array([array is None for array in arrays], pa.bool_())
        return pa.LargeListArray.from_arrays(offsets, pa.array(values), mask=mask), faults


def _numbers(made: Any, field: Field) -> NDArray[Any]:
    """What a function made of one row, found to be of the field's shape.

    Raises:
        ValueError: It has another shape or no numbers.
    """
    array = made.detach().cpu().numpy() if isinstance(made, torch.Tensor) else np.asarray(made)
    if array.dtype.kind not in "biuf":
        text = f"expected numbers, the function returned {type(made).__name__}"
        raise ValueError(text)
    own = array.shape[1:] if field.ragged else array.shape
    if own != field.shape or (field.ragged and array.ndim == 0):
        wanted = f"{('steps', *field.shape) if field.ragged else field.shape}"
        text = f"expected an array of shape {wanted}, the function returned {array.shape}"
        raise ValueError(text)
    exact = array.astype(_NUMPY[field.dtype])
    if field.dtype != "float32" and not np.array_equal(exact, array):
        text = f"expected whole numbers that {field.dtype} can hold, the function returned {array.dtype}"
        raise ValueError(text)
    return exact


@dataclass(frozen=True)
class _ImageFunction:
    size: tuple[int, int]
    channels: int

    def __call__(self, content: bytes) -> NDArray[np.uint8]:
        from PIL import Image

        height, width = self.size
        with Image.open(io.BytesIO(content)) as image:
            pixels = image.convert(_MODES[self.channels])
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(pixels, np.uint8).reshape(height, width, self.channels)
        return np.ascontiguousarray(array.transpose(2, 0, 1))


def image_decoder(size: tuple[int, int], channels: int) -> Decoder:
    """Decodes encoded images (PNG, JPEG, whatever Pillow reads) and brings them to one size.

    Args:
        size: Height and width in pixels; others are scaled, bilinearly.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    """
    return Decoder(_ImageFunction(size, channels))
