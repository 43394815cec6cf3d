"""What a task of an evaluation counts, without Spark: however rows lie in minibatches and groups, the reports of all rows."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from fatwood import Batch, Losses
from fatwood.errors import DataError, OptionError, UserCodeError, UserError
from fatwood.evaluation import ROC, Classification, Loss, Regression, Report, ROCMultiClass, TorchMetric
from fatwood.spark.evaluation_groups import MOST_GROUPS, Groups, plain_value
from fatwood.spark.reports import FITTING, TOGETHER, merged_reports, packed_reports, read_packed_reports
from fatwood.spark.tally import Tally

ROWS = 60
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(ROWS, 2, generator=GENERATOR)
Y = torch.randint(0, 3, (ROWS,), generator=GENERATOR)
WEIGHT = torch.randint(0, 8, (ROWS,), generator=GENERATOR) / 4
NUMBER = torch.randn(ROWS, generator=GENERATOR)
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(5)
    return nn.Linear(2, outputs).eval()


def no_drop(row_ids, message) -> None:
    raise DataError(message)


def counted(tally: Tally, batch: Batch, size: int, groups=None, drop=no_drop):
    """All rows in minibatches of a size."""
    groups = np.zeros(len(batch), np.int64) if groups is None else groups
    with torch.no_grad():
        for start in range(0, len(batch), size):
            rows = slice(start, start + size)
            tally.add(tally.measured(batch.rows(rows), groups[rows], drop))
        return tally.reports()


@pytest.mark.parametrize("size", [1, 7, ROWS])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=1, label_smoothing=0.0),
    ],
)
def test_the_mean_loss_does_not_depend_on_the_minibatches(loss, weighted, size) -> None:
    net = network()
    weight = WEIGHT if weighted else None
    batch = Batch(X, Y, weight=weight)
    kept = torch.ne(Y, loss.ignore_index)
    with torch.no_grad():
        losses = nn.CrossEntropyLoss(weight=loss.weight, reduction="none")(net(X), Y)[kept].double()
    own = torch.ones(int(kept.sum())) if weight is None else weight[kept]
    of_class = torch.ones(3) if loss.weight is None else loss.weight
    expected = float((losses * own).sum() / (of_class[Y[kept]] * own).sum())
    # the one that fits the labels, and one that is asked for
    for metrics in (None, {None: {"c": Classification(), "l": Loss()}}):
        found = counted(Tally(net, loss, metrics, weighted=weighted), batch, size)[0][None]
        for report in found.values():
            assert report.loss == pytest.approx(expected, rel=1e-5)
            assert report.rows == int(kept.sum())
        right = (net(X).argmax(1) == Y)[kept].float()
        first = next(iter(found.values()))
        assert first.accuracy == pytest.approx(float((right * own).sum() / own.sum()))


def test_reports_are_those_of_one_batch() -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    net, loss = network(), nn.CrossEntropyLoss()
    auroc = classification.MulticlassAUROC(3)
    asked = {"c": Classification(top_n=2), "r": ROCMultiClass(), "a": TorchMetric(auroc)}
    found = counted(Tally(net, loss, {None: asked}), Batch(X, Y), 7)[0][None]
    with torch.no_grad():
        probabilities = net(X).double().softmax(1)
    assert found["r"] == ROCMultiClass().update(probabilities, Y)
    assert found["c"].top_n_accuracy == Classification(top_n=2).update(probabilities, Y).top_n_accuracy
    assert found["a"].value == pytest.approx(float(auroc(probabilities.float(), Y)))
    assert asked["c"].rows == 0


@pytest.mark.parametrize("size", [1, 9, ROWS])
@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), nn.CrossEntropyLoss(ignore_index=2)]
)
def test_groups_are_evaluated_each_by_itself(loss, size) -> None:
    net, groups = network(), np.arange(ROWS) % 4
    batch = Batch(X, Y, weight=WEIGHT)
    asked = {None: {"c": Classification(), "r": ROCMultiClass()}}
    found = counted(Tally(net, loss, asked, weighted=True), batch, size, groups)
    assert set(found) == {0, 1, 2, 3}
    for group, reports in found.items():
        alone = counted(
            Tally(net, loss, asked, weighted=True), batch.rows(torch.from_numpy(groups == group)), ROWS
        )[0]
        assert reports[None]["r"] == alone[None]["r"]
        assert reports[None]["c"].confusion.tolist() == alone[None]["c"].confusion.tolist()
        assert reports[None]["c"].loss == pytest.approx(alone[None]["c"].loss, rel=1e-6)


class Steps(nn.Module):
    """Two numbers for each step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, -x], -1)


def test_real_steps_count_with_the_weight_of_their_row() -> None:
    x, y = torch.arange(12.0).reshape(4, 3) - 5, torch.tensor([[0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    mask = torch.tensor(
        [[True, True, True], [True, False, False], [True, True, False], [False, False, False]]
    )
    weight = torch.tensor([1.0, 2.0, 0.5, 4.0])
    batch = Batch(x, y, weight=weight, label_mask=mask)
    loss, asked = nn.CrossEntropyLoss(), {None: {"roc": ROC(), "c": Classification()}}
    of_step = weight[:, None].expand(4, 3)[mask]
    output = Steps()(x)[mask]
    expected = ROC().update(output.double().softmax(1), y[mask], weights=of_step)
    losses = nn.functional.cross_entropy(output, y[mask], reduction="none")
    for groups in (np.zeros(4, np.int64), np.array([0, 1, 1, 0])):
        found = counted(Tally(Steps(), loss, asked, weighted=True), batch, 2, groups)
        merged = merged_reports([*found.values()], asked, 0)[None]
        assert merged["roc"] == expected
        assert merged["roc"].rows == int(mask.sum())
        assert merged["c"].loss == pytest.approx(float((losses * of_step).sum() / of_step.sum()))
    alone = counted(Tally(Steps(), loss, asked, weighted=True), batch.rows(slice(3, 4)), 1)
    assert alone == {}  # all masked


class Twins(nn.Module):
    """A class and a number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.kind, self.size = nn.Linear(2, 3), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"kind": self.kind(x), "size": self.size(x)[:, 0]}


def test_each_output_has_its_own() -> None:
    net = Twins().eval()
    loss = Losses({"kind": nn.CrossEntropyLoss(), "size": nn.MSELoss()})
    asked = {"kind": {"roc": ROCMultiClass()}, "size": {"r": Regression(), "loss": Loss()}}
    found = counted(Tally(net, loss, asked), Batch(X, {"kind": Y, "size": NUMBER}), 8)[0]
    with torch.no_grad():
        outputs = net(X)
    assert found["kind"]["roc"] == ROCMultiClass().update(outputs["kind"].double().softmax(1), Y)
    assert found["size"]["r"].rows == ROWS
    assert found["size"]["loss"].loss == pytest.approx(float(nn.MSELoss()(outputs["size"], NUMBER)), rel=1e-6)


def test_one_loss_of_several_outputs_has_a_report_of_its_own() -> None:
    def loss(outputs, labels):
        return ((outputs["size"] - labels["size"]) ** 2).mean() + outputs["kind"].mean()

    net, batch = Twins().eval(), Batch(X, {"kind": Y, "size": NUMBER})
    asked = {"kind": {"c": Classification()}, "size": {"r": Regression()}}
    expected = float(loss(net(X), {"size": NUMBER}).detach())
    for metrics in (None, asked):
        found = counted(Tally(net, loss, metrics), batch, 10)[0]
        assert found[TOGETHER][FITTING].loss == pytest.approx(expected, rel=1e-5)
        assert set(found) == {TOGETHER, "kind"} | (set() if metrics is None else {"size"})


def test_activations() -> None:
    net = network(1)
    truth = (NUMBER > 0).float()
    with torch.no_grad():
        logits = net(X)
    cases = [
        (nn.BCEWithLogitsLoss(), "auto", logits.double().sigmoid()),
        (None, "auto", logits),
        (None, "sigmoid", logits.double().sigmoid()),
        (nn.BCEWithLogitsLoss(), None, logits),
        (nn.BCEWithLogitsLoss(), lambda output: output * 2, logits * 2),
    ]
    for loss, activation, expected in cases:
        found = counted(Tally(net, loss, {None: {"roc": ROC()}}, activation), Batch(X, truth), 16)[0]
        assert found[None]["roc"] == ROC().update(expected, truth[:, None])
    with pytest.raises(
        UserCodeError, match=r"activation must return a tensor with a row for each of 60.*received \(\)"
    ):
        counted(Tally(net, None, {None: {"roc": ROC()}}, torch.sum), Batch(X, truth), 16)
    with pytest.raises(
        UserCodeError, match=r"(?s)KeyError: .*raised by the activation, given output of shape"
    ):
        counted(Tally(net, None, {None: {"roc": ROC()}}, lambda x: {}["x"]), Batch(X, truth), 16)
    with pytest.raises(UserError, match="activation="):
        counted(Tally(net, None, {None: {"roc": ROC(bins=5)}}), Batch(X, truth), 16)


class Own(Report):
    """Rows of networks, for a loss that is called with the minibatch."""

    KIND = "rows-of-a-test"

    def __init__(self) -> None:
        self.skipped, self.rows, self.total, self.labels = 0, 0, 0.0, 0

    def update(self, outputs, labels, loss_sum=math.nan, *, weights=None):
        if len(outputs) and outputs.numel() and float(outputs.max()) > 1e6:
            raise KeyError("too large")
        self.rows, self.total = self.rows + len(outputs), self.total + loss_sum
        self.labels += labels is not None
        return self

    def merge(self, other):
        raise NotImplementedError

    def fresh(self):
        return Own()

    def state(self):
        return {"rows": self.rows, "skipped": self.skipped}

    @classmethod
    def from_state(cls, state):
        return cls()

    def summary(self):
        return {"rows": self.rows}


def of_whole(net, batch):
    return (net(batch.features) ** 2).mean()


def test_a_loss_of_the_whole_minibatch_without_labels() -> None:
    net, groups = network(), np.arange(ROWS) % 2
    with torch.no_grad():
        expected = [float(of_whole(net, Batch(X[groups == group]))) for group in (0, 1)]
    for metrics in (None, {None: {"l": Loss(), "own": Own()}}, {None: {"l": Loss()}}):
        found = counted(Tally(net, of_whole, metrics), Batch(X), 15, groups)
        for group in (0, 1):
            report = next(iter(found[group][None].values()))
            assert report.loss == pytest.approx(expected[group], rel=0.1)  # a mean of means
            assert report.rows == ROWS // 2
            if metrics is not None and "own" in metrics[None]:
                assert (found[group][None]["own"].rows, found[group][None]["own"].labels) == (ROWS // 2, 0)


def test_a_metric_that_fails_is_named() -> None:
    with pytest.raises(
        UserCodeError, match=r"(?s)KeyError: 'too large'.*raised by the metric 'mine', given output of"
    ):
        counted(Tally(network(), None, {None: {"mine": Own()}}), Batch(X * 1e9, Y), 16)


def test_without_loss_or_metrics_numbers_cannot_be_evaluated() -> None:
    with pytest.raises(OptionError, match="expected a model with loss"):
        counted(Tally(network(1), None), Batch(X, NUMBER), 16)
    found = counted(Tally(network(1), None, {None: {"r": Regression()}}), Batch(X, NUMBER), 16)
    assert found[0][None]["r"].rows == ROWS


def test_large_outputs_do_not_wait() -> None:
    net = nn.Linear(2, 40_000).eval()
    tally = Tally(net, None)
    counted(tally, Batch(X, Y), 10)
    tally.add(tally.measured(Batch(X, Y), np.zeros(ROWS, np.int64), no_drop))
    assert not tally._waiting[None]


def test_rows_out_of_range_are_dropped() -> None:
    dropped: list[int] = []
    labels = Y.clone()
    labels[[3, 20]] = 9
    found = counted(
        Tally(network(), nn.CrossEntropyLoss()),
        Batch(X, labels),
        16,
        np.arange(ROWS) % 2,
        lambda row_ids, message: dropped.extend(row_ids.tolist()),
    )
    assert dropped == [3, 20]
    assert [found[group][None][FITTING].rows for group in (0, 1)] == [ROWS // 2 - 1] * 2


def test_reports_travel_as_text() -> None:
    asked = {"a": {"c": Classification(top_n=2)}, "b": {"l": Loss()}}
    found = {"a": {"c": Classification(top_n=2).update(X.new_ones(4, 3), torch.zeros(4).long())}}
    again = read_packed_reports(packed_reports(found), asked)
    assert again == found
    merged = merged_reports([found, again], asked, 3)
    assert (merged["a"]["c"].rows, merged["a"]["c"].skipped, merged["b"]["l"].rows) == (8, 3, 0)
    assert list(merged) == ["a", "b"]
    assert read_packed_reports(packed_reports({None: {FITTING: Loss()}}), None) == {None: {FITTING: Loss()}}
    assert json.loads(packed_reports({})) == []


class TestGroups:
    def test_equal_values_are_one_group(self) -> None:
        groups = Groups([pa.string(), pa.float64()])
        first = groups([pa.array(["a", None, "a", "b"]), pa.array([1.0, math.nan, 1.0, None])], 4)
        second = groups([pa.array([None, "b", "c"]), pa.array([math.nan, None, 0.0])], 3)
        assert first.tolist() == [first[0], first[1], first[0], first[3]]
        assert second.tolist()[:2] == [first[1], first[3]]
        assert len(groups) == 4
        columns = groups.columns(range(4))
        assert sorted(map(str, columns[0].to_pylist())) == ["None", "a", "b", "c"]
        assert columns[1].type == pa.float64()

    def test_no_columns_are_one_group(self) -> None:
        groups = Groups([])
        assert groups([], 3).tolist() == [0, 0, 0]
        assert (len(groups), groups.columns([0])) == (1, [])

    def test_too_many(self) -> None:
        groups = Groups([pa.int64()])
        groups([pa.array(range(MOST_GROUPS))], MOST_GROUPS)
        with pytest.raises(OptionError, match="by: expected at most 10,000 groups"):
            groups([pa.array([-1])], 1)

    def test_plain_values(self) -> None:
        assert plain_value(float("nan")) is plain_value(np.float64("nan"))
        assert plain_value(bytearray(b"a")) == b"a"
