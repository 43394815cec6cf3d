"""Reads ``normalizer.bin`` as Fatwood's preprocessing.

::

    text   NORMALIZER
    int32  1
    text   STANDARDIZE, MIN_MAX, IMAGE_MIN_MAX, ...
    STANDARDIZE     bool labels too; arrays mean, std; for labels the same two
    MIN_MAX         bool labels too; float64 low, high; arrays least, greatest; for labels the same two
    IMAGE_MIN_MAX   float64 low, high, greatest pixel

Numbers are those of columns, for images of channels; the highest byte is first.
"""

from __future__ import annotations

import struct

import numpy as np

from fatwood import nd4j
from fatwood.data.preprocessing import ImageScale, MinMax, Numbers, Standardize, Transform
from fatwood.errors import DamagedError, StorageError

__all__ = ["read_normalizer"]

_HEADER = "NORMALIZER"
_LEAST_STD = 1e-5
"""What the original takes for a standard deviation that is smaller."""


def read_normalizer(content: bytes) -> tuple[dict[str, Transform], str | None]:
    """The preprocessing of features, and of labels where it has one.

    Args:
        content: Of ``normalizer.bin``.

    Returns:
        By ``"features"`` and ``"label"``, ready for ``SparkModel(preprocessing=...)``; and why there is none, or None.

    Raises:
        DamagedError: It is something else, or not whole.
    """
    try:
        header, at = nd4j.read_text(content)
        if header != _HEADER:
            problem = f"expected {_HEADER}, received {header!r:.40}"
            raise ValueError(problem)
        (version,) = struct.unpack_from(">i", content, at)
        kind, at = nd4j.read_text(content, at + 4)
        if version != 1:
            problem = f"expected version 1, received {version}"
            raise ValueError(problem)
        if kind == "STANDARDIZE":
            return _standardize(content, at), None
        if kind == "MIN_MAX":
            return _min_max(content, at), None
        if kind == "IMAGE_MIN_MAX":
            return _image(content, at), None
    except (struct.error, ValueError, StorageError) as error:
        text = f"normalizer.bin: {getattr(error, 'message', error)}"
        raise DamagedError(text, hint="the file is damaged or incomplete: copy it again") from error
    return {}, f"a normalizer of the kind {kind} is not read"


def _standardize(content: bytes, at: int) -> dict[str, Transform]:
    (labels,) = struct.unpack_from(">?", content, at)
    at += 1
    found: dict[str, Transform] = {}
    for field in ("features", "label") if labels else ("features",):
        mean, at = _numbers(content, at)
        std, at = _numbers(content, at)
        std = np.maximum(std, _LEAST_STD)
        found[field] = Standardize(mean=Numbers.of(mean), std=Numbers.of(std))
    return found


def _min_max(content: bytes, at: int) -> dict[str, Transform]:
    labels, low, high = struct.unpack_from(">?dd", content, at)
    at += 17
    found: dict[str, Transform] = {}
    for field in ("features", "label") if labels else ("features",):
        least, at = _numbers(content, at)
        greatest, at = _numbers(content, at)
        found[field] = MinMax(low, high, least=Numbers.of(least), greatest=Numbers.of(greatest))
    return found


def _image(content: bytes, at: int) -> dict[str, Transform]:
    """``pixel / greatest * (high - low) + low``; an `ImageColumn` has divided by 255 already."""
    low, high, greatest = struct.unpack_from(">ddd", content, at)
    if not (high > low and greatest > 0):
        problem = f"expected low < high and a pixel above 0, received {low}, {high}, {greatest}"
        raise ValueError(problem)
    std = greatest / (255.0 * (high - low))
    return {"features": ImageScale(mean=-low * std, std=std)}


def _numbers(content: bytes, at: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], int]:
    array, at = nd4j.read_array(content, at)
    numbers = np.asarray(array, np.float64).reshape(-1)
    if not np.isfinite(numbers).all():
        problem = "expected finite numbers, received NaN or an infinity"
        raise ValueError(problem)
    return numbers, at
