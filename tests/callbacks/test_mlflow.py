"""MLflow's own client finds what the callback logged, and the user's run is as it was."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch

from fatwood import SparkModel
from fatwood.callbacks import MLflow
from fatwood.callbacks.mlflow import MODEL_FILE
from fatwood.errors import OptionError, UserCodeError
from fatwood.train import Callbacks

# what MLflow and its packages warn of is theirs to mend
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("GIT_PYTHON_REFRESH", "quiet")
        for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        module = pytest.importorskip("mlflow")
        folder = tmp_path_factory.mktemp("mlflow")
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs.db")
        yield module
        module.set_tracking_uri(None)


@pytest.fixture
def client(mlflow):
    return mlflow.MlflowClient()


def test_parameters_metrics_tags_and_status_are_there(client, run, replay) -> None:
    callback = MLflow("digits", run_name="first")
    replay(callback)
    found = client.get_run(callback.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    assert client.get_experiment(found.info.experiment_id).name == "digits"
    assert found.data.params["strategy"] == "AllReduce()"
    assert found.data.params["optimizer"] == "SGD(lr=0.1)"
    assert found.data.params["batch_size"] == "4"
    assert found.data.tags["mlflow.source.name"] == "fatwood"
    assert "mlflow.parentRunId" not in found.data.tags

    def metric(name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in client.get_metric_history(callback.run_id, name)]

    assert metric("loss/step") == [(record.step, record.loss) for record in run.steps]
    assert metric("loss/epoch") == [(2, run.epochs[0].loss), (4, run.epochs[1].loss)]
    assert metric("loss/validation") == [(2, 0.5), (4, 0.25)]
    assert metric("accuracy/validation") == [(4, 0.75)]
    assert metric("rows_trained/fit") == [(4, 16)]
    assert client.list_artifacts(callback.run_id) == []


def test_a_fit_that_failed_is_a_failed_run_and_one_that_was_interrupted_a_killed_one(
    client, run, replay
) -> None:
    failed, killed = MLflow(), MLflow()
    replay(failed, UserCodeError("KeyError: 'x'"))
    replay(killed, KeyboardInterrupt())
    assert client.get_run(failed.run_id).info.status == "FAILED"
    assert client.get_run(failed.run_id).data.tags["fatwood.error"] == "UserCodeError: KeyError: 'x'"
    assert len(client.get_metric_history(failed.run_id, "loss/step")) == len(run.steps)
    assert client.get_run(killed.run_id).info.status == "KILLED"


def test_an_active_run_of_the_users_stays_as_it_is_and_becomes_the_parent(mlflow, client, replay) -> None:
    experiment = client.create_experiment("of the user")
    with mlflow.start_run(experiment_id=experiment) as active:
        mlflow.log_param("mine", 1)
        callback = MLflow()
        replay(callback)
        assert mlflow.active_run().info.run_id == active.info.run_id
        mlflow.log_metric("mine", 2.0)
    kept = client.get_run(active.info.run_id)
    assert kept.data.params == {"mine": "1"}
    assert kept.data.metrics == {"mine": 2.0}
    assert kept.info.status == "FINISHED"
    child = client.get_run(callback.run_id)
    assert child.data.tags["mlflow.parentRunId"] == active.info.run_id
    assert child.info.experiment_id == experiment


def test_the_experiment_that_mlflow_is_set_to(client, monkeypatch, replay) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    callback = MLflow()
    replay(callback)
    assert client.get_experiment(client.get_run(callback.run_id).info.experiment_id).name == "by name"


def test_another_store(mlflow, client, tmp_path, replay) -> None:
    own = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///"))
    uri = f"sqlite:///{shutil.copy(own, tmp_path / 'other.db')}"  # making one takes seconds
    callback = MLflow(tracking_uri=uri)
    replay(callback)
    assert mlflow.MlflowClient(uri).get_run(callback.run_id).info.status == "FINISHED"
    with pytest.raises(mlflow.exceptions.MlflowException):
        client.get_run(callback.run_id)


def test_the_trained_model_can_be_logged_and_loaded(client, tmp_path, run, replay) -> None:
    callback = MLflow(log_model=True)
    replay(callback)
    path = client.download_artifacts(callback.run_id, MODEL_FILE, str(tmp_path))
    assert torch.equal(SparkModel.load(path).network.weight, run.info.network.weight)


def test_a_store_that_fails_later_is_one_warning_and_the_metrics_are_sent_again(
    client, monkeypatch, caplog, run
) -> None:
    callback = MLflow()
    told = Callbacks([callback])
    told.start(run.info)
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING, "fatwood.callbacks"):
        broken.setattr(type(callback._client), "log_batch", lambda *_a, **_k: 1 / 0)
        for record in run.steps[:3]:
            callback._next = 0.0
            told.tell([record])
    assert [record.message for record in caplog.records if record.name == "fatwood.callbacks"] == [
        "MLflow: could not log metrics: ZeroDivisionError: division by zero"
    ]
    told.tell(run.steps[3:])
    told.end(run.history, run.stats)
    assert [m.step for m in client.get_metric_history(callback.run_id, "loss/step")] == [1, 2, 3, 4]
    assert client.get_run(callback.run_id).info.status == "FINISHED"


def test_a_store_that_cannot_be_reached_at_the_start_is_an_error(mlflow, replay) -> None:
    with pytest.raises(UserCodeError, match=r"raised by the callback MLflow\.on_start"):
        replay(MLflow(tracking_uri="nonsense://nowhere"))


def test_without_the_package_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(OptionError, match=r'mlflow(?s:.*)hint: pip install "fatwood\[mlflow\]"'):
        MLflow()
