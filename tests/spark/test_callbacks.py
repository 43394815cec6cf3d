"""Callbacks in real fits: what they hear and when, what their errors do, and a leader that dies."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fatwood import Callback, GradientSharing, SparkModel, WorkerCallback
from fatwood.errors import DataError, OptionError, ShippingError, UserCodeError
from fatwood.testing.faults import Faults

pytestmark = pytest.mark.spark

ROWS, BATCH, WORKERS = 120, 5, 2


class Hearing(Callback):
    """Notes everything, and from which thread."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.threads: set[int] = set()

    def note(self, kind: str, what: object) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append((kind, what))

    def on_start(self, run):
        self.note("start", run)

    def on_step(self, record):
        self.note("step", record)

    def on_validation(self, record):
        self.note("validation", record)

    def on_epoch(self, record):
        self.note("epoch", record)

    def on_end(self, history, stats):
        self.note("end", (history, stats))

    def on_error(self, error):
        self.note("error", error)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.calls]

    def of(self, kind: str) -> list:
        return [what for name, what in self.calls if name == kind]


@pytest.fixture(scope="module")
def df(spark):
    return spark.range(0, ROWS, 1, 4).selectExpr("float(id / 120) x", "int(id % 3) y").cache()


def make_model(loss=None) -> SparkModel:
    torch.manual_seed(1)
    return SparkModel(
        nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)),
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.05),
        strategy=GradientSharing(),
    )


def fit(df, *callbacks, model=None, **options):
    options = {"workers": WORKERS, "batch_size": BATCH, "progress": False} | options
    return (model or make_model()).fit(df, features="x", label="y", callbacks=callbacks, **options)


def weights(model: SparkModel) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.network.parameters()]).clone()


def test_a_fit_is_told_in_order_on_the_thread_that_called_it(df, nothing_left) -> None:
    hearing, model = Hearing(), make_model()
    done = fit(df, hearing, model=model, epochs=2, seed=7)
    assert hearing.threads == {threading.get_ident()}
    assert (hearing.kinds[0], hearing.kinds[-1]) == ("start", "end")
    (run,) = hearing.of("start")
    assert (run.workers, run.epochs, run.first_epoch, run.rows, run.batch_size) == (2, 2, 0, ROWS, BATCH)
    assert run.parameters == done.stats.parameters
    assert run.strategy == str(model.strategy)
    assert run.options["optimizer"] == "SGD(lr=0.05)"
    assert run.options["loss"] == "CrossEntropyLoss()"
    assert (run.options["features"], run.options["label"], run.options["seed"]) == ("x", "y", 7)
    assert run.network is model.network
    assert hearing.of("epoch") == list(done.history)
    assert hearing.of("end") == [(done.history, done.stats)]
    steps = hearing.of("step")
    assert [record.step for record in steps] == list(range(1, 25))
    assert sum(record.rows for record in steps) == 2 * ROWS
    ends = [i for i, kind in enumerate(hearing.kinds) if kind == "epoch"]
    assert [hearing.calls[i - 1][1].epoch for i in ends] == [0, 1]
    assert steps[11].rows_of_epoch == ROWS
    assert steps[11].mean_loss == pytest.approx(done.history[0].loss)


def test_validations_are_told_each_once(df, nothing_left) -> None:
    hearing = Hearing()
    done = fit(df, hearing, epochs=2, validation=df.limit(20), validate_every=5)
    assert hearing.of("validation") == list(done.validations)
    assert len(done.validations) >= 4
    ends = [record.validation for record in hearing.of("epoch")]
    assert ends == [record.validation for record in done.history]


def test_the_network_is_trained_when_the_end_is_told(df) -> None:
    class Looking(Callback):
        def on_start(self, run):
            self.network = run.network
            self.before = run.network[0].weight.detach().clone()

        def on_epoch(self, record):
            assert torch.equal(self.network[0].weight, self.before)

        def on_end(self, history, stats):
            self.after = self.network[0].weight.detach().clone()

    looking, model = Looking(), make_model()
    fit(df, looking, model=model)
    first, hearing = looking.after, Hearing()
    fit(df, looking, hearing, model=model)
    assert torch.equal(first, looking.before)
    assert [run.first_epoch for run in hearing.of("start")] == [1]
    assert [record.epoch for record in hearing.of("epoch")] == [1]
    assert [record.step for record in hearing.of("step")] == list(range(13, 25))
    assert not torch.equal(looking.after, looking.before)
    assert torch.equal(looking.after, model.network[0].weight)


class Raising(Callback):
    """Raises in one of its hooks."""

    def __init__(self, hook: str) -> None:
        def fail(*_args: object) -> None:
            raise LookupError("nothing here")

        setattr(self, hook, fail)


@pytest.mark.parametrize("hook", ["on_start", "on_step", "on_epoch", "on_end"])
def test_an_error_in_a_hook_ends_the_fit_and_leaves_nothing(df, nothing_left, hook) -> None:
    hearing, model = Hearing(), make_model()
    before = weights(model)
    with pytest.raises(UserCodeError) as caught:
        fit(df, hearing, Raising(hook), model=model, epochs=2)
    assert caught.value.message == f"LookupError: nothing here\nraised by the callback Raising.{hook}"
    assert hearing.kinds[-1] == ("end" if hook == "on_end" else "error")
    assert torch.equal(before, weights(model)) == (hook != "on_end")
    assert model.epochs_trained == (2 if hook == "on_end" else 0)


def test_an_error_in_on_error_does_not_hide_the_first(df, nothing_left, caplog) -> None:
    hearing = Hearing()
    bad = df.selectExpr("x", "if(y = 2, 99, y) y")
    with pytest.raises(DataError, match="label out of range") as caught:
        fit(bad, Raising("on_error"), hearing)
    assert hearing.of("error") == [caught.value]
    assert "Raising.on_error" in caplog.text


class Marking(WorkerCallback):
    """Leaves a file for every hook and rank, with the number of calls as its size."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def mark(self, hook: str, rank: int) -> None:
        with Path(self.folder, f"{hook}-{rank}").open("a") as file:
            file.write("x")

    def on_start(self, worker):
        self.mark("start", worker.rank)

    def before_step(self, worker, batch):
        self.mark("before", worker.rank)

    def after_step(self, worker, batch, loss):
        self.mark("after", worker.rank)

    def after_agreement(self, worker, record):
        self.mark("agreed", worker.rank)

    def on_end(self, worker):
        self.mark("end", worker.rank)


def test_worker_callbacks_run_on_every_worker(df, nothing_left, tmp_path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    fit(df, Marking(folder), Hearing())
    found = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert found == {
        f"{hook}-{rank}": calls
        for rank in range(WORKERS)
        for hook, calls in (("start", 1), ("before", 12), ("after", 12), ("agreed", 12), ("end", 1))
    }


def test_an_error_on_a_worker_comes_with_its_traceback(df, nothing_left) -> None:
    class Failing(WorkerCallback):
        def after_step(self, worker, batch, loss):
            if worker.rank == 1:
                raise LookupError("only here")

    hearing = Hearing()
    with pytest.raises(UserCodeError) as caught:
        fit(df, hearing, Failing())
    assert caught.value.message.startswith(
        "LookupError: only here\nraised by the callback Failing.after_step\non worker 1 on host 127.0.0.1"
    )
    assert "in after_step" in caught.value.message
    assert hearing.of("error") == [caught.value]


def test_what_cannot_be_a_callback_is_found_before_any_job(df, monkeypatch) -> None:
    class Locked(WorkerCallback):
        def __init__(self):
            self.lock = threading.Lock()

    monkeypatch.setattr("fatwood.spark.feeds.inspect", lambda *_: pytest.fail("a job was started"))
    hearing = Hearing()
    with pytest.raises(ShippingError, match=r"callbacks\[0\]\.lock: cannot be sent"):
        fit(df, hearing, Locked())
    with pytest.raises(OptionError, match=r"callbacks\[1\]: expected a Callback"):
        fit(df, hearing, "tensorboard")
    assert hearing.calls == []


def slow(loss, output, label):
    time.sleep(0.03)
    return loss(output, label)


def test_each_epoch_is_told_once_although_the_leader_died(df, nothing_left, tmp_path) -> None:
    folder = tmp_path / "faults"
    folder.mkdir()
    hearing = Hearing()
    loss = Faults(folder).kill(rank=0, call=30).wrap(partial(slow, nn.CrossEntropyLoss()))
    done = fit(df, hearing, model=make_model(loss), epochs=5)
    assert done.stats.workers_lost == 1
    assert [record.epoch for record in hearing.of("epoch")] == [0, 1, 2, 3, 4]
    assert [record.rows_of_worker for record in hearing.of("epoch")] == [(ROWS // 2, ROWS // 2)] * 5
    assert [record.loss for record in hearing.of("epoch")] == [record.loss for record in done.history]
    steps = [record.step for record in hearing.of("step")]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 60
    epochs = [what.epoch for kind, what in hearing.calls if kind in ("step", "epoch")]
    assert epochs == sorted(epochs)


def test_trackers_hear_of_a_real_fit(df, nothing_left, tmp_path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from fatwood.callbacks import TensorBoard

    done = fit(df, TensorBoard(tmp_path / "board"), epochs=2)
    found = accumulator.EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss/step")] == list(range(1, 25))
    losses = [event.value for event in found.Scalars("loss/epoch")]
    assert losses == pytest.approx([record.loss for record in done.history])
