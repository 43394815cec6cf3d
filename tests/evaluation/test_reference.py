"""Every figure of counts and sums equals scikit-learn's or SciPy's on all rows, however they are split."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from fatwood.evaluation import BinaryClassification, Classification, Regression

EFFORT = settings(max_examples=12, deadline=None)
CLASSES = 5
close = pytest.approx


def split(empty: Callable[[], Any], parts: int, seed: int, *columns: torch.Tensor, weighted: bool) -> Any:
    """The merged report of rows that are dealt out to so many reports, some of which may get none."""
    owner = torch.randint(parts, (len(columns[0]),), generator=torch.Generator().manual_seed(seed))
    reports = []
    for part in range(parts):
        outputs, labels, weights = (column[owner == part] for column in columns)
        reports.append(empty().update(outputs, labels, weights=weights if weighted else None))
    return reduce(lambda left, right: left.merge(right), reports)


def classifier(rows: int, seed: int, classes: int, *, rare: float, ties: bool) -> tuple[torch.Tensor, ...]:
    """Outputs with many ties, labels of which nearly all are class 0, weights of any float."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, classes, generator=generator)
    outputs = (outputs * 2).round() / 2 if ties else outputs
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) > rare] = 0
    return outputs.softmax(1), labels, torch.rand(rows, generator=generator, dtype=torch.float64)


cases = st.tuples(
    st.integers(1, 50), st.integers(0, 1000), st.sampled_from([1.0, 0.3, 0.002]), st.booleans(), st.booleans()
)


@EFFORT
@given(cases)
def test_classification(case: tuple[int, int, float, bool, bool]) -> None:
    parts, seed, rare, ties, weighted = case
    outputs, labels, weights = classifier(1500, seed, CLASSES, rare=rare, ties=ties)
    report = split(
        lambda: Classification(CLASSES, top_n=2), parts, seed, outputs, labels, weights, weighted=weighted
    )
    true, guess = labels.numpy(), outputs.argmax(1).numpy()
    of = {"sample_weight": weights.numpy() if weighted else None}
    assert report.accuracy == close(metrics.accuracy_score(true, guess, **of), abs=1e-9)
    assert report.mcc() == close(metrics.matthews_corrcoef(true, guess, **of), abs=1e-9)
    numbers = list(range(CLASSES))
    np.testing.assert_allclose(
        report.confusion, metrics.confusion_matrix(true, guess, labels=numbers, **of), rtol=1e-9
    )
    # ours takes the first of equals, as argmax does; scikit-learn's the last
    flipped = outputs.numpy()[:, ::-1]
    top = metrics.top_k_accuracy_score(CLASSES - 1 - true, flipped, k=2, labels=numbers, **of)
    assert report.top_n_accuracy == close(top, abs=1e-9)
    of |= {"labels": numbers, "zero_division": np.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for average in ("macro", "micro", "weighted", None):
            expected = metrics.precision_recall_fscore_support(true, guess, beta=0.5, average=average, **of)
            found = (report.precision(average), report.recall(average), report.f_beta(0.5, average))
            for mine, theirs in zip(found, expected, strict=False):
                np.testing.assert_allclose(mine, theirs, atol=1e-9)
    for number in numbers:
        one = [true == number, guess == number]
        if not np.any(one):
            continue
        expected = metrics.matthews_corrcoef(*one, sample_weight=of["sample_weight"])
        assert report.mcc(positive=number) == close(expected, abs=1e-9)
        tn, fp, fn, tp = metrics.confusion_matrix(
            *one, labels=[False, True], sample_weight=of["sample_weight"]
        ).ravel()
        if fp + tn:
            assert report.false_positive_rate(positive=number) == close(fp / (fp + tn), abs=1e-9)
        if fn + tp:
            assert report.false_negative_rate(positive=number) == close(fn / (fn + tp), abs=1e-9)
        g = np.sqrt(tp / (tp + fp) * tp / (tp + fn)) if tp else 0.0
        assert report.g_measure(positive=number) == close(g, abs=1e-9)


@EFFORT
@given(cases)
def test_binary_classification(case: tuple[int, int, float, bool, bool]) -> None:
    parts, seed, rare, ties, weighted = case
    outputs, labels, weights = classifier(1000, seed, 3, rare=rare, ties=ties)
    truth = torch.stack([labels > 0, labels > 1, labels < 3], dim=1)
    limits = [0.5, 0.1, 0.3]
    report = split(
        lambda: BinaryClassification(limits), parts, seed, outputs, truth.float(), weights, weighted=weighted
    )
    guess = (outputs > torch.tensor(limits)).numpy()
    of: dict[str, Any] = {"sample_weight": weights.numpy() if weighted else None}
    for i in range(3):
        pair = truth[:, i].numpy(), guess[:, i]
        assert report.accuracies[i] == close(metrics.accuracy_score(*pair, **of), abs=1e-9)
        assert report.mcc(positive=i) == close(metrics.matthews_corrcoef(*pair, **of), abs=1e-9)
    assert report.accuracy == close(report.accuracies.mean(), abs=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for average in ("macro", "micro", "weighted", None):
            expected = metrics.precision_recall_fscore_support(
                truth.numpy(), guess, beta=2.0, average=average, zero_division=np.nan, **of
            )
            found = (report.precision(average), report.recall(average), report.f_beta(2.0, average))
            for mine, theirs in zip(found, expected, strict=False):
                np.testing.assert_allclose(mine, theirs, atol=1e-9)


@EFFORT
@given(
    st.integers(1, 50),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e3, 1e6]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_regression(parts: int, seed: int, mean: float, dtype: torch.dtype, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    label, noise = torch.randn(2, 800, 3, generator=generator, dtype=torch.float64).unbind()
    label, output = (mean + label).to(dtype), (mean + label + 0.3 * noise).to(dtype)
    weights = torch.rand(800, generator=generator, dtype=torch.float64)
    report = split(Regression, parts, seed, output, label, weights, weighted=weighted)
    true, guess = label.double().numpy(), output.double().numpy()
    of = {"sample_weight": weights.numpy() if weighted else None}
    for average, multioutput in (("macro", "uniform_average"), (None, "raw_values")):
        of["multioutput"] = multioutput
        for mine, theirs in (
            (report.mse, metrics.mean_squared_error),
            (report.mae, metrics.mean_absolute_error),
            (report.rmse, metrics.root_mean_squared_error),
            (report.r2, metrics.r2_score),
        ):
            np.testing.assert_allclose(mine(average), theirs(true, guess, **of), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(report.rse(None), 1 - report.r2(None), atol=1e-12)
    if not weighted:
        expected = [stats.pearsonr(true[:, i], guess[:, i]).statistic for i in range(3)]
        np.testing.assert_allclose(report.pearson(None), expected, rtol=1e-9)
    else:
        expected = [np.cov(true[:, i], guess[:, i], aweights=weights.numpy()) for i in range(3)]
        found = [c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in expected]
        np.testing.assert_allclose(report.pearson(None), found, rtol=1e-9)


def test_one_positive_in_a_hundred_thousand() -> None:
    outputs = torch.full((100_000, 2), 0.5)
    outputs[7] = torch.tensor([0.0, 1.0])
    labels = torch.zeros(100_000, dtype=torch.int64)
    labels[7] = 1
    report = Classification().update(outputs, labels)
    assert report.mcc() == report.f1(positive=1) == 1.0
    labels[8] = 1
    report = Classification().update(outputs, labels)
    guess = outputs.argmax(1).numpy()
    assert report.mcc() == close(metrics.matthews_corrcoef(labels.numpy(), guess), abs=1e-9)
    assert report.f1("binary") == close(metrics.f1_score(labels.numpy(), guess), abs=1e-9)


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_class_alone(label: int) -> None:
    labels = torch.full((10,), label)
    for guess in (0, 1):
        report = Classification(2).update(torch.eye(2)[[guess] * 10], labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert report.mcc() == metrics.matthews_corrcoef(labels.numpy(), np.full(10, guess))
        assert report.accuracy == float(guess == label)
