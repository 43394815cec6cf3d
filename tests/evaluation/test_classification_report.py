from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fatwood.errors import DataError, UserError
from fatwood.evaluation import Classification


def _report(
    rows: int = 200, classes: int = 3, seed: int = 0
) -> tuple[Classification, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    loss = float(torch.nn.functional.cross_entropy(outputs, labels, reduction="sum"))
    return Classification.empty(classes).update(outputs, labels, loss), outputs, labels


def test_equals_a_plain_count_over_all_rows() -> None:
    report, outputs, labels = _report()
    predicted = outputs.argmax(dim=1)
    expected = np.zeros((3, 3), dtype=np.int64)
    for true, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        expected[true, guess] += 1
    assert report.rows == 200
    assert report.confusion.dtype == np.int64
    np.testing.assert_array_equal(report.confusion, expected)
    assert report.accuracy == pytest.approx(float((predicted == labels).float().mean()))
    assert report.loss == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, labels)))


def test_no_rows_are_nan_without_a_warning() -> None:
    report = Classification.empty(2).update(torch.empty(0, 2), torch.empty(0, dtype=torch.int64), math.nan)
    assert report == Classification.empty(2)
    assert math.isnan(report.accuracy)
    assert math.isnan(report.loss)
    assert report.rows == 0
    assert "nan" in str(report)


def test_a_loss_that_is_not_finite_survives_merge_and_strict_json() -> None:
    one = Classification.empty(2).update(torch.eye(2), torch.tensor([0, 1]), math.inf)
    two = Classification.empty(2).update(torch.eye(2), torch.tensor([0, 1]), math.nan)
    assert one.merge(Classification.empty(2)).loss == math.inf
    merged = one.merge(two)
    assert math.isnan(merged.loss)
    json.loads(merged.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert Classification.from_json(merged.to_json()) == merged


def test_first_of_equal_outputs_wins() -> None:
    report = Classification.empty(3).update(torch.zeros(1, 3), torch.tensor([0]), 0.0)
    assert report.accuracy == 1.0


def test_matrix_is_shown_with_totals() -> None:
    report = Classification.empty(2)
    report.update(torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2), torch.tensor([0, 0, 1, 1, 0]), 2.5)
    assert str(report) == (
        "accuracy  0.6000\n"
        "loss      0.5\n"
        "rows      5\n"
        "\n"
        "confusion (down: true class, across: predicted class)\n"
        "           0      1  total\n"
        "    0      2      1      3\n"
        "    1      1      1      2\n"
        "total      3      2      5"
    )


def test_many_classes_show_the_ten_worst_confusions() -> None:
    report = Classification.empty(1000)
    for true in range(1, 15):
        outputs = torch.zeros(true, 1000)
        outputs[:, 999] = 1.0
        report.update(outputs, torch.full((true,), true), 0.0)
    shown = str(report).splitlines()
    assert "most frequent confusions (10 of 14; 1,000 classes)" in shown
    assert [line.split() for line in shown[-10:]] == [[str(n), "999", str(n)] for n in range(14, 4, -1)]
    assert "no confusions" in str(Classification.empty(1000))


def test_memory_follows_the_rows_and_not_the_square_of_the_classes() -> None:
    classes = 200_000
    report = Classification.empty(classes).update(torch.zeros(3, classes), torch.tensor([0, 7, 199_999]), 0.0)
    assert len(report.to_json()) < 300
    assert report.accuracy == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "words"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), DataError, ["row 1", "0 to 2", "received 3"]),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), DataError, ["row 0", "received -1"]),
        (torch.zeros(2, 4), torch.tensor([0, 1]), UserError, ["(rows, 3)", "(2, 4)"]),
        (torch.zeros(2), torch.tensor([0, 1]), UserError, ["(rows, 3)", "(2,)"]),
        (torch.zeros(2, 3), torch.tensor([0]), UserError, ["(2,)", "(1,)"]),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), UserError, ["int64", "float32"]),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), UserError, ["(2, 3)", "one-hot"]),
        (
            torch.tensor([[0.0, 1, 2], [0, math.nan, 0]]),
            torch.tensor([0, 1]),
            UserError,
            ["NaN in row 1", "hint"],
        ),
    ],
)
def test_what_cannot_be_counted_is_refused_and_counts_nothing(outputs, labels, error, words) -> None:
    report = Classification.empty(3)
    with pytest.raises(error) as caught:
        report.update(outputs, labels, 1.0)
    assert [word for word in words if word not in str(caught.value)] == []
    assert report == Classification.empty(3)


def test_reports_of_other_classes_do_not_merge() -> None:
    with pytest.raises(UserError, match="3 classes, received 4"):
        Classification.empty(3).merge(Classification.empty(4))


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, None])
def test_number_of_classes_is_checked(classes) -> None:
    with pytest.raises(UserError, match="at least 1 class"):
        Classification.empty(classes)


@pytest.mark.parametrize(
    "change",
    [
        {"report": "loss"},
        {"version": 2},
        {"version": "1"},
        {"classes": 0},
        {"confusion": [[0, 0]]},
        {"confusion": [[0, 3, 1]]},
        {"confusion": [[-1, 0, 1]]},
        {"confusion": [[0, 0, -1]]},
        {"confusion": [[0, 0, 0.5]]},
        {"confusion": None},
        {"loss_sum": ["twelve"]},
        {"loss_sum": 1},
    ],
)
def test_json_that_is_no_such_report_is_refused(change) -> None:
    state = json.loads(_report()[0].to_json()) | change
    with pytest.raises(UserError, match="hint:"):
        Classification.from_json(json.dumps(state))


@pytest.mark.parametrize(
    "text", ["", "[]", "[null]", "{}", "{", "[" * 100_000, '{"report": "classification", "version": 1}']
)
def test_text_that_is_no_report_is_refused(text) -> None:
    with pytest.raises(UserError, match="classification report"):
        Classification.from_json(text)


def test_a_newer_version_is_named_with_ours() -> None:
    state = json.loads(_report()[0].to_json()) | {"version": 7}
    with pytest.raises(UserError, match=r"version 1 to 1, received 7"):
        Classification.from_json(json.dumps(state))
