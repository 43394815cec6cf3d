"""Curves, areas and calibration against scikit-learn, for random splits; and what Deeplearning4j wrote."""

from __future__ import annotations

import json
import math
import random
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.calibration import calibration_curve
from torch import Tensor

from fatwood.errors import UserError
from fatwood.evaluation.calibration import Calibration
from fatwood.evaluation.curves import ROC, ROCBinary, ROCMultiClass, roc_from_dl4j
from fatwood.evaluation.report import Report

ROWS = 600


def split(empty: Report, outputs: Tensor, labels: Tensor, weights: Tensor | None, parts: int) -> Any:
    """The report of all rows, merged in random order from so many parts, some of them empty."""
    rng = random.Random(parts)
    cuts = sorted([0, len(outputs), *(rng.randint(0, len(outputs)) for _ in range(parts - 1))])
    reports = []
    for begin, end in pairwise(cuts):
        weight = None if weights is None else weights[begin:end]
        reports.append(empty.fresh().update(outputs[begin:end], labels[begin:end], weights=weight))
    rng.shuffle(reports)
    return reduce(lambda one, other: one.merge(other), reports)


def data(kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores, truths and weights."""
    generator = torch.Generator().manual_seed(7)
    scores = torch.rand(ROWS, generator=generator)
    truths = (torch.rand(ROWS, generator=generator) < scores**2).long()
    weights = None
    if kind == "ties":
        scores = (scores * 8).round() / 8
    if kind == "imbalanced":
        truths = torch.zeros(ROWS, dtype=torch.long)
        truths[[3, 400]] = 1
    if kind == "logits":
        scores = (scores * 1e6 - 3e5).logit(eps=1e-3) * 1e5
    if kind == "weighted":
        scores = (scores * 20).round() / 20
        weights = torch.rand(ROWS, generator=generator, dtype=torch.float64)
        weights[::7] = 0
    return scores, truths, weights


@pytest.mark.parametrize("parts", [1, 2, 7, 50])
@pytest.mark.parametrize("kind", ["plain", "ties", "imbalanced", "logits", "weighted"])
def test_exact_curves_are_those_of_scikit_learn(kind, parts) -> None:
    scores, truths, weights = data(kind)
    report = split(ROC(), scores, truths, weights, parts)
    s, y = scores.double().numpy(), truths.numpy()
    w = None if weights is None else weights.numpy()
    assert report.auroc() == pytest.approx(metrics.roc_auc_score(y, s, sample_weight=w), abs=1e-9)
    assert report.auprc() == pytest.approx(metrics.average_precision_score(y, s, sample_weight=w), abs=1e-9)
    expected = metrics.roc_curve(y, s, sample_weight=w, drop_intermediate=False)
    for received, wanted in zip(report.curve(), expected, strict=True):
        np.testing.assert_allclose(received, wanted, atol=1e-9)
    expected = metrics.precision_recall_curve(y, s, sample_weight=w)
    curve = report.precision_recall_curve()
    there = np.isin(expected[2], curve.thresholds)  # scikit-learn keeps scores of rows that weigh nothing
    assert there.sum() == len(curve.thresholds)
    for received, wanted in zip(curve[:2], expected[:2], strict=True):
        np.testing.assert_allclose(received, wanted[np.append(there, True)], atol=1e-9)
    assert report.rows == ROWS


@pytest.mark.parametrize("parts", [1, 13])
@pytest.mark.parametrize("kind", ["plain", "imbalanced", "weighted"])
def test_binned_curves_are_those_of_scores_rounded_down(kind, parts) -> None:
    scores, truths, weights = data(kind)
    bins = 32
    report = split(ROC(bins=bins), scores, truths, weights, parts)
    s, y = np.floor(scores.double().numpy() * bins) / bins, truths.numpy()
    w = None if weights is None else weights.numpy()
    assert report.auroc() == pytest.approx(metrics.roc_auc_score(y, s, sample_weight=w), abs=1e-9)
    assert report.auprc() == pytest.approx(metrics.average_precision_score(y, s, sample_weight=w), abs=1e-9)
    assert len(report.curve().thresholds) == bins + 2


@pytest.mark.parametrize("parts", [1, 9])
@pytest.mark.parametrize("weighted", [False, True])
def test_classes_against_all_others(parts, weighted) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (ROWS,), generator=generator) % 3  # class 0 is the most frequent
    outputs = (torch.randn(ROWS, 3, generator=generator) + torch.eye(3)[labels]).softmax(1).double()
    outputs /= outputs.sum(1, keepdim=True)
    weights = torch.rand(ROWS, generator=generator).double() if weighted else None
    report = split(ROCMultiClass(names=["x", "y", "z"]), outputs, labels, weights, parts)
    y, p, w = labels.numpy(), outputs.numpy(), None if weights is None else weights.numpy()
    hot = np.eye(3)[y]
    for average in ("macro", "weighted"):
        auroc = metrics.roc_auc_score(y, p, multi_class="ovr", average=average, sample_weight=w)
        assert report.auroc(average=average) == pytest.approx(auroc, abs=1e-9)
    for average in ("macro", "weighted", "micro"):
        auprc = metrics.average_precision_score(hot, p, average=average, sample_weight=w)
        assert report.auprc(average=average) == pytest.approx(auprc, abs=1e-9)
    micro = metrics.roc_auc_score(hot, p, average="micro", sample_weight=w)
    assert report.auroc(average="micro") == pytest.approx(micro, abs=1e-9)
    single = [metrics.roc_auc_score(hot[:, k], p[:, k], sample_weight=w) for k in range(3)]
    np.testing.assert_allclose(report.auroc(average=None), single, atol=1e-9)
    expected = metrics.roc_curve(hot[:, 1], p[:, 1], sample_weight=w, drop_intermediate=False)
    np.testing.assert_allclose(report.curve("y").tpr, expected[1], atol=1e-9)
    assert report.precision_recall_curve(1).recall[0] == pytest.approx(1.0)


def test_two_classes_are_one_question_and_columns_are_their_own() -> None:
    scores, truths, _ = data("plain")
    two = ROC().update(torch.stack([1 - scores, scores], dim=1), truths)
    assert two == ROC().update(scores, truths) == ROC().update(scores[:, None], truths.bool())
    many = ROCBinary().update(torch.stack([scores, 1 - scores], 1), torch.stack([truths, truths], 1))
    assert many.auroc(average=None).tolist() == pytest.approx([two.auroc(), 1 - two.auroc()])
    assert many.auroc() == pytest.approx(0.5)


@pytest.mark.parametrize("bins", [None, 10])
def test_one_class_alone_is_said_and_no_error(bins) -> None:
    ones = ROC(bins).update(torch.tensor([0.3, 0.4]), torch.ones(2))
    assert math.isnan(ones.auroc())
    assert ones.auprc() == 1.0
    assert "note: There are no negatives" in str(ones)
    zeros = ROC(bins).update(torch.tensor([0.3, 0.4]), torch.zeros(2))
    assert math.isnan(zeros.auprc())
    assert "note: There are no positives" in str(zeros)
    assert np.isnan(zeros.curve().tpr[1:]).all()
    both = ones.merge(zeros)
    assert both.auroc() == 0.5
    empty = ROC(bins)
    assert math.isnan(empty.auroc())
    assert "nan" in str(empty)
    assert len(empty.curve().fpr) == (1 if bins is None else 12)
    lonely = ROCMultiClass(bins).update(
        torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]), torch.tensor([0, 1])
    )
    assert lonely.auroc() == 1.0
    assert "without positives are left out of means: 2." in str(lonely)


def test_what_a_print_shows() -> None:
    report = ROCBinary(names=["cat", "dog"])
    report.update(torch.tensor([[0.1, 0.9], [0.8, 0.4], [0.6, 0.7]]), torch.tensor([[0, 1], [1, 0], [0, 0]]))
    assert str(report) == (
        "auroc  1.0000  mean of the columns\n"
        "auprc  1.0000\n"
        "rows   3\n"
        "\n"
        "column     auroc   auprc    positives\n"
        "cat       1.0000  1.0000            1\n"
        "dog       1.0000  1.0000            1"
    )
    assert report.summary() == {"auroc": 1.0, "auprc": 1.0, "rows": 3}
    many = ROCBinary().update(torch.rand(4, 30), torch.randint(0, 2, (4, 30)))
    assert "... 10 more" in str(many)


@pytest.mark.parametrize("parts", [1, 11])
@pytest.mark.parametrize("weighted", [False, True])
def test_calibration_of_classes(parts, weighted) -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (ROWS,), generator=generator)
    outputs = (2 * torch.randn(ROWS, 3, generator=generator) + torch.eye(3)[labels]).softmax(1)
    weights = torch.rand(ROWS, generator=generator).double() if weighted else None
    report = split(Calibration(bins=12, histogram_bins=20), outputs, labels, weights, parts)
    p, y = outputs.double().numpy(), labels.numpy()
    w = np.ones(ROWS) if weights is None else weights.numpy()
    top, right = p.max(1), p.argmax(1) == y
    assert report.expected_calibration_error() == pytest.approx(_error(top, right, w, 12), abs=1e-9)
    for k in range(3):
        diagram = report.reliability(k)
        assert diagram.error() == pytest.approx(_error(p[:, k], y == k, w, 12), abs=1e-9)
        if not weighted:
            share, mean = calibration_curve(y == k, p[:, k], n_bins=12)
            there = diagram.counts > 0
            np.testing.assert_allclose(diagram.positives[there], share, atol=1e-9)
            np.testing.assert_allclose(diagram.probability[there], mean, atol=1e-9)
        hist = np.histogram(p[y == k, k], 20, (0, 1), weights=w[y == k])[0]
        np.testing.assert_allclose(report.histogram(k, positives=True), hist, atol=1e-9)
        hist = np.histogram(1 - p[y == k, k], 20, (0, 1), weights=w[y == k])[0]
        np.testing.assert_allclose(report.residual_histogram(k), hist, atol=1e-9)
    every = np.broadcast_to(w[:, None], p.shape)
    np.testing.assert_allclose(report.histogram(), np.histogram(p, 20, (0, 1), weights=every)[0], atol=1e-9)
    away = np.abs(np.eye(3)[y] - p)
    np.testing.assert_allclose(
        report.residual_histogram(), np.histogram(away, 20, (0, 1), weights=every)[0], atol=1e-9
    )
    np.testing.assert_allclose(report.label_counts, np.bincount(y, w), atol=1e-9)
    np.testing.assert_allclose(report.predicted_counts, np.bincount(p.argmax(1), w), atol=1e-9)
    np.testing.assert_allclose(report.calibration_errors(), [report.reliability(k).error() for k in range(3)])


def _error(probability: np.ndarray, truth: np.ndarray, weight: np.ndarray, bins: int) -> float:
    """The expected calibration error by its definition."""
    places = np.minimum((probability * bins).astype(int), bins - 1)
    total = sum(
        abs((weight * (probability - truth))[places == b].sum()) for b in range(bins) if (places == b).any()
    )
    return float(total / weight.sum())


def test_calibration_of_binary_outputs_and_edges_of_bins() -> None:
    report = Calibration(bins=2).update(torch.tensor([0.0, 0.5, 1.0, 0.49]), torch.tensor([0, 0, 1, 1]))
    diagram = report.reliability()
    assert diagram.counts.tolist() == [2, 2]
    assert diagram.probability.tolist() == pytest.approx([0.245, 0.75])
    assert diagram.positives.tolist() == [0.5, 0.5]
    assert report.top_reliability() is None
    assert report.expected_calibration_error() == pytest.approx((0.255 + 0.25) / 2)
    assert report.predicted_counts.tolist() == [1]
    two = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    assert Calibration().update(two, torch.tensor([1, 0])) == Calibration().update(
        two[:, 1], torch.tensor([1, 0])
    )
    assert "expected calibration error  0.2525\nrows  4" in str(report)
    assert math.isnan(Calibration().expected_calibration_error())
    assert "nan" in str(Calibration())
    sums = Calibration().update(torch.tensor([1.0000001]), torch.tensor([1]))
    assert sums.reliability().counts[-1] == 1


def dl4j_roc(scores: Tensor, truths: Tensor, steps: int, *, thin: bool) -> dict[str, Any]:
    """What Deeplearning4j would write, by its algorithm."""
    positives, negatives = int(truths.sum()), int((1 - truths).sum())
    state: dict[str, Any] = {"@class": "org.nd4j.evaluation.classification.ROC", "thresholdSteps": steps}
    state |= {"countActualPositive": positives, "countActualNegative": negatives, "counts": {}}
    state |= {"isExact": steps == 0, "exampleCount": len(scores), "rocRemoveRedundantPts": thin}
    for i in range(steps + 1 if steps else 0):
        at = i * (1 / steps)
        chosen = (scores >= at) & (at < 1.0)
        hits, alarms = int(truths[chosen].sum()), int((1 - truths)[chosen].sum())
        state["counts"][str(at)] = {"threshold": at, "countTruePositive": hits, "countFalsePositive": alarms}
    if not steps:
        order = scores.argsort(descending=True, stable=True)
        x = [0.0, *((1 - truths[order]).cumsum(0) / max(1, negatives)).tolist(), 1.0]
        y = [0.0, *(truths[order].cumsum(0) / max(1, positives)).tolist(), 1.0]
        t = [1.0, *scores[order].tolist(), 0.0]
        keep = [
            i for i in range(len(t))
            if not thin or i in (0, len(t) - 1) or not (x[i - 1] == x[i] == x[i + 1] or y[i - 1] == y[i] == y[i + 1])
        ]  # fmt: skip
        points = {
            name: [values[i] for i in keep] for name, values in (("threshold", t), ("fpr", x), ("tpr", y))
        }
        state["rocCurve"] = {"@class": "org.nd4j.evaluation.curves.RocCurve", **points}
    return json.loads(json.dumps(state))


def test_deeplearning4j_thresholds_are_read_and_merge() -> None:
    scores, truths, _ = data("plain")
    report = roc_from_dl4j(dl4j_roc(scores, truths, 20, thin=True))
    assert isinstance(report, ROC)
    assert report == ROC(20).update(scores, truths)
    half = roc_from_dl4j(dl4j_roc(scores[:300], truths[:300], 20, thin=True))
    other = ROC(20).update(scores[300:], truths[300:])
    assert half.merge(other) == report


def test_deeplearning4j_exact_curves_are_read() -> None:
    scores, truths, _ = data("plain")
    expected = ROC().update(scores, truths)
    whole = roc_from_dl4j(dl4j_roc(scores, truths, 0, thin=False))
    assert whole.complete
    assert whole == expected
    thin = roc_from_dl4j(dl4j_roc(scores, truths, 0, thin=True))
    assert isinstance(thin, ROC)
    assert not thin.complete
    assert thin.auroc() == pytest.approx(expected.auroc(), abs=1e-9)
    assert thin.rows == ROWS
    assert "scores of single rows are not there" in str(thin)
    assert ROC.from_json(thin.to_json()) == thin
    assert thin.merge(ROC()) == thin
    for change in (
        lambda: thin.merge(expected),
        lambda: expected.merge(thin),
        lambda: thin.update(scores, truths),
    ):
        with pytest.raises(UserError, match="holds curves only"):
            change()


def test_deeplearning4j_columns_and_empty_reports_are_read() -> None:
    scores, truths, _ = data("plain")
    parts = [dl4j_roc(scores, truths, 10, thin=True), dl4j_roc(1 - scores, 1 - truths, 10, thin=True)]
    state = {"@class": "org.deeplearning4j.eval.ROCMultiClass", "underlying": parts, "labels": ["no", "yes"]}
    report = roc_from_dl4j(state)
    assert isinstance(report, ROCMultiClass)
    assert report.column_names == ["no", "yes"]
    assert report.rows == ROWS
    empty = roc_from_dl4j(
        {"@class": "org.nd4j.evaluation.classification.ROCBinary", "underlying": None, "thresholdSteps": 5}
    )
    assert empty == ROCBinary(5)
    one = roc_from_dl4j(dl4j_roc(scores, torch.ones_like(truths), 0, thin=True))
    assert isinstance(one, ROC)
    assert math.isnan(one.auroc())


@pytest.mark.parametrize(
    "change",
    [
        {"@class": "org.nd4j.evaluation.classification.Evaluation"},
        {"rocCurve": None},
        {"countActualPositive": 5},
        {"thresholdSteps": 5},
        {"rocCurve": {"threshold": [1.0, 0.0], "fpr": [0.0, "x"], "tpr": [0.0, 1.0]}},
    ],
)
def test_other_json_is_refused(change) -> None:
    scores, truths, _ = data("plain")
    with pytest.raises(UserError, match="from_dl4j"):
        roc_from_dl4j(dl4j_roc(scores, truths, 0, thin=False) | change)
