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
    assert str(report).splitlines() == [
        "accuracy  0.6000",
        "loss      0.5",
        "precision 0.5833",
        "recall    0.5833",
        "f1        0.5833",
        "mcc       0.1667",
        "rows      5",
        "(precision, recall and f1: mean over the classes)",
        "",
        "class  precision  recall      f1  true  predicted",
        "    0     0.6667  0.6667  0.6667     3          3",
        "    1     0.5000  0.5000  0.5000     2          2",
        "",
        "confusion (down: true class, across: predicted class)",
        "       0  1  total",
        "    0  2  1      3",
        "    1  1  1      2",
        "total  3  2      5",
    ]


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
    assert len(report.to_json()) < 500
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
    if classes is not None:
        with pytest.raises(UserError, match="at least 1 class"):
            Classification(classes)


@pytest.mark.parametrize(
    "change",
    [
        {"report": "loss"},
        {"version": 3},
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
        {"weighed": [[0, 0, []]]},
        {"weighed": [[0, 3, [1.0]]]},
        {"weighed_rows": -1},
        {"top_n": 0},
        {"names": ["a", "b"]},
        {"cost": [1.0]},
        {"threshold": 0.5},
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
    with pytest.raises(UserError, match=r"version 1 to 2, received 7"):
        Classification.from_json(json.dumps(state))


def test_version_1_is_read() -> None:
    old = """{"report": "classification", "version": 1, "classes": 2, "loss_sum": [2.5], "skipped": 1,
        "confusion": [[0, 0, 2], [0, 1, 1], [1, 0, 1], [1, 1, 1]]}"""
    report = Classification.from_json(old)
    assert (report.rows, report.loss, report.accuracy, report.skipped) == (5, 0.5, 0.6, 1)
    assert Classification.from_json(report.to_json()) == report.merge(Classification())


def test_classes_are_learnt_from_the_first_rows() -> None:
    whole, outputs, labels = _report(classes=5)
    report = Classification().update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert report.classes is None
    assert report.confusion.shape == (0, 0)
    assert math.isnan(report.f1())
    assert "rows      0" in str(report)
    report.update(outputs, labels, whole.loss * whole.rows)
    assert report.classes == 5
    assert report == Classification().merge(report) == report.merge(Classification())
    with pytest.raises(UserError, match=r"\(rows, 5\), received \(1, 4\)"):
        report.update(torch.zeros(1, 4), torch.tensor([0]))


def test_weights_are_in_every_figure_but_rows() -> None:
    outputs, labels = torch.tensor([[1.0, 0], [0, 1], [1, 0]]), torch.tensor([0, 1, 1])
    once = Classification().update(outputs, labels, 6.0, weights=torch.tensor([2.0, 0.5, 1.5]))
    assert (once.rows, once.accuracy, once.loss) == (3, 0.625, 1.5)
    assert once.confusion.tolist() == [[2.0, 0.0], [1.5, 0.5]]
    assert once.recall(None).tolist() == [1.0, 0.25]
    assert Classification.from_json(once.to_json()) == once
    zero = Classification().update(outputs, labels, 0.0, weights=torch.zeros(3))
    assert (zero.rows, zero.confusion.sum()) == (3, 0)
    assert math.isnan(zero.accuracy)
    mixed = once.merge(Classification().update(outputs, labels, 1.0))
    assert mixed.confusion.tolist() == [[3.0, 0.0], [2.5, 1.5]]
    assert mixed.rows == 6


def test_a_loss_with_weights_of_its_own_changes_no_other_figure() -> None:
    outputs, labels = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([0, 1])
    report = Classification().update(outputs, labels, 3.0, loss_weight=4.0)
    assert (report.loss, report.accuracy) == (0.75, 0.5)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [1.0, math.inf], [math.nan, 1.0], [1.0]])
def test_wrong_weights_are_refused_and_count_nothing(weights) -> None:
    report = Classification(2)
    with pytest.raises(UserError, match="weight"):
        report.update(torch.eye(2), torch.tensor([0, 1]), 0.0, weights=torch.tensor(weights))
    assert report == Classification(2)


def test_cost_and_threshold_move_the_prediction() -> None:
    outputs = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1]])
    labels = torch.tensor([1, 1, 0])

    def recall(**options) -> float:
        return Classification(**options).update(outputs, labels).recall(positive=1)

    assert recall() == 0.0
    assert recall(threshold=0.35) == 0.5
    assert recall(threshold=0.25) == 1.0
    assert recall(cost=[1, 2]) == 0.5
    assert recall(cost=torch.tensor([1.0, 3.0])) == 1.0
    assert recall(cost=[[1, 0], [0, 3]]) == 1.0
    assert (
        recall(cost=[[1, 1], [0, 0.1]]) == 1.0
    )  # class 1 is worth as much as 0 where 0 is true, and never less


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_n": 0}, "top_n"),
        ({"names": ["a", "a"]}, "names that differ"),
        ({"names": "ab"}, "names that differ"),
        ({"names": ["a", "b"], "classes": 3}, "names of 3 classes"),
        ({"cost": [[1.0, 2.0]]}, "cost of shape"),
        ({"cost": [1.0, math.nan]}, "cost of shape"),
        ({"cost": "high"}, "cost of shape"),
        ({"cost": [1.0, 2.0], "threshold": 0.5}, "threshold or cost"),
        ({"threshold": math.nan}, "a number as threshold"),
        ({"threshold": 0.5, "classes": 3}, "two classes"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words) -> None:
    with pytest.raises(UserError, match=words):
        Classification(**options)


def test_logits_are_refused_where_probabilities_are_needed() -> None:
    with pytest.raises(UserError, match=r"probabilities from 0 to 1.*-1 to 2"):
        Classification(threshold=0.5).update(torch.tensor([[-1.0, 2.0]]), torch.tensor([0]))
    with pytest.raises(UserError, match=r"\(rows, 3\), received \(1, 2\)"):
        Classification(cost=[1, 2, 3]).update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))


def test_top_n_counts_the_first_of_equals_first() -> None:
    outputs = torch.tensor([[0.5, 0.5, 0.5, 0.9]] * 4)
    labels = torch.tensor([0, 1, 2, 3])
    found = [Classification(top_n=n).update(outputs, labels).top_n_accuracy for n in (1, 2, 3, 4)]
    assert found == [0.25, 0.5, 0.75, 1.0]
    weighed = Classification(top_n=2).update(outputs, labels, weights=torch.tensor([1.0, 2.0, 3.0, 2.0]))
    assert weighed.top_n_accuracy == 3 / 8
    assert "top 2 accuracy 0.3750" in str(weighed)
    with pytest.raises(UserError, match="top_n=2"):
        weighed.merge(Classification(top_n=3))


def test_names_are_shown_and_find_classes() -> None:
    report = Classification(names=["cat", "dog"]).update(torch.eye(2), torch.tensor([0, 0]))
    assert report.recall(positive="cat") == 0.5
    assert "cat" in str(report)
    assert Classification.from_json(report.to_json()).name(1) == "dog"
    html = Classification(names=["<b>", "dog"]).update(torch.eye(2), torch.tensor([0, 0])).to_html()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_averages() -> None:
    report = Classification(3)
    report.update(torch.eye(3)[[0, 0, 1, 1]], torch.tensor([0, 1, 1, 1]))  # class 2 never occurs
    assert report.precision(None).tolist()[:2] == [0.5, 1.0]
    assert math.isnan(report.precision(None)[2])
    assert report.precision() == 0.75
    assert report.precision("micro") == report.accuracy == 0.75
    assert report.precision("weighted") == pytest.approx((0.5 + 3 * 1.0) / 4)
    assert report.false_negative_rate(None).tolist()[:2] == [0.0, pytest.approx(1 / 3)]
    assert report.f_beta(2.0, positive=1) == pytest.approx(5 * (2 / 3) / (4 + 2 / 3))
    with pytest.raises(UserError, match="two classes for average='binary'"):
        report.f1("binary")
    for wrong in ({"average": "mean"}, {"positive": 3}, {"positive": "dog"}):
        with pytest.raises(UserError, match="Classification: expected"):
            report.f1(**wrong)
    with pytest.raises(UserError, match="beta above 0"):
        report.f_beta(0.0)
    two = Classification(2).update(torch.eye(2)[[0, 1, 1]], torch.tensor([0, 0, 1]))
    assert two.precision("binary") == two.precision(positive=1) == 0.5
    assert two.precision() == 0.75


def test_many_classes_on_a_page() -> None:
    report = Classification(1000).update(torch.eye(1000)[:60], torch.arange(60).roll(1))
    html = report.to_html()
    assert "the 50 most frequent of 1,000" in html
    assert html.count("<tr") < 250
