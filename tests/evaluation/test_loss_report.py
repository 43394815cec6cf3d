from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.errors import UserError
from fatwood.evaluation import Loss
from fatwood.evaluation.sums import ExactSum

finite = st.floats(-1e300, 1e300)


@settings(max_examples=50, deadline=None)
@given(st.lists(finite, max_size=12), st.randoms(use_true_random=False))
def test_sum_is_exact_whatever_the_order(terms, random) -> None:
    one_by_one = ExactSum()
    for term in terms:
        one_by_one = one_by_one.plus([term])
    random.shuffle(terms)
    assert one_by_one == ExactSum().plus(terms)
    assert sum(map(Fraction, one_by_one.parts)) == sum(map(Fraction, terms))
    assert one_by_one.value == math.fsum(terms)
    assert ExactSum.from_json(json.loads(json.dumps(one_by_one.to_json()))) == one_by_one


@pytest.mark.parametrize(
    "terms", [[math.inf, 1.0], [math.nan], [math.inf, -math.inf], [1e308] * 4, [-math.inf]]
)
def test_sums_beyond_the_floats_end_and_stay(terms) -> None:
    total = ExactSum().plus(terms)
    assert not math.isfinite(total.value)
    assert repr(total.plus([1.0]).value) == repr(total.value)
    assert repr(ExactSum.from_json(total.to_json())) == repr(total)


def test_mean_over_rows() -> None:
    outputs, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.zeros(3, 1)
    report = Loss.empty()
    for begin, end in [(0, 1), (1, 1), (1, 3)]:
        part = (outputs[begin:end], labels[begin:end])
        report.update(*part, float(torch.nn.functional.mse_loss(*part, reduction="sum")))
    assert (report.rows, report.loss) == (3, 7.0)
    assert str(report) == "loss  7\nrows  3"


def test_no_rows_are_nan_and_the_nan_mean_of_no_rows_is_ignored() -> None:
    report = Loss.empty().update(torch.empty(0, 1), torch.empty(0, 1), math.nan)
    assert report == Loss.empty()
    assert math.isnan(report.loss)
    assert report.update(torch.ones(2, 1), None, 4.0).loss == 2.0


def test_lengths_must_agree() -> None:
    with pytest.raises(UserError, match=r"\(2\), received 3"):
        Loss.empty().update(torch.zeros(2, 1), torch.zeros(3, 1), 0.0)


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"report": "classification", "version": 1}']
    + [
        '{"report": "loss", "version": 1, "rows": ' + rows + "}"
        for rows in ("1", '-1, "loss_sum": []', '"1", "loss_sum": []')
    ],
)
def test_text_that_is_no_loss_report_is_refused(text) -> None:
    with pytest.raises(UserError, match="loss report"):
        Loss.from_json(text)
