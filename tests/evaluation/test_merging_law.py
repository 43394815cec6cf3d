"""Every report joins the merge law here, by one line."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings

from fatwood.errors import UserError
from fatwood.evaluation import Classification, Loss
from fatwood.testing.merging import classification_chunks, merging_suite, regression_chunks

TestClassification = merging_suite(lambda: Classification.empty(classes=4), classification_chunks(classes=4))
TestManyClasses = merging_suite(lambda: Classification.empty(classes=40), classification_chunks(classes=40))
TestLoss = merging_suite(Loss.empty, regression_chunks(width=2))


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


@pytest.mark.parametrize("report", [Classification.empty(3), Loss.empty()], ids=["classification", "loss"])
def test_skipped_rows_are_merged_kept_and_shown(report) -> None:
    report.skipped = 2
    merged = report.merge(report)
    assert type(report).from_json(merged.to_json()).skipped == 4
    assert "(4 skipped)" in str(merged)
    broken = merged.to_json().replace('"skipped": 4', '"skipped": -1')
    with pytest.raises(UserError, match="received ValueError"):
        type(report).from_json(broken)
