"""``normalizer.bin`` as preprocessing: the same numbers as by the original's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.migrate import writer

from fatwood.errors import DamagedError
from fatwood.migrate.normalizer import read_normalizer

ROWS = np.random.default_rng(0).uniform(-3, 9, (6, 3)).astype(np.float32)
MEAN, STD = np.array([1.0, -2.0, 3.0]), np.array([0.5, 4.0, 2.0])


def applied(content: bytes, rows: np.ndarray, field: str = "features") -> np.ndarray:
    found, missing = read_normalizer(content)
    assert missing is None
    return found[field].apply(torch.from_numpy(rows)).numpy()


@pytest.mark.parametrize("order", ["c", "f"])
def test_standardize_has_the_saved_means_and_deviations(order: str) -> None:
    content = writer.standardize_normalizer(MEAN, STD, order=order)
    np.testing.assert_allclose(applied(content, ROWS), (ROWS - MEAN) / STD, atol=1e-6)
    assert set(read_normalizer(content)[0]) == {"features"}


def test_a_deviation_of_zero_is_the_least_of_the_original() -> None:
    """It takes 1e-5 for any that is smaller, so a feature that was constant is large when it is not."""
    content = writer.standardize_normalizer(MEAN, np.array([0.0, 1e-9, 2.0]))
    row = np.array([[1.5, -2.0, 3.0]], np.float32)
    np.testing.assert_allclose(applied(content, row), [[50_000.0, 0.0, 0.0]], rtol=1e-6)


def test_labels_are_standardized_where_they_were() -> None:
    content = writer.standardize_normalizer(MEAN, STD, np.array([10.0]), np.array([5.0]))
    np.testing.assert_allclose(applied(content, np.array([[20.0]], np.float32), "label"), [[2.0]])
    np.testing.assert_allclose(applied(content, ROWS), (ROWS - MEAN) / STD, atol=1e-6)


def test_min_max_has_the_saved_extremes_and_range() -> None:
    least, greatest = np.array([0.0, -1.0, 2.0]), np.array([4.0, 1.0, 10.0])
    content = writer.min_max_normalizer(-1.0, 3.0, least, greatest)
    expected = (ROWS - least) / (greatest - least) * 4.0 - 1.0
    np.testing.assert_allclose(applied(content, ROWS), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "greatest"), [(0.0, 1.0, 255.0), (-1.0, 1.0, 255.0), (0.0, 2.0, 1023.0)]
)
def test_pixels_are_scaled_as_the_original_scales_those_from_0_to_255(
    low: float, high: float, greatest: float
) -> None:
    """An `ImageColumn` gives them from 0 to 1, so 255 stands for 1."""
    pixels = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2) * 20
    expected = pixels / greatest * (high - low) + low
    content = writer.image_normalizer(low, high, greatest)
    np.testing.assert_allclose(applied(content, pixels / 255), expected, atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["IMAGE_VGG16", "MULTI_STANDARDIZE", "MULTI_MIN_MAX", "MULTI_HYBRID", "CUSTOM"]
)
def test_others_are_said_and_left_out(kind: str) -> None:
    found, missing = read_normalizer(writer._normalizer(kind))
    assert found == {}
    assert missing == f"a normalizer of the kind {kind} is not read"


@given(st.data())
def test_cut_anywhere_it_is_an_error(data: st.DataObject) -> None:
    content = data.draw(
        st.sampled_from(
            [
                writer.standardize_normalizer(MEAN, STD),
                writer.min_max_normalizer(0.0, 1.0, MEAN, MEAN + 1),
                writer.image_normalizer(0.0, 1.0, 255.0),
            ]
        )
    )
    with pytest.raises(DamagedError, match=r"normalizer\.bin"):
        read_normalizer(content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x06NORMAL",
        writer._utf("NORMALIZER") + b"\x00\x00\x00\x02" + writer._utf("STANDARDIZE"),
        writer.standardize_normalizer(np.array([np.nan]), np.array([1.0])),
        writer.standardize_normalizer(MEAN, np.array([1.0])),
        writer.min_max_normalizer(1.0, 0.0, MEAN, MEAN),
        writer.min_max_normalizer(0.0, 1.0, MEAN, MEAN - 1),
        writer.image_normalizer(0.0, 0.0, 255.0),
        writer.image_normalizer(0.0, 1.0, 0.0),
        writer.image_normalizer(0.0, float("nan"), 255.0),
    ],
)
def test_numbers_that_cannot_be_are_refused(content: bytes) -> None:
    with pytest.raises(DamagedError, match=r"normalizer\.bin"):
        read_normalizer(content)
