"""A fit as a run of MLflow."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fatwood import blueprint
from fatwood.callbacks.figures import about, figures, require, summary
from fatwood.checkpoint import write_model
from fatwood.train import Callback, EpochRecord, FitStats, History, RunInfo, StepRecord, ValidationRecord

__all__ = ["MODEL_FILE", "MLflow"]

MODEL_FILE = "model.fatwood"
"""The name of the artifact that ``log_model=True`` adds."""

_LOG = logging.getLogger("fatwood.callbacks")
_FLUSH_SECONDS = 1.0
_PAUSE_SECONDS = 60.0
"""Until metrics are sent again after a failure: the client itself tries for minutes."""
_BATCH = 500
"""Metrics in one request; MLflow takes 1,000."""
_MOST_WAITING = 20_000
"""Metrics that are kept for a server that does not answer; then the oldest go."""
_PARAMETERS = 90
"""Parameters in one request; MLflow takes 100."""
_MOST_CHARACTERS = 500
"""Of a parameter; MLflow before 2.8 takes no more."""


class MLflow(Callback):
    """Makes a run of its own with parameters, metrics, tags and a status.

    It works through MLflow's client, so a run that you have begun stays as it is; the new run becomes its child. A server that
    cannot be reached when the fit starts is an error; later it is a warning, and metrics are sent again.

    Args:
        experiment: Name; made when there is none. By default that of your active run, or the one that MLflow is set to.
        run_name: By default MLflow makes one up.
        tracking_uri: By default the one that MLflow is set to.
        log_model: Whether to add the trained network to the run, as the file that ``SparkModel.load`` reads.

    Raises:
        OptionError: The extra ``mlflow`` is not installed.
    """

    def __init__(
        self,
        experiment: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        *,
        log_model: bool = False,
    ) -> None:
        self._experiment = experiment
        self._run_name = run_name
        self._tracking_uri = tracking_uri
        self._log_model = log_model
        self._mlflow = require("mlflow", "mlflow")
        self._client: Any = None
        self.run_id: str | None = None
        """Of the last fit's run."""
        self._network: Any = None
        self._waiting: list[Any] = []
        self._next = 0.0
        self._step = 0
        self._has_warned = False

    def on_start(self, run: RunInfo) -> None:
        """Make the run, and log what it is about."""
        self.run_id, self._waiting, self._has_warned = None, [], False
        self._network = run.network
        self._client = self._mlflow.MlflowClient(self._tracking_uri)
        experiment_id, tags = self._place()
        made = self._client.create_run(experiment_id, tags=tags, run_name=self._run_name)
        self.run_id = made.info.run_id
        parameter = self._mlflow.entities.Param
        params = [parameter(name, str(value)[:_MOST_CHARACTERS]) for name, value in about(run).items()]
        for start in range(0, len(params), _PARAMETERS):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMETERS])

    def on_step(self, record: StepRecord) -> None:
        """Log its loss, and what else there is."""
        self._step = record.step
        self._log(figures(record))

    def on_validation(self, record: ValidationRecord) -> None:
        """Log loss and accuracy."""
        self._log(figures(record), step=record.step)

    def on_epoch(self, record: EpochRecord) -> None:
        """Log loss and rows a second, at the step that ended the epoch."""
        self._log(figures(record))

    def on_end(self, history: History, stats: FitStats) -> None:  # noqa: ARG002
        """Log the figures of the whole fit, and the network if asked; the run is finished."""
        self._log(summary(stats), flush=True)
        if self._log_model:
            self._try("log the model", self._send_model)
        self._try("end the run", lambda: self._client.set_terminated(self.run_id, "FINISHED"))

    def on_error(self, error: BaseException) -> None:
        """The run has failed, or was killed where it was interrupted."""
        if self.run_id is None:
            return
        self._log({}, flush=True)
        text = f"{type(error).__name__}: {error}"[:_MOST_CHARACTERS]
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self._try("tag the run", lambda: self._client.set_tag(self.run_id, "fatwood.error", text))
        self._try("end the run", lambda: self._client.set_terminated(self.run_id, status))

    def _place(self) -> tuple[str, dict[str, str]]:
        """The experiment's id and the run's tags."""
        tags = {"mlflow.source.name": "fatwood"}
        active = self._mlflow.active_run() if self._tracking_uri is None else None
        if active is not None:
            tags["mlflow.parentRunId"] = active.info.run_id
        name = self._experiment
        if name is None:
            if active is not None:
                return active.info.experiment_id, tags
            if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):  # set_experiment sets it, too
                return given, tags
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        found = self._client.get_experiment_by_name(name)
        return (self._client.create_experiment(name) if found is None else found.experiment_id), tags

    def _log(self, numbers: Mapping[str, float], *, step: int | None = None, flush: bool = False) -> None:
        metric, now = self._mlflow.entities.Metric, int(time.time() * 1000)
        at = self._step if step is None else step
        self._waiting += [metric(name, value, now, at) for name, value in numbers.items()]
        full = len(self._waiting) >= _BATCH and not self._has_warned
        if flush or full or time.monotonic() >= self._next:
            was_sent = self._try("log metrics", self._send_metrics)
            self._next = time.monotonic() + (_FLUSH_SECONDS if was_sent else _PAUSE_SECONDS)

    def _send_metrics(self) -> None:
        while self._waiting:
            self._client.log_batch(self.run_id, metrics=self._waiting[:_BATCH])
            del self._waiting[:_BATCH]

    def _send_model(self) -> None:
        with tempfile.TemporaryDirectory(prefix="fatwood-mlflow-") as folder:
            path = Path(folder, MODEL_FILE)
            with path.open("wb") as file:
                write_model(
                    file,
                    state_dict=self._network.state_dict(),
                    blueprint=blueprint.describe(self._network),
                    extra={},
                )
            self._client.log_artifact(self.run_id, str(path))

    def _try(self, what: str, action: Callable[[], object]) -> bool:
        """A tracker that fails does not end a training."""
        try:
            action()
            return True
        except Exception as error:
            del self._waiting[:-_MOST_WAITING]
            if not self._has_warned:
                self._has_warned = True
                _LOG.warning("MLflow: could not %s: %s: %s", what, type(error).__name__, error)
            return False
