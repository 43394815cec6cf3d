"""Arrays in the JSON of Deeplearning4j's reports.

Three forms: a list of numbers; ``{"dataType", "shape", "data"}``; and ``{"array": base64}`` of what ``Nd4j.write``
writes (`fatwood.nd4j`).
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood import nd4j
from fatwood.errors import StorageError

__all__ = ["read_array"]


def read_array(packed: Any) -> NDArray[np.float64]:
    """An array as float64.

    Args:
        packed: What the JSON has in its place.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    if isinstance(packed, dict) and "array" in packed:
        return _binary(base64.b64decode(packed["array"], validate=True))
    if isinstance(packed, dict):
        shape = [int(length) for length in packed["shape"]]
        return np.array([float(value) for value in packed["data"]], np.float64).reshape(shape)
    return np.array([float(value) for value in packed], np.float64)


def _binary(data: bytes) -> NDArray[np.float64]:
    try:
        array, _ = nd4j.read_array(data)
    except StorageError as error:
        raise ValueError(error.message) from error
    return array.astype(np.float64)
