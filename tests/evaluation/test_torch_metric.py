"""Metrics of torchmetrics: merged over any split they are the metric of the whole, and they travel as JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fatwood.errors import UserError
from fatwood.evaluation import Report, TorchMetric
from fatwood.evaluation.torch_metric import snake_case

torchmetrics = pytest.importorskip("torchmetrics")
classification = pytest.importorskip("torchmetrics.classification")
regression = pytest.importorskip("torchmetrics.regression")

ROWS, CLASSES = 400, 4
_RNG = torch.Generator().manual_seed(3)
SCORES = torch.randn(ROWS, CLASSES, generator=_RNG).softmax(1)
LABELS = torch.randint(0, CLASSES, (ROWS,), generator=_RNG)
PROBABILITIES = (torch.rand(ROWS, generator=_RNG) * 20).round() / 20  # with ties
TRUTHS = (torch.rand(ROWS, generator=_RNG) < 0.05 + 0.5 * PROBABILITIES).float()
NUMBERS = torch.randn(ROWS, generator=_RNG) + 3
TARGETS = NUMBERS * 2 + torch.randn(ROWS, generator=_RNG)
PAIRS, PAIR_TARGETS = torch.stack([NUMBERS, -NUMBERS], 1), torch.stack([TARGETS, NUMBERS], 1)


class Extremes(torchmetrics.Metric):
    """The least and greatest error, and the greatest of sums, by every way to join but the usual ones."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("least", torch.tensor(torch.inf), dist_reduce_fx="min")
        self.add_state("most", torch.tensor(-torch.inf), dist_reduce_fx="max")
        self.add_state("both", torch.zeros(2), dist_reduce_fx=lambda states: states.sum(0))
        self.add_state("scale", torch.tensor(2.0), dist_reduce_fx="mean")
        self.add_state("errors", [], dist_reduce_fx=None)

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        error = preds - target
        self.least, self.most = torch.minimum(self.least, error.min()), torch.maximum(self.most, error.max())
        self.both += torch.stack([preds.sum(), target.sum()])
        self.errors.append(error)

    def compute(self) -> torch.Tensor:
        mean = torch.cat(self.errors).mean()
        return torch.stack([self.least, self.most, *self.both, self.scale, mean])


CLASSIFIER, BINARY, NUMBER = (SCORES, LABELS), (PROBABILITIES, TRUTHS), (NUMBERS, TARGETS)
METRICS = {
    "accuracy": (lambda: classification.MulticlassAccuracy(CLASSES), CLASSIFIER),
    "f1": (lambda: classification.MulticlassF1Score(CLASSES, average=None), CLASSIFIER),
    "confusion": (lambda: classification.MulticlassConfusionMatrix(CLASSES), CLASSIFIER),
    "auroc exact": (lambda: classification.MulticlassAUROC(CLASSES), CLASSIFIER),
    "calibration": (lambda: classification.MulticlassCalibrationError(CLASSES), CLASSIFIER),
    "binary auroc exact": (lambda: classification.BinaryAUROC(), BINARY),
    "binary auroc binned": (lambda: classification.BinaryAUROC(thresholds=50), BINARY),
    "average precision": (lambda: classification.BinaryAveragePrecision(), BINARY),
    "binary calibration": (lambda: classification.BinaryCalibrationError(), BINARY),
    "exact match": (
        lambda: classification.MultilabelExactMatch(2),
        ((PAIRS > 3).float(), (PAIR_TARGETS > 3)),
    ),
    "pearson": (lambda: regression.PearsonCorrCoef(), NUMBER),
    "pearson of two": (lambda: regression.PearsonCorrCoef(num_outputs=2), (PAIRS, PAIR_TARGETS)),
    "spearman": (lambda: regression.SpearmanCorrCoef(), NUMBER),
    "r2": (lambda: regression.R2Score(), NUMBER),
    "mse": (lambda: regression.MeanSquaredError(), NUMBER),
    "explained variance": (lambda: regression.ExplainedVariance(), NUMBER),
    "concordance": (lambda: regression.ConcordanceCorrCoef(), NUMBER),
    "own": (lambda: Extremes(), NUMBER),
}


def split(metric, outputs, labels, parts: int, seed: int) -> list[TorchMetric]:
    """The rows dealt out at random, each part in several batches; some get none."""
    rng = np.random.default_rng(seed)
    owner = torch.from_numpy(rng.integers(0, parts, len(outputs)))
    reports = [TorchMetric(metric) for _ in range(parts)]
    for part, report in enumerate(reports):
        own = owner == part
        for chunk, truth in zip(outputs[own].split(50), labels[own].split(50), strict=True):
            report.update(chunk, truth)
    return reports


def merged_in_a_tree(reports: list[TorchMetric], seed: int) -> TorchMetric:
    rng = np.random.default_rng(seed)
    while len(reports) > 1:
        i = int(rng.integers(0, len(reports) - 1))
        reports[i : i + 2] = [reports[i].merge(reports[i + 1])]
    return reports[0]


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save all:UserWarning")
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("parts", [1, 2, 7, 50])
def test_merged_over_any_split_it_is_the_metric_of_the_whole(name, parts) -> None:
    make, (outputs, labels) = METRICS[name]
    metric = make()
    metric.set_dtype(torch.float64)
    whole = TorchMetric(metric).update(outputs, labels).value
    reports = split(metric, outputs, labels, parts, seed=parts)
    sent = [TorchMetric.from_json(report.to_json(), metric) for report in reports]
    merged = merged_in_a_tree([TorchMetric(metric), *sent, TorchMetric(metric)], seed=parts)
    assert merged.rows == ROWS
    tolerance = 1e-5 if "calibration" in name else 1e-9  # its bins are float32, whatever the type
    torch.testing.assert_close(merged.value, whole, rtol=tolerance, atol=tolerance, check_dtype=False)
    again = TorchMetric.from_json(merged.to_json(), make())
    assert again.to_json() == merged.to_json()
    torch.testing.assert_close(again.value, merged.value, check_dtype=False)


def test_the_value_is_the_metrics_own() -> None:
    metric = classification.MulticlassF1Score(CLASSES)
    metric.update(SCORES, LABELS)
    assert torch.equal(TorchMetric(metric).update(SCORES, LABELS).value, metric.compute())
    assert TorchMetric(metric).rows == 0  # the metric given is copied and emptied
    assert metric.update_count == 1


def test_pearson_can_be_merged_and_updated_and_merged_again() -> None:
    first, second, third = split(regression.PearsonCorrCoef(), NUMBERS, TARGETS, 3, seed=1)
    merged = first.merge(second)
    merged.update(third.metric.mean_x.new_tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 0.0, 7.0]))
    merged = merged.merge(third)
    expected = np.corrcoef(
        torch.cat([NUMBERS, torch.tensor([1.0, 2.0, 5.0])]),
        torch.cat([TARGETS, torch.tensor([1.0, 0.0, 7.0])]),
    )
    assert float(merged.value) == pytest.approx(expected[0, 1], abs=1e-5)


def test_merging_changes_no_operand() -> None:
    left, right = split(regression.MeanSquaredError(), NUMBERS, TARGETS, 2, seed=2)
    before = left.to_json(), right.to_json()
    merged = left.merge(right)
    merged.update(NUMBERS, TARGETS)
    assert (left.to_json(), right.to_json()) == before
    text = merged.to_json()
    left.update(NUMBERS, TARGETS)
    assert merged.to_json() == text


def test_empty_is_neutral_and_has_no_value() -> None:
    empty = TorchMetric(classification.BinaryAUROC())
    report = empty.fresh().update(*BINARY)
    assert empty.merge(report) == report == report.merge(empty)
    assert math.isnan(empty.value)
    assert empty.merge(empty) == empty
    assert math.isnan(empty.summary()["binary_auroc"])
    assert empty.update(torch.zeros(0), torch.zeros(0)) == empty.fresh()


def test_weights_and_missing_labels_are_refused() -> None:
    report = TorchMetric(regression.MeanSquaredError())
    with pytest.raises(UserError, match="mean_squared_error: expected no weights"):
        report.update(NUMBERS, TARGETS, weights=torch.ones(ROWS))
    with pytest.raises(UserError, match="expected labels, received None"):
        report.update(NUMBERS, None)


@pytest.mark.parametrize(
    "outputs", [PROBABILITIES[:, None], torch.stack([1 - PROBABILITIES, PROBABILITIES], 1)]
)
def test_columns_are_one_binary_output(outputs) -> None:
    labels = TRUTHS[:, None] if outputs.shape[1] == 1 else TRUTHS.long()
    expected = TorchMetric(classification.BinaryAUROC()).update(*BINARY).value
    assert TorchMetric(classification.BinaryAUROC()).update(outputs, labels).value == expected


def test_what_is_no_single_metric_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="expected a metric of torchmetrics, received 'auroc'"):
        TorchMetric("auroc")
    wrapped = torchmetrics.MinMaxMetric(regression.MeanSquaredError())
    with pytest.raises(UserError, match="received MinMaxMetric, which holds MeanSquaredError"):
        TorchMetric(wrapped)
    with pytest.raises(UserError, match="CompositionalMetric, which holds MeanSquaredError"):
        TorchMetric(regression.MeanSquaredError() + regression.MeanAbsoluteError())
    with pytest.raises(UserError, match="that torchmetrics can synchronise, received NormalizedRoot"):
        TorchMetric(regression.NormalizedRootMeanSquaredError())
    with pytest.raises(UserError, match="expected a report of MeanSquaredError, received R2Score"):
        TorchMetric(regression.MeanSquaredError()).merge(TorchMetric(regression.R2Score()))


def test_json_needs_the_metric() -> None:
    text = TorchMetric(regression.R2Score()).update(NUMBERS, TARGETS).to_json()
    for read in (Report.from_json, TorchMetric.from_json):
        with pytest.raises(UserError, match=r"expected the metric .*R2Score.*received none"):
            read(text)
    with pytest.raises(
        UserError, match=r"expected a report of .*MeanSquaredError, received one of .*R2Score"
    ):
        TorchMetric.from_json(text, regression.MeanSquaredError())


@pytest.mark.parametrize("change", ["dtype", "missing", "list", "bytes"])
def test_damaged_json_is_refused(change) -> None:
    state = json.loads(TorchMetric(regression.R2Score()).update(NUMBERS, TARGETS).to_json())
    name = next(iter(state["states"]))
    if change == "missing":
        del state["states"][name]
    elif change == "list":
        state["states"][name] = [[*state["states"][name]]]
    elif change == "dtype":
        state["states"][name][0]["dtype"] = "|O"
    else:
        state["states"][name][0]["base64"] += "AAAA"
    with pytest.raises(UserError, match="r2_score: expected the parts that"):
        TorchMetric.from_json(json.dumps(state), regression.R2Score())


def test_it_prints_its_figures() -> None:
    report = TorchMetric(classification.MulticlassF1Score(CLASSES, average=None)).update(*CLASSIFIER)
    assert [line.split()[0] for line in str(report).splitlines()] == [
        *(f"multiclass_f1_score_{i}" for i in range(CLASSES)),
        "rows",
    ]
    matrix = TorchMetric(classification.MulticlassConfusionMatrix(CLASSES)).update(*CLASSIFIER)
    assert matrix.summary() == {"rows": ROWS}
    assert matrix.value.sum() == ROWS


@pytest.mark.parametrize(
    ("name", "expected"),
    [("BinaryAUROC", "binary_auroc"), ("R2Score", "r2_score"), ("PearsonCorrCoef", "pearson_corr_coef")],
)
def test_snake_case(name, expected) -> None:
    assert snake_case(name) == expected
