"""Every report joins the merge law here, by one line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, settings
from torch import Tensor

from fatwood.errors import UserError
from fatwood.evaluation import BinaryClassification, Classification, Loss, Regression
from fatwood.testing.merging import Chunk, classification_chunks, merging_suite, regression_chunks

TestClassification = merging_suite(lambda: Classification.empty(classes=4), classification_chunks(classes=4))
TestManyClasses = merging_suite(lambda: Classification.empty(classes=40), classification_chunks(classes=40))
TestLoss = merging_suite(Loss.empty, regression_chunks(width=2))
_FEW = settings(max_examples=8, deadline=None)
TestLearntClasses = merging_suite(lambda: Classification(top_n=2), classification_chunks(4), effort=_FEW)
TestRegression = merging_suite(Regression, regression_chunks(width=2))


def _yes_or_no(chunk: Chunk) -> Chunk:
    return chunk[0].sigmoid(), (chunk[1] > 0).float(), chunk[2]


def _probable(chunk: Chunk) -> Chunk:
    return chunk[0].softmax(1), *chunk[1:]


TestBinary = merging_suite(
    lambda: BinaryClassification([0.5, 0.2], names=["a", "b"]),
    regression_chunks(width=2).map(_yes_or_no),
    effort=_FEW,
)
TestThreshold = merging_suite(
    lambda: Classification(threshold=0.4, names=["no", "yes"]),
    classification_chunks(2).map(_probable),
    effort=_FEW,
)
TestCost = merging_suite(
    lambda: Classification(cost=[1, 2, 0.5], top_n=2), classification_chunks(3).map(_probable), effort=_FEW
)


class _WeightedClassification(Classification):
    KIND = "test_weighted_classification"

    def update(self, outputs: Tensor, labels: Tensor | None, loss_sum: float = 0.0, **_: Any) -> Any:
        return super().update(outputs, labels, loss_sum, weights=outputs.double().sum(1).abs())

    def fresh(self) -> Classification:
        return _WeightedClassification(self.classes, **self.decision.to_json())


class _WeightedBinary(BinaryClassification):
    KIND = "test_weighted_binary"

    def update(self, outputs: Tensor, labels: Tensor | None, loss_sum: float = 0.0, **_: Any) -> Any:
        return super().update(outputs, labels, loss_sum, weights=outputs.double().sum(1).abs())

    def fresh(self) -> BinaryClassification:
        report = _WeightedBinary(self.threshold, names=self.names)
        report.columns = self.columns
        return report


class _WeightedRegression(Regression):
    KIND = "test_weighted_regression"

    def update(self, outputs: Tensor, labels: Tensor | None, loss_sum: float = 0.0, **_: Any) -> Any:
        return super().update(outputs, labels, loss_sum, weights=outputs.double().sum(1).abs())

    def fresh(self) -> Regression:
        report = _WeightedRegression(names=self.names)
        if self.columns is not None:
            report._learn(self.columns)
        return report


TestWeightedClassification = merging_suite(
    lambda: _WeightedClassification(top_n=2), classification_chunks(3), effort=_FEW
)
TestWeightedBinary = merging_suite(_WeightedBinary, regression_chunks(2).map(_yes_or_no), effort=_FEW)
TestWeightedRegression = merging_suite(_WeightedRegression, regression_chunks(2), effort=_FEW)


class _Forgetful(Loss):
    """Deeplearning4j's defect: a sum that merge does not carry over."""

    def merge(self, other: Loss) -> Loss:
        return _Forgetful(rows=self.rows + other.rows, loss_sum=self.loss_sum)


class _Aliasing(Loss):
    """A merge that changes its left operand."""

    def merge(self, other: Loss) -> Loss:
        self.rows += other.rows
        self.loss_sum = self.loss_sum.plus(other.loss_sum.parts)
        return self


def _failures(report: type[Loss]) -> set[str]:
    effort = settings(max_examples=30, deadline=None, database=None, phases=[Phase.generate])
    suite = merging_suite(report.empty, regression_chunks(), effort=effort)
    failed = set()
    for name in [name for name in vars(suite) if name.startswith("test_")]:
        try:
            getattr(suite(), name)()
        except AssertionError:
            failed.add(name)
    return failed


def test_the_suite_finds_a_forgotten_sum() -> None:
    assert "test_any_split_merged_equals_one_pass" in _failures(_Forgetful)


def test_the_suite_finds_a_changed_operand() -> None:
    assert "test_operands_and_result_are_independent" in _failures(_Aliasing)


@pytest.mark.parametrize(
    "report",
    [Classification(3), Loss(), BinaryClassification(), Regression()],
    ids=["classification", "loss", "binary", "regression"],
)
def test_skipped_rows_are_merged_kept_and_shown(report) -> None:
    report.skipped = 2
    merged = report.merge(report)
    assert type(report).from_json(merged.to_json()).skipped == 4
    assert "(4 skipped)" in str(merged)
    broken = merged.to_json().replace('"skipped": 4', '"skipped": -1')
    with pytest.raises(UserError, match="received ValueError"):
        type(report).from_json(broken)
