"""Losses, optimizers and options as JSON: what comes back is the same, and nothing else is made or run."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

from fatwood import (
    AdaptiveThreshold,
    AllReduce,
    DenseColumn,
    DiLoCo,
    EarlyStopping,
    GradientSharing,
    ImageColumn,
    ParameterAveraging,
    SequenceColumn,
    Standardize,
)
from fatwood.errors import UserError
from fatwood.ml.parts import Unsayable, read_part, say_part


class Own(torch.optim.SGD):
    """An optimizer of a program that others can import."""


def there_and_back(value):
    return read_part(json.loads(json.dumps(say_part(value))))


@pytest.mark.parametrize(
    "value",
    [
        None,
        0.5,
        float("inf"),
        ["a", ("b", 2), {"c": True}],
        AllReduce(),
        GradientSharing(threshold=AdaptiveThreshold(initial=0.25)),
        ParameterAveraging(every=3),
        DiLoCo(every=7),
        EarlyStopping(patience=2),
        {"a": SequenceColumn("x"), "b": DenseColumn(("p", "q"), shape=(2, 1))},
        ImageColumn("i", size=(2, 3)),
        torch.optim.Adam,
        torch.optim.lr_scheduler.StepLR,
        nn.functional.mse_loss,
        Own,
    ],
    ids=lambda value: repr(value).split(" at ")[0][:30],
)
def test_equal_values(value) -> None:
    assert there_and_back(value) == value


def test_what_has_no_equality() -> None:
    adam = there_and_back(partial(torch.optim.Adam, betas=(0.5, 0.9)))
    assert (adam.func, adam.keywords) == (torch.optim.Adam, {"betas": (0.5, 0.9)})
    given = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]), label_smoothing=0.1, ignore_index=7)
    loss = there_and_back(given)
    outputs, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 7, 0])
    assert torch.equal(loss(outputs, labels), given(outputs, labels))
    assert there_and_back(nn.HuberLoss(delta=2.0)).delta == 2.0
    assert there_and_back(nn.Sequential(nn.Flatten())) is not None
    assert isinstance(there_and_back(Standardize()), Standardize)


@pytest.mark.parametrize(
    "value",
    [
        lambda parameters: None,
        print,
        nn.Linear,
        nn.Sequential(nn.Linear(2, 2)),
        partial(torch.optim.Adam, [1]),
        {1: 2},
        object(),
        nn.CrossEntropyLoss(weight=torch.ones(100_001)),
    ],
    ids=lambda value: repr(value).split(" at ")[0][:20],
)
def test_what_cannot_be_said(value) -> None:
    with pytest.raises(Unsayable):
        say_part(value)


@pytest.mark.parametrize(
    "said",
    [
        {"class": "os:system"},
        {"class": "torch.nn:Linear"},
        {"class": "no_such_module_at_all:X"},
        {"class": 3},
        {"torch": "hub:load"},
        {"fatwood": "SparkModel", "fields": {}},
        {"fatwood": "AllReduce", "fields": {"no": 1}},
        {"loss": "Linear", "arguments": {}, "weights": {}},
        {"loss": "MSELoss", "arguments": {"no": 1}, "weights": {}},
        {"loss": "CrossEntropyLoss", "arguments": {}, "weights": {"weight": {"dtype": "x", "values": []}}},
        {"module": {"class": "os:system", "arguments": {}}},
        {"partial": {"class": "builtins:eval"}, "keywords": {}},
        {"x": 1},
    ],
    ids=repr,
)
def test_strange_files_make_nothing(said) -> None:
    with pytest.raises(UserError):
        read_part(said)
