"""Several inputs and outputs, and steps: a padded minibatch trains as its rows alone would, one after the other."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fatwood.data import Batch, Field, Group, Layout
from fatwood.errors import DataError, OptionError, UserCodeError
from fatwood.testing.threads import train_in_threads, training_job
from fatwood.train import AllReduce, Caller, Losses, require_labels
from fatwood.train.step import Step, Trained

CLASSES = 3
EXAMPLES = settings(deadline=None, max_examples=40)


class Steps(nn.Module):
    """``(B, T, 2)`` to ``(B, T, 3)``; a step sees those before it, so padding behind a row changes none of its steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.memory = nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(x)[0])


class Twins(nn.Module):
    """``(B, 2)`` and ``(B, 1)`` to outputs of 3 and 1 numbers."""

    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        torch.manual_seed(2)
        self.trunk, self.form = nn.Linear(3, 5), form
        self.side, self.angle = nn.Linear(5, CLASSES), nn.Linear(5, 1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
        hidden = torch.tanh(self.trunk(torch.cat([left, right], dim=1)))
        outputs = {"angle": self.angle(hidden), "side": self.side(hidden), "hidden": hidden}
        return outputs if self.form == "dict" else [outputs["side"], outputs["angle"]]


def gradient(network: nn.Module) -> torch.Tensor:
    return torch.cat(
        [torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel() for p in network.parameters()]
    )


def trained(network: nn.Module, loss: Any, batch: Batch, **options: Any) -> tuple[Trained, torch.Tensor]:
    """What a step of a copy says, and the gradient that it leaves."""
    network = copy.deepcopy(network)
    found = Step(
        network, loss, options.pop("on_bad_row", "error"), weighted=batch.weight is not None
    ).backward(batch)
    return found, gradient(network)


def padded(lengths: list[int], seed: int, label: Any) -> Batch:
    """Rows of these lengths; what stands in the padding is nonsense, for labels and features alike."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    x = torch.randn(*mask.shape, 2, generator=random)
    return Batch(features=x, label=label(mask, random), feature_mask=mask, label_mask=mask)


def classes(mask: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return torch.where(mask, torch.randint(0, CLASSES, mask.shape, generator=random), torch.tensor(99))


def vectors(mask: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return torch.where(
        mask[..., None], torch.randn(*mask.shape, CLASSES, generator=random), torch.tensor(torch.nan)
    )


STEP_LOSSES = {
    "classes": (classes, nn.CrossEntropyLoss()),
    "class weights": (classes, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))),
    "ignored": (classes, nn.CrossEntropyLoss(ignore_index=1)),
    "numbers": (vectors, nn.MSELoss()),
}


@pytest.mark.parametrize("name", STEP_LOSSES)
@EXAMPLES
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
def test_a_padded_minibatch_is_the_mean_over_the_steps_of_its_rows(
    name: str, lengths: list[int], weighted: bool, seed: int
) -> None:
    label, loss = STEP_LOSSES[name]
    batch, network = padded(lengths, seed, label), Steps()
    weight = torch.linspace(0.5, 2, len(lengths)) if weighted else torch.ones(len(lengths))
    if weighted:
        batch = Batch(**{**vars(batch), "weight": weight})
    top, below, hits = torch.zeros(()), 0.0, 0.0
    alone = copy.deepcopy(network)
    for row, length in enumerate(lengths):
        output, own = alone(batch.features[row : row + 1, :length])[0], batch.label[row, :length]
        if label is vectors:
            each, scale = F.mse_loss(output, own, reduction="none").mean(1), torch.ones(length)
        else:
            scale = (torch.ones(CLASSES) if loss.weight is None else loss.weight)[own] * (
                own != loss.ignore_index
            )
            each = F.cross_entropy(output, own, reduction="none") * scale
            hits += float(weight[row] * (scale * (output.argmax(1) == own)).sum())
        top, below = top + weight[row] * each.sum(), below + float(weight[row] * scale.sum())
    found, grad = trained(network, loss, batch)
    assert found.rows == len(lengths)
    assert found.weight == pytest.approx(below, rel=1e-6)
    if below:
        (top / below).backward()
        torch.testing.assert_close(grad, gradient(alone), atol=2e-6, rtol=1e-4)
    assert found.loss_sum == pytest.approx(float(top.detach()), rel=1e-4, abs=1e-6)
    assert found.correct == (None if label is vectors else pytest.approx(hits, rel=1e-5))


def test_workers_of_unequal_steps_make_the_step_of_one_process() -> None:
    lengths, random = [6, 1, 2, 5, 1, 3, 1, 4], np.random.default_rng(0)
    steps = Field(name="features", title="x", shape=(2,), ragged=True)
    layout = Layout(
        features=Group(fields=(steps,)),
        label=Group(fields=(Field(name="label", title="y", dtype="int64", ragged=True),)),
    )
    x = [random.standard_normal(2 * length).astype(np.float32).tolist() for length in lengths]
    y = [random.integers(0, CLASSES, length).tolist() for length in lengths]

    def networks(bounds: list[int]) -> list[nn.Module]:
        shards = [
            [
                pa.RecordBatch.from_pydict(
                    {
                        "row_id": pa.array(range(start, stop), pa.int64()),
                        "features": pa.array(x[start:stop], pa.list_(pa.float32())),
                        "label": pa.array(y[start:stop], pa.list_(pa.int64())),
                    }
                )
            ]
            for start, stop in itertools.pairwise(bounds)
        ]
        job = training_job(
            network=Steps(),
            loss=nn.CrossEntropyLoss(),
            optimizer=partial(torch.optim.SGD, lr=0.5),
            strategy=AllReduce(),
            batch_size=len(lengths),
            epochs=2,
            shuffle=False,
        )
        outcomes = train_in_threads(job, shards, layout)
        assert len({outcome.stats.digest for outcome in outcomes}) == 1
        return [outcomes[0].network, outcomes[0].history[0].loss]

    (one, first), (three, second) = networks([0, 8]), networks([0, 2, 3, 8])
    for name, value in one.state_dict().items():
        torch.testing.assert_close(three.state_dict()[name], value, atol=2e-6, rtol=1e-5)
    assert first == pytest.approx(second, rel=1e-5)


def test_a_minibatch_whose_steps_are_all_padding_trains_nothing() -> None:
    batch = padded([2, 3], 0, classes)
    empty = Batch(**{**vars(batch), "label_mask": torch.zeros(2, 3, dtype=torch.bool)})
    found, grad = trained(Steps(), nn.CrossEntropyLoss(), empty)
    assert found == Trained(rows=2, share=0.0, loss_sum=0.0, correct=0.0)
    assert not grad.any()
    both = found.plus(trained(Steps(), nn.CrossEntropyLoss(), batch)[0])
    assert (both.rows, both.weight) == (4, 5.0)
    assert both.correct is not None


def test_a_bad_step_is_named_and_its_whole_row_left_out() -> None:
    batch, loss = padded([2, 4, 3], 5, classes), nn.CrossEntropyLoss()
    batch.label[1, 2] = CLASSES
    batch.row_ids[:] = [7, (2 << 33) + 8, 9]
    text = r"partition 2, row 8: label out of range at step 2: expected 0 to 2 .*received 3"
    with pytest.raises(DataError, match=text):
        trained(Steps(), loss, batch)
    found, grad = trained(Steps(), loss, batch, on_bad_row="skip")
    rest = trained(Steps(), loss, batch.rows(torch.tensor([True, False, True])))
    assert found == rest[0]
    assert (found.rows, found.weight) == (2, 5.0)
    torch.testing.assert_close(grad, rest[1])


def test_an_output_without_the_labels_steps_is_explained() -> None:
    batch = padded([2, 3], 0, classes)
    with pytest.raises(
        UserCodeError, match=r"must have the steps of its label, \(2, 3\).* output of shape \(2, 4\)"
    ):
        trained(nn.Sequential(nn.Flatten(1), nn.Linear(6, 4)), nn.CrossEntropyLoss(), batch)


def twins(rows: int, seed: int, **others: Any) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(
        features={
            "right": torch.randn(rows, 1, generator=random),
            "left": torch.randn(rows, 2, generator=random),
        },
        label={
            "side": torch.randint(0, CLASSES, (rows,), generator=random),
            "angle": torch.randn(rows, generator=random),
        },
        **others,
    )


def by_position(batch: Batch) -> Batch:
    (right, left), label = batch.features.values(), tuple(batch.label.values())
    return Batch(**{**vars(batch), "features": (left, right), "label": label})


@EXAMPLES
@given(st.integers(1, 6), st.booleans(), st.floats(0, 3), st.floats(0, 3), st.integers(0, 99))
def test_several_outputs_are_the_weighted_sum_of_their_losses(
    rows: int, weighted: bool, side: float, angle: float, seed: int
) -> None:
    weight = torch.linspace(0.5, 2, rows)
    batch = twins(rows, seed, weight=weight if weighted else None)
    network, own = Twins(), weight if weighted else torch.ones(rows)
    losses = {"side": nn.CrossEntropyLoss(), "angle": nn.MSELoss()}
    found, grad = trained(network, Losses(losses, {"side": side, "angle": angle}), batch)
    as_tuple = trained(Twins("list"), Losses(list(losses.values()), [side, angle]), by_position(batch))
    outputs = network(**batch.features)
    of_side = F.cross_entropy(outputs["side"], batch.label["side"], reduction="none")
    of_angle = (outputs["angle"][:, 0] - batch.label["angle"]) ** 2
    total = side * (own * of_side).sum() / own.sum() + angle * (own * of_angle).sum() / own.sum()
    total.backward()
    torch.testing.assert_close(grad, gradient(network), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(grad, as_tuple[1])
    assert found == as_tuple[0]
    assert (found.rows, found.correct) == (rows, None)
    if side or angle:
        assert found.weight == pytest.approx(float(own.sum()))
        assert found.loss_sum == pytest.approx(float(total.detach()) * float(own.sum()), rel=1e-4, abs=1e-6)
    else:
        assert found.weight == 0


def test_one_function_of_all_outputs() -> None:
    batch = twins(5, 3)

    def loss(outputs: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
        assert list(outputs) == list(labels) == ["side", "angle"]
        side = F.cross_entropy(outputs["side"], labels["side"])
        return side + 0.1 * F.mse_loss(outputs["angle"], labels["angle"])

    parts = Losses({"side": nn.CrossEntropyLoss(), "angle": nn.MSELoss()}, {"angle": 0.1})
    one, several = trained(Twins(), loss, batch), trained(Twins(), parts, batch)
    assert one[0] == several[0]
    torch.testing.assert_close(one[1], several[1])
    with pytest.raises(UserCodeError) as caught:
        trained(Twins(), nn.CrossEntropyLoss(), batch)
    assert caught.value.hint == 'give each label its loss: loss={"side": ..., "angle": ...}'


def test_outputs_of_steps_weigh_by_their_own_steps_and_the_minibatch_by_rows() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = Steps()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output = self.steps(x)
            return output, output[:, 0, :1]

    batch = padded([1, 4, 2], 8, classes)
    both = Batch(
        features=batch.features, label=(batch.label, torch.ones(3)), label_mask=(batch.label_mask, None)
    )
    found, grad = trained(Both(), [nn.CrossEntropyLoss(), nn.MSELoss()], both)
    network = Both()
    output, number = network(batch.features)
    expected = F.cross_entropy(output[batch.label_mask], batch.label[batch.label_mask])
    expected = expected + F.mse_loss(number[:, 0], torch.ones(3))
    expected.backward()
    torch.testing.assert_close(grad, gradient(network))
    assert (found.rows, found.share) == (3, None)
    assert found.loss_sum == pytest.approx(3 * float(expected.detach()), rel=1e-6)
    # an output without one real step is left out, and no NaN comes of it
    nothing = Batch(**{**vars(both), "label_mask": (torch.zeros(3, 4, dtype=torch.bool), None)})
    found, grad = trained(Both(), [nn.CrossEntropyLoss(), nn.MSELoss()], nothing)
    assert found.loss_sum == pytest.approx(
        3 * float(F.mse_loss(number[:, 0].detach(), torch.ones(3))), rel=1e-6
    )
    assert bool(torch.isfinite(grad).all())


def test_a_bad_label_of_one_output_leaves_the_row_out_of_all() -> None:
    batch, losses = twins(4, 1), {"side": nn.CrossEntropyLoss(), "angle": nn.MSELoss()}
    batch.label["side"][2] = -1
    with pytest.raises(DataError, match="partition 0, row 2: label 'side' out of range: expected 0 to 2"):
        trained(Twins(), losses, batch)
    kept = torch.tensor([True, True, False, True])
    found, rest = (
        trained(Twins(), losses, batch, on_bad_row="skip"),
        trained(Twins(), losses, batch.rows(kept)),
    )
    assert found[0] == rest[0]
    torch.testing.assert_close(found[1], rest[1])


MASK = torch.tensor([[True, False]])


class Signature(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.forward = forward


@pytest.mark.parametrize(
    ("forward", "features", "masks", "passed"),
    [
        (lambda x: {}, "one", MASK, ()),
        (lambda x, **others: others, "one", MASK, ()),
        (lambda x, mask: {"mask": mask}, "one", MASK, ("mask",)),
        (lambda x, *, x_mask=None: {"x_mask": x_mask}, "one", MASK, ("x_mask",)),
        (lambda mask: {}, "one", MASK, ()),
        (lambda x, mask=None: {"mask": mask}, "one", None, ()),
        (lambda x, y, mask: {"mask": mask}, "tuple", (None, MASK), ("mask",)),
        (lambda x, y, y_mask: {"y_mask": y_mask}, "tuple", (None, MASK), ("y_mask",)),
        (lambda x, y, x_mask, y_mask, mask=None: {"x_mask": x_mask, "y_mask": y_mask, "mask": mask}, "tuple", (MASK, MASK), ("x_mask", "y_mask")),
        (lambda x, mask: {}, "tuple", (MASK, None), ()),
        (lambda b, a, a_mask: {"a_mask": a_mask}, "dict", {"a": MASK}, ("a_mask",)),
        (lambda b, a, mask: {"mask": mask}, "dict", {"a": MASK}, ("mask",)),
        (lambda b, a, a_mask=None, mask=None: {"a_mask": a_mask, "mask": mask}, "dict", {"a": MASK, "b": MASK}, ("a_mask",)),
    ],
)  # fmt: skip
def test_masks_go_where_forward_has_a_parameter_for_them(
    forward: Any, features: str, masks: Any, passed: tuple[str, ...]
) -> None:
    x = torch.zeros(1, 2)
    given: Any = {"one": x, "tuple": (x, x), "dict": {"a": x, "b": x}}[features]
    found = Caller(Signature(forward))(Batch(features=given, feature_mask=masks))
    assert {name for name, mask in found.items() if mask is not None} == set(passed)
    assert all(mask is MASK for mask in found.values() if mask is not None)


def test_a_compiled_network_is_given_its_masks() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return x * mask

    batch = Batch(features=torch.ones(1, 2), feature_mask=MASK)
    assert Caller(torch.compile(Masked(), backend="eager"))(batch).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("label", "received", "text"),
    [
        (
            "one",
            (torch.zeros(2, 1),),
            r"one tensor with a row for each of 2 rows, received tuple of \(2, 1\)",
        ),
        ("dict", torch.zeros(2, 3), r"a dict with 'side', 'angle', each a tensor .* received \(2, 3\)"),
        ("dict", {"side": torch.zeros(2, 3)}, r"received dict with 'side': \(2, 3\)"),
        ("dict", {"side": torch.zeros(2, 3), "angle": torch.zeros(())}, r"received dict .*'angle': \(\)"),
        ("tuple", (torch.zeros(2, 3),), r"a tuple of 2, each a tensor with a row for each of 2 rows"),
        ("tuple", [torch.zeros(2, 3), None], r"received list of \(2, 3\), NoneType"),
    ],
)
def test_outputs_that_do_not_fit_the_labels(label: str, received: Any, text: str) -> None:
    side, angle = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    labels: Any = {"one": angle, "dict": {"side": side, "angle": angle}, "tuple": (side, angle)}[label]
    losses: Any = {
        "one": nn.MSELoss(),
        "dict": {"side": nn.CrossEntropyLoss(), "angle": nn.MSELoss()},
        "tuple": [nn.CrossEntropyLoss(), nn.MSELoss()],
    }[label]
    with pytest.raises(UserCodeError, match=f"the network must return .*{text}"):
        trained(Signature(lambda x: received), losses, Batch(features=torch.zeros(2, 1), label=labels))


NONE = {"side": nn.CrossEntropyLoss(reduction="none"), "angle": nn.MSELoss()}


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ({}, "losses: expected at least one"),
        ({"side": nn.CrossEntropyLoss}, "loss 'side': expected a callable"),
        ([nn.MSELoss(), 5], "loss 1: expected a callable loss.*received 5"),
        (NONE, "loss 'side': expected reduction='mean', received 'none'"),
        (
            [lambda network, batch: None],
            r"loss 0: expected loss\(output, label\), received loss\(network, batch\)",
        ),
        (nn.ModuleDict({"side": nn.MSELoss(reduction="sum")}), "loss 'side': expected reduction='mean'"),
    ],
)
def test_losses_that_cannot_train_are_refused_when_the_job_is_made(loss: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        training_job(
            network=nn.Linear(1, 1),
            loss=loss,
            optimizer=partial(torch.optim.SGD, lr=0.1),
            strategy=AllReduce(),
            batch_size=1,
            epochs=1,
        )


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"slide": 1.0}, r"weights: expected names of losses \('side', 'angle'\), received 'slide'"),
        ({"side": -1.0}, "weight of loss 'side': expected a finite number of at least 0, received -1.0"),
        ({"side": float("nan")}, "weight of loss 'side': expected a finite number"),
        ({"side": True}, "weight of loss 'side': expected a finite number"),
        ([1.0, 2.0], "weights: expected the form of the losses"),
        ("ab", "weights: expected a dict"),
    ],
)
def test_weights_that_cannot_be(weights: Any, text: str) -> None:
    losses = {"side": nn.CrossEntropyLoss(), "angle": nn.MSELoss()}
    with pytest.raises(OptionError, match=text):
        Losses(losses, weights)
    with pytest.raises(OptionError, match="weights: expected 2, one for each loss, received 1"):
        Losses(list(losses.values()), [1.0])


def test_losses_and_labels_must_belong_together() -> None:
    losses = {"side": nn.CrossEntropyLoss(), "angle": nn.MSELoss()}
    require_labels(losses, ("angle", "side"))
    require_labels(list(losses.values()), 2)
    for wrong in (("side",), ("side", "angle", "more"), 2):
        with pytest.raises(OptionError, match="loss: expected a loss for each of the labels"):
            require_labels(losses, wrong)
    with pytest.raises(
        OptionError, match="loss: expected one loss for one label, received losses for 'side', 'angle'"
    ):
        require_labels(losses, None)
    with pytest.raises(OptionError, match="received losses for 'side', 'angle'"):
        trained(Twins("list"), losses, by_position(twins(3, 0)))


def test_losses_that_cannot_tell_rows_apart_take_no_weights() -> None:
    with pytest.raises(OptionError, match="weight: expected a loss with reduction='mean'"):
        Step(Twins(), {"side": nn.CrossEntropyLoss(), "angle": F.mse_loss}, "error", weighted=True)
