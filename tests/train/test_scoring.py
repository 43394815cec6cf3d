"""The loss of each row is that of a minibatch of the row alone; outputs of steps are told from classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fatwood.data import Batch
from fatwood.errors import DataError, UserCodeError
from fatwood.train import Caller, Losses, RowLosses, Trimmer, outputs_of
from fatwood.train.step import Step

CLASSES = 3


class Both(nn.Module):
    """``(B, T, 2)`` to steps of 3 classes, 3 classes, and a number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.memory = nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        steps = self.head(self.memory(x)[0])
        return {"steps": steps, "side": steps[:, 0], "angle": steps[:, 0, :1]}


class One(Both):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)[self.name]


def rows_of(lengths: list[int], seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    steps = torch.randint(0, CLASSES, mask.shape, generator=random)
    return Batch(
        features=torch.randn(*mask.shape, 2, generator=random),
        feature_mask=mask,
        label={
            "steps": torch.where(mask, steps, torch.tensor(99)),
            "side": torch.randint(0, CLASSES, (len(lengths),), generator=random),
            "angle": torch.randn(len(lengths), generator=random),
        },
        label_mask={"steps": mask},
    )


def alone(batch: Batch, row: int) -> Batch:
    """One row without padding."""
    own = batch.rows(slice(row, row + 1))
    length = int(own.feature_mask.sum())
    mask = own.feature_mask[:, :length]
    return Batch(
        features=own.features[:, :length],
        feature_mask=mask,
        label={**own.label, "steps": own.label["steps"][:, :length]},
        label_mask={"steps": mask},
    )


def raising(ids: Any, message: str) -> None:
    raise DataError(message)


def a_function(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, label)


def of_all(outputs: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(outputs["steps"], labels["steps"]) + F.mse_loss(outputs["angle"], labels["angle"])


def of_batch(network: nn.Module, batch: Batch) -> torch.Tensor:
    assert len(batch) == 1
    return F.mse_loss(network(batch.features)["angle"][:, 0], batch.label["angle"])


SEVERAL = {"steps": nn.CrossEntropyLoss(), "side": a_function, "angle": nn.MSELoss()}
LOSSES = {
    "of each output": Losses(SEVERAL, {"side": 0.5, "angle": 2.0}),
    "some without weight": Losses(SEVERAL, {"side": 0.0}),
    "class weights": Losses({**SEVERAL, "steps": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))}),
    "of all outputs": of_all,
    "of the minibatch": of_batch,
}


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_the_loss_of_a_row_is_that_of_a_minibatch_of_it_alone(
    name: str, lengths: list[int], seed: int
) -> None:
    batch, network, loss = rows_of(lengths, seed), Both().eval(), LOSSES[name]
    with torch.no_grad():
        values, there = RowLosses(network, loss)(batch, raising)
    assert there.all()
    expected = [Step(network, loss, "error").measure(alone(batch, row)) for row in range(len(lengths))]
    np.testing.assert_allclose(values, [one.loss_sum / one.weight for one in expected], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(ignore_index=1), a_function], ids=["torch", "function"])
def test_rows_without_a_loss_and_weights(loss: Any) -> None:
    batch = rows_of([2, 3, 1], 0)
    labels = torch.tensor([[0, 2, 0], [1, 1, 1], [2, 0, 0]])
    weight = torch.tensor([1.0, 1.0, 3.0])
    batch = Batch(
        features=batch.features,
        feature_mask=batch.feature_mask,
        label=labels,
        label_mask=batch.feature_mask,
        weight=weight,
    )
    network = One("steps").eval()
    with torch.no_grad():
        values, there = RowLosses(network, loss)(batch, raising)
        output = network(batch.features)
    assert there.tolist() == [True, loss is a_function, True]
    assert values[0] == pytest.approx(float(F.cross_entropy(output[0, :2], labels[0, :2])), rel=1e-5)
    assert values[2] == pytest.approx(3 * float(F.cross_entropy(output[2, :1], labels[2, :1])), rel=1e-5)
    told = []
    labels[1, 1] = 7
    with torch.no_grad():
        again, there = RowLosses(network, loss)(
            batch, lambda ids, message: told.append((ids.tolist(), message))
        )
    assert told[0][0] == [1]
    assert "row 1: label out of range at step 1" in told[0][1]
    assert there.tolist() == [True, False, True]
    assert again[[0, 2]].tolist() == values[[0, 2]].tolist()


def test_a_loss_without_a_value_for_each_row_is_explained() -> None:
    class Odd(nn.Module):
        reduction = "mean"

        def forward(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return output.sum()

    batch = Batch(features=torch.zeros(2, 3), label=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserCodeError, match=r"must return a loss for each of 2 rows, received \(\)"):
        RowLosses(nn.Linear(3, 3), Odd())(batch, raising)


def masks(network: nn.Module, batch: Batch, keys: Any) -> set[Any]:
    call = Caller(network.eval())
    with torch.no_grad():
        return set(Trimmer(call, keys).masks(batch, outputs_of(call(batch), keys, len(batch))))


@pytest.mark.parametrize("lengths", [[1], [1, 1], [3], [2, 3, 1], [5, 4]])
def test_outputs_of_steps_are_told_from_classes_of_the_same_number(lengths: list[int]) -> None:
    batch = rows_of(lengths, 1)
    assert masks(Both(), batch, ("steps", "side", "angle")) == {"steps"}
    assert masks(One("steps"), batch, None) == {None}
    assert masks(One("side"), batch, None) == set()
    assert masks(Both(), Batch(features=batch.features), ("steps", "side")) == set()


def test_outputs_follow_the_input_whose_steps_they_have() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, x_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            assert x_mask.shape == x.shape[:2]
            return y * 2, x.sum(-1) + y.sum(1, keepdim=True), x.mean((1, 2))

    first, second = torch.arange(3) < torch.tensor([[1], [3]]), torch.arange(3) < torch.tensor([[3], [2]])
    batch = Batch(features=(torch.randn(2, 3, 4), torch.randn(2, 3)), feature_mask=(first, second))
    call = Caller(Pair())
    found = Trimmer(call, 3).masks(batch, outputs_of(call(batch), 3, 2))
    assert set(found) == {0, 1}
    assert found[0] is second
    assert found[1] is first


def test_a_network_of_one_length_alone_has_no_steps() -> None:
    batch = rows_of([3, 2], 0)
    assert masks(nn.Sequential(nn.Flatten(1), nn.Linear(6, 3)), batch, None) == set()
