"""Several reports by name, and how they are asked for."""

from __future__ import annotations

import pytest
import torch

from fatwood.errors import OptionError, UserError
from fatwood.evaluation import ROC, Classification, Loss, Report, Reports, TorchMetric
from fatwood.evaluation.reports import metrics_by_output, read_like

OUTPUTS, LABELS = torch.tensor([[2.0, 1.0], [0.0, 3.0], [0.5, 0.1]]), torch.tensor([0, 1, 1])


def filled() -> Reports:
    return Reports(
        {"a": Classification(2).update(OUTPUTS, LABELS, 1.5), "b <b>": Loss().update(OUTPUTS, LABELS, 1.5)}
    )


def test_a_mapping_that_merges_like_its_reports() -> None:
    reports = filled()
    assert list(reports) == ["a", "b <b>"]
    merged = reports.merge(filled())
    assert merged["b <b>"].rows == 6
    assert merged["a"] == reports["a"].merge(reports["a"])
    assert reports == filled() != merged
    with pytest.raises(UserError, match="expected 'a', 'b <b>', received 'a'"):
        reports.merge({"a": reports["a"]})


def test_json_of_all(tmp_path) -> None:
    reports = filled()
    text = reports.to_json(tmp_path / "reports.json")
    for source in (text, tmp_path / "reports.json"):
        again = Reports.from_json(source)
        assert again == reports
        assert again.to_json() == text
    for wrong in (
        '{"report": "reports", "version": 1}',
        '{"report": "reports", "version": 1, "reports": {"a": 3}}',
    ):
        with pytest.raises(UserError, match="expected an object of reports by name"):
            Reports.from_json(wrong)
    with pytest.raises(UserError, match="expected version 1 to 1, received 2"):
        Reports.from_json(text.replace('"version": 1', '"version": 2', 1))


def test_json_with_a_metric_of_torchmetrics() -> None:
    regression = pytest.importorskip("torchmetrics.regression")
    report = TorchMetric(regression.R2Score()).update(
        torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    )
    text = Reports({"r2": report, "loss": Loss()}).to_json()
    assert Reports.from_json(text, {"r2": regression.R2Score()})["r2"] == report
    with pytest.raises(UserError, match=r"Reports\.from_json\(text, metrics\)"):
        Reports.from_json(text)


def test_print_and_html(tmp_path) -> None:
    reports = filled()
    assert str(reports).startswith("a\n-\naccuracy")
    assert reports.summary()["b <b>/loss"] == 0.5
    assert repr(reports) == "Reports(a, b <b>)"
    page = reports.to_html(tmp_path / "page.html", title="My <i>model")
    assert (tmp_path / "page.html").read_text() == page
    assert "My &lt;i&gt;model" in page
    assert "b &lt;b&gt;" in page
    assert "<i>model" not in page
    assert "b &lt;b&gt;" in reports._repr_html_()


def test_names_of_what_is_asked_for() -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    torchmetrics = pytest.importorskip("torchmetrics")

    def names(metrics: object) -> list[str]:
        return list(metrics_by_output(metrics, [None])[None])

    auroc = classification.BinaryAUROC()
    both = torchmetrics.MetricCollection([auroc, classification.BinaryF1Score()], prefix="my_")
    assert names(Classification(top_n=2)) == ["classification"]
    assert names([Classification(), Loss(), auroc]) == ["classification", "loss", "binary_auroc"]
    assert names([TorchMetric(auroc)]) == ["binary_auroc"]
    assert names({"area": auroc, "exact": ROC()}) == ["area", "exact"]
    assert names(both) == ["my_BinaryAUROC", "my_BinaryF1Score"]
    assert names([both, Loss()]) == ["my_BinaryAUROC", "my_BinaryF1Score", "loss"]
    assert names({"x": both}) == ["x_my_BinaryAUROC", "x_my_BinaryF1Score"]


def test_reports_asked_for_start_empty() -> None:
    used = Loss().update(OUTPUTS, LABELS, 1.0)
    asked = metrics_by_output({"loss": used}, [None])[None]["loss"]
    assert (asked.rows, used.rows) == (0, 3)


def test_each_output_its_own() -> None:
    keys = ["digit", "angle"]
    same = metrics_by_output([Loss()], keys)
    assert {key: list(of) for key, of in same.items()} == {"digit": ["loss"], "angle": ["loss"]}
    assert same["digit"]["loss"] is not same["angle"]["loss"]
    own = metrics_by_output({"digit": Classification(), "angle": {"mine": Loss()}}, keys)
    assert {key: list(of) for key, of in own.items()} == {"digit": ["classification"], "angle": ["mine"]}
    by_position = metrics_by_output({0: Loss(), 1: [Loss(), Classification()]}, [0, 1])
    assert {key: list(of) for key, of in by_position.items()} == {0: ["loss"], 1: ["loss", "classification"]}


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ([], "expected at least one"),
        ({}, "expected at least one"),
        ("accuracy", "expected reports or metrics of torchmetrics, received 'accuracy'"),
        (Classification, r"received <class .*Classification\(\.\.\.\)"),
        ([Loss(), Loss()], r"'loss' twice.*dict"),
        ({0: Loss()}, "expected names as keys"),
        ({"a": [Loss()]}, r"received \[Loss"),
    ],
)
def test_what_cannot_be_asked_for(metrics, text) -> None:
    with pytest.raises(OptionError, match=f"(?s){text}"):
        metrics_by_output(metrics, [None])


def test_read_like() -> None:
    report = filled()["a"]
    assert read_like(Classification(), report.to_json()) == report
    assert isinstance(report, Report)
