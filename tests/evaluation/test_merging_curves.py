"""The merge law of curves and calibration, of their sums, and of arrays in JSON."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fatwood.errors import DataError, OptionError, UserError
from fatwood.evaluation.calibration import Calibration
from fatwood.evaluation.curves import ROC, ROCBinary, ROCMultiClass
from fatwood.evaluation.exact_sums import ExactSums
from fatwood.evaluation.report import Report
from fatwood.evaluation.sums import pack_array, unpack_array
from fatwood.testing.merging import Chunk, classification_chunks, merging_suite

# few distinct values, so that scores are equal and lie on the edges of bins
PROBABILITIES = st.sampled_from([0.0, -0.0, 0.1, 0.125, 0.3, 0.5, 0.7, 0.7000001, 1.0])


@st.composite
def binary_chunks(draw: st.DrawFn, width: int) -> Chunk:
    rows = draw(st.integers(0, 4))
    scores = draw(st.lists(PROBABILITIES, min_size=rows * width, max_size=rows * width))
    truths = draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    shape = (rows,) if width == 1 else (rows, width)
    return torch.tensor(scores).reshape(shape), torch.tensor(truths).float().reshape(shape), 0.0


def probability_chunks(classes: int) -> st.SearchStrategy[Chunk]:
    return classification_chunks(classes).map(lambda chunk: (chunk[0].softmax(1), *chunk[1:]))


FEW = settings(max_examples=7, deadline=None)  # of those that differ little from others

TestROC = merging_suite(ROC, binary_chunks(1))
TestBinnedROC = merging_suite(lambda: ROC(bins=10), binary_chunks(1))
TestROCBinary = merging_suite(lambda: ROCBinary(names=["a", "b"]), binary_chunks(2))
TestBinnedROCBinary = merging_suite(lambda: ROCBinary(bins=7), binary_chunks(2), effort=FEW)
TestROCMultiClass = merging_suite(ROCMultiClass, classification_chunks(3), effort=FEW)
TestBinnedROCMultiClass = merging_suite(lambda: ROCMultiClass(bins=4), probability_chunks(3), effort=FEW)
TestCalibration = merging_suite(
    lambda: Calibration(bins=5, histogram_bins=8),
    probability_chunks(3),
    effort=settings(max_examples=12, deadline=None),
)
TestBinaryCalibration = merging_suite(lambda: Calibration(names=["a", "b"]), binary_chunks(2), effort=FEW)

EMPTY = {
    "roc": ROC, "binned": lambda: ROC(8), "binary": ROCBinary, "classes": ROCMultiClass, "calibration": Calibration
}  # fmt: skip


def rows_of(name: str, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if name in ("roc", "binned"):
        return torch.rand(rows, generator=generator), torch.randint(0, 2, (rows,), generator=generator)
    if name == "binary":
        return torch.rand(rows, 2, generator=generator), torch.randint(0, 2, (rows, 2), generator=generator)
    return torch.randn(rows, 3, generator=generator).softmax(1), torch.randint(
        0, 3, (rows,), generator=generator
    )


@pytest.mark.parametrize("name", EMPTY)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**30), cuts=st.lists(st.integers(0, 30), max_size=5))
def test_weights_of_any_size_merge_without_rounding(name, seed, cuts) -> None:
    outputs, labels = rows_of(name, 30, seed)
    weights = 10 ** (
        20 * torch.rand(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 10
    )
    weights[seed % 30] = 0.0
    whole = EMPTY[name]().update(outputs, labels, weights=weights)
    merged = EMPTY[name]()
    edges = sorted({0, 30, *cuts})
    for begin, end in reversed(list(pairwise(edges))):
        part = EMPTY[name]().update(outputs[begin:end], labels[begin:end], weights=weights[begin:end])
        merged = part.merge(merged)
    assert merged == whole
    assert Report.from_json(whole.to_json()) == whole
    ones = EMPTY[name]().update(outputs, labels, weights=torch.ones(30))
    assert ones == EMPTY[name]().update(outputs, labels)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1e300)), max_size=20), st.integers(0, 20))
@example([(0, 6e-280), (0, 1.0)], 1)  # nothing between the limbs of one and of the other
def test_many_sums_are_exact(terms, cut) -> None:
    one, two, whole = ExactSums(3), ExactSums(3), ExactSums(3)
    for sums, part in ((one, terms[:cut]), (two, terms[cut:]), (whole, terms[::-1])):
        sums.add(np.array([p for p, _ in part], dtype=np.int64), np.array([t for _, t in part]))
    merged = one.plus(two)
    assert merged.to_json() == whole.to_json()
    assert ExactSums.from_json(json.loads(json.dumps(whole.to_json())), 3).to_json() == whole.to_json()
    for place, value in enumerate(whole.values):
        exact = sum((Fraction(term) for at, term in terms if at == place), Fraction(0))
        assert abs(Fraction(value) - exact) <= abs(exact) * Fraction(1, 2**52)


def test_sums_reach_from_the_smallest_float_to_beyond_the_largest() -> None:
    sums = ExactSums(2)
    sums.add(np.array([0, 0, 1, 1]), np.array([1.7e308, 1.7e308, 5e-324, 5e-324]))
    assert sums.values.tolist() == [np.inf, 1e-323]
    many = ExactSums(1)
    most = float(np.nextafter(2.0, 0.0))
    many.add(np.zeros(1_000_000, dtype=np.int64), np.full(1_000_000, most))
    assert many.values[0] == float(Fraction(most) * 1_000_000)


def test_counts_and_ones_are_the_same_sum() -> None:
    places = np.arange(5).repeat(3)
    counted, added = ExactSums(5), ExactSums(5)
    counted.add(places)
    added.add(places, np.ones(15))
    assert counted.to_json() == added.to_json()
    assert counted.values.tolist() == [3.0] * 5


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.array([0.1, np.nan, -0.0, np.inf]),
        np.zeros((0, 4), dtype=np.float32),
        np.array(7, dtype=np.uint8),
        np.array([True, False]),
        np.arange(6, dtype=">i4")[::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
def test_arrays_come_back_from_json(array) -> None:
    packed = json.loads(json.dumps(pack_array(array)))
    back = unpack_array(packed, array.dtype)
    assert back.shape == array.shape
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable


@pytest.mark.parametrize(
    ("change", "dtype", "words"),
    [
        ({"dtype": "|O"}, np.int64, "type of an array"),
        ({"dtype": "<U3"}, np.int64, "type of an array"),
        ({"dtype": ">i8"}, np.int64, "type of an array"),
        ({"dtype": 3}, np.int64, "type of an array"),
        ({"dtype": "i8,i8"}, np.int64, "type of an array"),
        ({}, np.float64, "expected an array of float64"),
        ({}, np.int32, "expected an array of int32"),
        ({"shape": [4]}, np.int64, "32 bytes"),
        ({"shape": [-3]}, np.int64, "number of rows"),
        ({"shape": [1 << 60]}, np.int64, "received 24"),
        ({"base64": "AAAA!"}, np.int64, "(?i)base64|discontinuous|padding"),
    ],
)
def test_arrays_that_lie_are_refused(change, dtype, words) -> None:
    with pytest.raises(ValueError, match=words):
        unpack_array(pack_array(np.arange(3)) | change, dtype)


@pytest.mark.parametrize(
    ("report", "outputs", "labels", "error", "words"),
    [
        (ROC(), torch.rand(2, 3), torch.zeros(2, 3), UserError, "one output, received 3"),
        (
            ROC(),
            torch.rand(2),
            torch.tensor([0, 2]),
            DataError,
            "row 1 of a batch: expected a label of 0 or 1",
        ),
        (ROC(), torch.tensor([0.5, float("nan")]), torch.zeros(2), UserError, "NaN in row 1"),
        (ROC(), torch.rand(2), None, UserError, "labels"),
        (ROC(), torch.rand(2), torch.zeros(3), UserError, "same shape"),
        (ROC(bins=5), torch.tensor([0.5, 1.5]), torch.zeros(2), UserError, "row 1 .*received 1.5"),
        (ROCBinary(names=["a"]), torch.rand(2, 3), torch.zeros(2, 3), UserError, "as many as names"),
        (ROCMultiClass(), torch.rand(2, 3), torch.tensor([0, 3]), DataError, "0 to 2, received 3"),
        (ROCMultiClass(), torch.rand(2, 3), torch.rand(2), UserError, "int64 labels"),
        (Calibration(), torch.randn(2, 3) - 5, torch.tensor([0, 1]), UserError, "activation="),
        (Calibration(names=["a"]), torch.rand(2, 2), torch.zeros(2, 2), UserError, "as many as names"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_counts_nothing(report, outputs, labels, error, words) -> None:
    with pytest.raises(error, match=words):
        report.update(outputs, labels)
    assert report == report.fresh()


@pytest.mark.parametrize(
    "weights", [torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, float("nan")])]
)
@pytest.mark.parametrize("report", [ROC(), Calibration()])
def test_weights_that_cannot_be_right_are_refused(report, weights) -> None:
    with pytest.raises(UserError if len(weights) == 3 else DataError, match="weight"):
        report.update(torch.rand(2), torch.zeros(2), weights=weights)
    assert report == report.fresh()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ROC(bins=0),
        lambda: ROC(bins=True),
        lambda: ROCBinary(names="ab"),
        lambda: Calibration(bins=0),
        lambda: Calibration(histogram_bins=1.5),
        lambda: Calibration(names=[1]),
        lambda: ROCBinary().auroc(average="all"),
        lambda: ROCBinary().curve("x"),
        lambda: Calibration().reliability("x"),
    ],
)
def test_options_are_checked(make) -> None:
    with pytest.raises(OptionError, match="hint:"):
        make()


@pytest.mark.parametrize(
    ("one", "two"),
    [(ROC(), ROC(5)), (ROCBinary(names=["a"]), ROCBinary()), (Calibration(5), Calibration(6))],
)
def test_reports_with_other_options_do_not_merge(one, two) -> None:
    with pytest.raises(UserError, match="expected bins"):
        one.merge(two)


def test_reports_of_other_columns_do_not_merge() -> None:
    for kind in (ROCBinary, Calibration):
        one = kind().update(torch.rand(2, 2), torch.zeros(2, 2))
        two = kind().update(torch.rand(2, 3), torch.zeros(2, 3))
        with pytest.raises(UserError, match=r"expected 2 .*received 3"):
            one.merge(two)
        with pytest.raises(UserError, match=r"expected 2 .*received 3"):
            one.update(torch.rand(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("report", [ROC(), ROC(4), ROCBinary(), Calibration(4)])
@pytest.mark.parametrize(
    "change", [{"columns": 3}, {"columns": [{}]}, {"rows": -1}, {"bins": 0}, {"names": 3}]
)
def test_json_that_is_no_such_report_is_refused(report, change) -> None:
    report = report.fresh().update(torch.rand(3), torch.tensor([0, 1, 1]))
    state = json.loads(report.to_json()) | change
    with pytest.raises(UserError, match="hint:"):
        Report.from_json(json.dumps(state))


def test_json_with_broken_arrays_is_refused() -> None:
    report = ROC().update(torch.tensor([0.5, 0.25]), torch.tensor([1, 0]))
    state = json.loads(report.to_json())
    for change in (
        {"positives": pack_array(np.array([1, 2, 3]))},
        {"positives": pack_array(np.array([0, 0]))},
        {"negatives": pack_array(np.array([-1, 2]))},
        {"scores": pack_array(np.array([0.5, np.nan]))},
        {"weights": pack_array(np.array([0.0, 1.0]))},
    ):
        broken = state | {"columns": [state["columns"][0] | change]}
        with pytest.raises(UserError, match="hint:"):
            ROC.from_json(json.dumps(broken))


def test_skipped_rows_are_merged_kept_and_shown() -> None:
    for report in (ROC(), ROCBinary(), Calibration()):
        report.skipped = 2
        merged = report.merge(report)
        assert Report.from_json(merged.to_json()).skipped == 4
        assert "(4 skipped)" in str(merged)


@pytest.mark.parametrize("name", EMPTY)
def test_tensors_may_be_used_again_after_an_update(name) -> None:
    outputs, labels = rows_of(name, 20, 1)
    outputs, weights = outputs.double(), torch.ones(20, dtype=torch.float64)
    expected = EMPTY[name]().update(outputs.clone(), labels.clone(), weights=weights.clone())
    assert expected.rows == 20
    report = EMPTY[name]().update(outputs, labels, weights=weights)
    for tensor in (outputs, labels, weights):
        tensor.zero_()
    assert report == EMPTY[name]().update(*rows_of(name, 20, 1))


@pytest.mark.parametrize("name", EMPTY)
def test_large_and_small_batches_are_the_same(name, monkeypatch) -> None:
    outputs, labels = rows_of(name, 100, 5)
    whole = EMPTY[name]().update(outputs, labels)
    monkeypatch.setattr("fatwood.evaluation.columns._AT_ONCE", 50)
    monkeypatch.setattr("fatwood.evaluation.scores._AT_ONCE", 30)
    one_by_one = EMPTY[name]()
    for i in range(100):
        weights = torch.ones(1) if i % 3 else None
        one_by_one.update(outputs[i : i + 1], labels[i : i + 1], weights=weights)
    assert one_by_one == whole
