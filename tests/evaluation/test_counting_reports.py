"""`BinaryClassification` and `Regression` beyond what scikit-learn knows of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fatwood.errors import DataError, UserError
from fatwood.evaluation import BinaryClassification, Regression, Report


def test_binary_shapes_that_mean_the_same() -> None:
    scores, truth = torch.tensor([0.9, 0.6, 0.2]), torch.tensor([1, 0, 0])
    expected = BinaryClassification().update(scores, truth)
    assert expected.precision() == 0.5
    for outputs, labels in (
        (scores[:, None], truth[:, None].bool()),
        (scores[:, None], truth),
        (scores, truth.double()),
        (torch.stack([1 - scores, scores], dim=1), truth),
    ):
        assert BinaryClassification().update(outputs, labels) == expected


def test_an_output_equal_to_its_threshold_is_a_no() -> None:
    scores = torch.tensor([0.3, 0.3])
    report = BinaryClassification(0.3).update(scores, torch.tensor([1, 0]))
    assert report.counts().tn.tolist() == report.counts().fn.tolist() == [1.0]
    below = BinaryClassification(math.nextafter(float(scores[0]), 0)).update(
        scores.double(), torch.tensor([1, 0])
    )
    assert below.counts().tp.tolist() == [1.0]


def test_binary_table_names_and_json(tmp_path) -> None:
    report = BinaryClassification([0.5, 0.2], names=["cat", "<dog>"])
    report.update(torch.tensor([[0.9, 0.3], [0.8, 0.1]]), torch.tensor([[1, 1], [0, 0]]))
    lines = str(report).splitlines()
    assert lines[1].split() == ["cat", "0.5000", "0.5000", "1.0000", "0.6667", "0.0000", "1", "1", "0", "0"]
    assert lines[3].split() == ["mean", "0.7500", "0.7500", "1.0000", "0.8333", "0.5000"]
    assert lines[-1] == "rows 2, threshold one each"
    report.to_json(tmp_path / "report.json")
    assert Report.from_json(tmp_path / "report.json") == report
    assert "&lt;dog&gt;" in report.to_html()
    many = BinaryClassification().update(torch.rand(2, 30), torch.ones(2, 30))
    assert "... and 10 more" in str(many)


def test_no_rows() -> None:
    for report in (BinaryClassification(), Regression(), Regression(names=["a"])):
        assert report.update(torch.empty(0, 3), torch.empty(0, 3)) == report.fresh()
        assert all(math.isnan(value) for name, value in report.summary().items() if name != "rows")
        assert "nan" in str(report)
        assert report.to_html()


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "words"),
    [
        ([[0.1, 0.2]], [[1, 2]], DataError, "0 or 1, received 2"),
        ([[0.1, 0.2, 0.3]], [1], UserError, "same shape"),
        ([[0.1, 0.2, 0.3]], [[1, 1, 0]], UserError, "columns"),
        ([[0.1, math.nan]], [[1, 1]], UserError, "NaN"),
    ],
)
def test_binary_refuses_what_it_cannot_count(outputs, labels, error, words) -> None:
    report = BinaryClassification(names=["a", "b"])
    with pytest.raises(error, match=words):
        report.update(torch.tensor(outputs), torch.tensor(labels))
    assert report == BinaryClassification(names=["a", "b"])


@pytest.mark.parametrize("threshold", [math.nan, [], [[0.5]], "high", [0.5, math.inf]])
def test_binary_threshold_is_checked(threshold) -> None:
    with pytest.raises(UserError, match="as threshold"):
        BinaryClassification(threshold)


def test_binary_options_must_agree() -> None:
    with pytest.raises(UserError, match="threshold for 2 columns, received 3"):
        BinaryClassification([0.1, 0.2, 0.3], names=["a", "b"])
    with pytest.raises(UserError, match=r"threshold 0.5 .* received 0.4"):
        BinaryClassification().merge(BinaryClassification(0.4))
    one, two = (BinaryClassification().update(torch.rand(1, k), torch.ones(1, k)) for k in (1, 2))
    with pytest.raises(UserError, match="1 columns, received 2"):
        one.merge(two)
    with pytest.raises(UserError, match="one of 2 columns, received 5"):
        two.f1(positive=5)


@pytest.mark.parametrize(
    "change", [{"counts": [[0, 4, 1]]}, {"counts": [[9, 0, 1]]}, {"rows": -1}, {"columns": 5}, {"weighed": 1}]
)
def test_binary_json_that_cannot_be_is_refused(change) -> None:
    report = BinaryClassification([0.5, 0.5]).update(torch.rand(3, 2), torch.ones(3, 2))
    with pytest.raises(UserError, match="hint:"):
        Report.from_json(json.dumps(json.loads(report.to_json()) | change))


def test_labels_around_a_million_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    label, noise = torch.randn(2, 10_000, generator=generator, dtype=torch.float64).unbind()
    near = Regression().update(label + noise, label)
    # 2**20 is added without rounding to numbers of 2**-30
    label, noise = ((part * 2**30).round() / 2**30 for part in (label, noise))
    near, far = (Regression().update(at + label + noise, at + label) for at in (0, 2**20))
    for name in ("mse", "mae", "r2", "rse", "pearson"):
        assert getattr(far, name)() == pytest.approx(getattr(near, name)(), rel=1e-12)


def test_regression_of_labels_that_are_all_equal() -> None:
    report = Regression().update(
        torch.tensor([[1.0, 1.0], [2.0, 3.0]]), torch.tensor([[5.0, 1.0], [5.0, 2.0]])
    )
    assert math.isnan(report.r2(None)[0])
    assert math.isnan(report.pearson(None)[0])
    assert report.r2() == report.r2(None)[1] == -1.0
    one = Regression().update(torch.tensor([1.0]), torch.tensor([3.0]))
    assert (one.mse(), one.mae(), math.isnan(one.r2())) == (4.0, 2.0, True)


def test_regression_shapes_weights_and_names() -> None:
    label = torch.tensor([1.0, 2.0, 3.0])
    expected = Regression().update(label + 1, label)
    assert Regression().update((label + 1)[:, None], label) == expected
    assert Regression().update((label + 1).int(), label) == expected
    images = torch.rand(4, 1, 2, 3)
    assert Regression().update(images, images * 2).mae(None).shape == (6,)
    twice = Regression().update(label * 2, label, weights=torch.tensor([2.0, 0.0, 1.0]))
    assert twice.mae() == (1 * 2 + 3) / 3
    assert twice.rows == 3
    named = Regression(names=["height", "width"]).update(torch.ones(2, 2), torch.zeros(2, 2))
    assert [line.split()[:2] for line in str(named).splitlines()[1:4]] == [
        ["height", "1"],
        ["width", "1"],
        ["mean", "1"],
    ]
    assert "height" in named.to_html()
    assert Report.from_json(named.to_json()) == named
    with pytest.raises(UserError, match=r"expected a report of the columns \['height', 'width'\]"):
        named.merge(twice)


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "words"),
    [
        ([[1.0, 2.0]], [1.0], UserError, r"one shape .* \(1, 2\) and \(1,\)"),
        ([1.0, math.nan], [1.0, 1.0], UserError, "row 1 .* finite outputs"),
        ([1.0, 1.0], [math.inf, 1.0], DataError, "row 0 .* finite labels"),
        ([1e200], [1.0], UserError, "squares can be added"),
    ],
)
def test_regression_refuses_what_it_cannot_count(outputs, labels, error, words) -> None:
    report = Regression()
    with pytest.raises(error, match=words):
        report.update(torch.tensor(outputs, dtype=torch.float64), torch.tensor(labels))
    assert report == Regression()
    with pytest.raises(UserError, match="average"):
        report.mse("weighted")
    report.update(torch.ones(2), torch.ones(2))
    with pytest.raises(UserError, match="1 columns, received 2"):
        report.update(torch.ones(2, 2), torch.ones(2, 2))


@pytest.mark.parametrize("change", [{"columns": 3}, {"sums": {}}, {"rows": 0.5}, {"names": ["a", "b"]}])
def test_regression_json_that_cannot_be_is_refused(change) -> None:
    report = Regression().update(torch.ones(2), torch.ones(2))
    with pytest.raises(UserError, match="hint:"):
        Report.from_json(json.dumps(json.loads(report.to_json()) | change))


def test_memory_does_not_follow_the_rows() -> None:
    label = torch.randn(50_000, 2)
    report = Regression().update(label * 1.1, label)
    assert len(report.to_json()) < 5000
    np.testing.assert_allclose(report.pearson(None), 1.0, atol=1e-9)
