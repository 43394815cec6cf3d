"""A network with what Spark can do for it: fit, evaluate, predict, save, load."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from fatwood import blueprint, storage
from fatwood.checkpoint import read_model, write_model
from fatwood.data import OnBadRow
from fatwood.errors import OptionError, UserError
from fatwood.evaluation import Classification, Loss
from fatwood.snapshots import Checkpoints
from fatwood.train import (
    FitStats,
    GradientSharing,
    History,
    LossFunction,
    OptimizerFactory,
    Strategy,
    TrainingJob,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from fatwood.spark.fit import FitState

__all__ = ["Fit", "SparkModel"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What :meth:`SparkModel.fit` returns."""

    history: History
    """One record per epoch: loss, rows, seconds."""
    stats: FitStats
    """Rows, bytes, phases and digests of all workers."""


class SparkModel:
    """A PyTorch network that trains, evaluates and predicts on Spark.

    Args:
        network: Any ``torch.nn.Module`` that takes one tensor ``(B, width)`` and returns one tensor ``(B, ...)``.
        loss: ``loss(output, label)``, the mean over the rows. Needed to fit; optional to evaluate.
        optimizer: Makes an optimizer from parameters, on every worker. Needed to fit.
        strategy: How the workers train together.

    Example::

        model = SparkModel(net, loss=torch.nn.CrossEntropyLoss(), optimizer=partial(torch.optim.Adam, lr=1e-3))
        fit = model.fit(train_df, features="pixels", label="digit", epochs=3)
        model.evaluate(test_df, features="pixels", label="digit").accuracy
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        loss: LossFunction | None = None,
        optimizer: OptimizerFactory | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        if not isinstance(network, torch.nn.Module):
            text = f"SparkModel: expected a torch.nn.Module, received {network!r}"
            raise OptionError(text, hint="pass an instance, not the class: Net() instead of Net")
        self.network = network
        """The network itself, a plain module, on the driver; :meth:`fit` changes its parameters in place."""
        self.loss = loss
        self.optimizer = optimizer
        self.strategy = GradientSharing() if strategy is None else strategy
        self._run = _RunState()

    @property
    def epochs_trained(self) -> int:
        """Epochs that :meth:`fit` trained since this object was made, loaded or reset."""
        return self._run.epochs

    def fit(
        self,
        df: DataFrame,
        *,
        features: str | Sequence[str],
        label: str,
        batch_size: int = 32,
        epochs: int = 1,
        workers: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        on_bad_row: OnBadRow = "error",
        min_workers: int | None = None,
        heartbeat_timeout_seconds: float = 10.0,
        rejoin_timeout_seconds: float = 120.0,
        checkpoints: Checkpoints | None = None,
        resume_from: str | Path | None = None,
        encrypt: bool = False,
        progress: bool = True,
    ) -> Fit:
        """Train the network on a DataFrame, as one Spark job for each worker.

        A further fit goes on where the last one ended: optimizers, residuals and thresholds survive, so two fits
        of one epoch equal one fit of two epochs. :meth:`reset` begins anew.

        When a worker is lost, the others go on; another process takes its place, gets the state of the training from
        a living worker, and goes on with the rows of it that are not trained yet. ``fit.stats`` counts what that cost.

        Args:
            df: Read twice: once to count its rows, once to train. Cache it if it is expensive.
            features: A column (number, array or vector), or several to be put side by side. The network gets them
                as ``(B, width)``: int64 if all are integers, else float32.
            label: A column: integers for classes ``(B,)`` int64; floats ``(B,)`` or arrays ``(B, k)`` float32. Where
                the network returns as many numbers as the label has, the label comes in the output's shape and type.
            batch_size: Rows of a minibatch, per worker.
            epochs: Passes over all rows.
            workers: Spark tasks that train together; by default as many as the cluster can run at once.
            shuffle: Whether every epoch has its own random order.
            seed: Of orders and of the workers' random generators. The same seed, rows and workers give the same bits.
            on_bad_row: What to do with nulls, NaN, wrong lengths and labels out of range: ``"error"`` or ``"skip"``.
            min_workers: With fewer workers training waits, at the start and later. With a number, the fit begins with
                that many if not all have started within two minutes, and goes on without the rows of workers that do
                not come back in time (counted in ``fit.stats.rows_lost``). None: all workers at the start, one
                later, and no row is given up.
            heartbeat_timeout_seconds: A worker that is silent for so long is lost. One whose process has died is
                noticed at once.
            rejoin_timeout_seconds: How long training waits for lost workers when it cannot go on without them.
            checkpoints: Where and how often to keep what is needed to go on after the driver was lost.
            resume_from: A checkpoint, or a folder of them (then the newest), to go on from; all other arguments and
                the rows as in the fit that was broken off.
            encrypt: Encrypt the workers' connections with TLS, by a key of this fit alone; needs the extra ``encrypt``
                on the driver.
            progress: Show a progress bar when there is a terminal.

        Raises:
            UserError: Something the caller can change; most are found before any Spark task starts.
            WorldError: The cluster failed. The network is then as it was before.
        """
        from fatwood.spark.elasticity import Elasticity
        from fatwood.spark.fit import fit

        elasticity = Elasticity(
            min_workers=min_workers,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
            rejoin_timeout_seconds=rejoin_timeout_seconds,
            checkpoints=checkpoints,
        )
        job = TrainingJob(
            network=self.network,
            loss=_given("loss", self.loss),
            optimizer=_given("optimizer", self.optimizer),
            strategy=self.strategy,
            batch_size=batch_size,
            epochs=epochs,
            first_epoch=self._run.epochs,
            seed=seed,
            shuffle=shuffle,
            on_bad_row=on_bad_row,
        )
        directory = Path(tempfile.mkdtemp(prefix="fatwood-run-"))
        try:
            outcome = fit(
                df,
                job,
                features=features,
                label=label,
                workers=workers,
                directory=directory,
                before=None if resume_from is not None else self._run.state_for(self.strategy),
                elasticity=elasticity,
                resume_from=None if resume_from is None else str(resume_from),
                encrypt=encrypt,
                progress=progress,
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self.network.load_state_dict(outcome.state_dict)
        self._run.close()
        self._run = _RunState(outcome.state, self.strategy, directory)
        return Fit(history=outcome.history, stats=outcome.stats)

    def evaluate(
        self,
        df: DataFrame,
        *,
        features: str | Sequence[str],
        label: str,
        batch_size: int = 64,
        on_bad_row: OnBadRow = "error",
    ) -> Classification | Loss:
        """Evaluate the network on a DataFrame, in its own partitions.

        Args:
            df: The rows.
            features: As in :meth:`fit`.
            label: As in :meth:`fit`.
            batch_size: Rows per forward pass; changes speed and memory only.
            on_bad_row: As in :meth:`fit`.

        Returns:
            With integer labels and an output ``(B, classes)`` a :class:`Classification` with accuracy, loss (NaN
            for a model without one) and confusion matrix, else a :class:`Loss`. Rows whose label the loss ignores
            (``ignore_index``) are not counted.

        Raises:
            UserError: Something the caller can change: a column, a row (with its partition and number), the network.
            ClusterError: The Spark job failed.
        """
        from fatwood.spark.inference import evaluate

        return evaluate(
            df,
            {"network": self.network, "loss": self.loss},
            features=features,
            label=label,
            batch_size=batch_size,
            on_bad_row=on_bad_row,
        )

    def predict(
        self,
        df: DataFrame,
        *,
        key: str | Sequence[str],
        features: str | Sequence[str],
        output: str = "prediction",
        batch_size: int = 64,
        on_bad_row: OnBadRow = "error",
    ) -> DataFrame:
        """The network's output for every row, beside its key.

        Args:
            df: The rows; evaluated lazily, when the result is.
            key: Column or columns of any type, passed through untouched.
            features: As in :meth:`fit`.
            output: Name of the new column.
            batch_size: Rows per forward pass; changes speed and memory only.
            on_bad_row: ``"error"``, or ``"skip"`` for a null prediction.

        Returns:
            A DataFrame with as many rows as ``df``: the key columns, and the output, flattened to ``array<float>``.
            It uses the parameters that the network has now.

        Raises:
            UserError: Now, for what schema and options tell. What is found in a row or raised by the network comes
                later, from whichever Spark action needs the result, as text of Spark's ``PythonException``.
        """
        from fatwood.spark.inference import predict

        return predict(
            df,
            self.network,
            key=key,
            features=features,
            output=output,
            batch_size=batch_size,
            on_bad_row=on_bad_row,
        )

    def save(self, uri: str | Path) -> None:
        """Write the network to a file of tensors and JSON, atomically.

        Args:
            uri: A path, or a URI that fsspec knows, such as ``s3://bucket/digits.fatwood``.
        """
        with_blueprint = blueprint.describe(self.network)
        state_dict = self.network.state_dict()
        storage.write_atomic(
            uri,
            lambda file: write_model(
                file,
                state_dict=state_dict,
                blueprint=with_blueprint,
                extra={},
            ),
        )

    @classmethod
    def load(
        cls,
        uri: str | Path,
        *,
        network: torch.nn.Module | None = None,
        loss: LossFunction | None = None,
        optimizer: OptimizerFactory | None = None,
        strategy: Strategy | None = None,
    ) -> SparkModel:
        """Read a file that :meth:`save` wrote.

        Args:
            uri: As in :meth:`save`.
            network: A network to load the tensors into. Without it the network is rebuilt from what the file
                says of its class, which must be importable here.
            loss: As in the constructor; files hold none.
            optimizer: As in the constructor.
            strategy: As in the constructor.

        Raises:
            StorageError: There is no such file, or it is damaged or of a newer version.
            UserError: The file cannot say how to rebuild the network and none was given, or the one given does not fit.
        """
        with storage.open_read(uri) as file:
            saved = read_model(file)
        if network is None:
            network = _rebuilt(uri, saved.blueprint)
        model = cls(network, loss=loss, optimizer=optimizer, strategy=strategy)
        before = {k: v.clone() for k, v in network.state_dict().items() if not is_lazy(v)}
        try:
            network.load_state_dict(saved.state_dict)
        except RuntimeError as error:
            network.load_state_dict(before, strict=False)  # torch has copied what did fit
            text = f"{uri}: the saved tensors do not fit the network: {error}"
            raise UserError(text, hint="build the network with the arguments it was saved with") from error
        return model

    def reset(self) -> None:
        """Forget optimizers, residuals, thresholds and epochs of former fits; the network keeps its parameters."""
        self._run.close()
        self._run = _RunState()


class _RunState:
    """What workers need to go on where the last fit ended: files in a directory that goes with this object."""

    def __init__(
        self, state: FitState | None = None, strategy: Strategy | None = None, directory: Path | None = None
    ) -> None:
        self._state = state
        self._strategy = strategy
        self._remove = weakref.finalize(self, _remove_directory, directory)

    @property
    def epochs(self) -> int:
        """Of all fits until now."""
        return 0 if self._state is None else self._state.epochs

    def state_for(self, strategy: Strategy) -> FitState | None:
        """What the last fit left."""
        if self._state is not None and strategy != self._strategy:
            text = f"strategy: the last fit was made with {self._strategy}, received {strategy}"
            raise OptionError(text, hint="call model.reset() to begin with fresh optimizers and residuals")
        return self._state

    def close(self) -> None:
        """Remove the files."""
        self._remove()


def _remove_directory(directory: Path | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def _rebuilt(uri: str | Path, described: Mapping[str, Any] | None) -> torch.nn.Module:
    if described is None:
        text = f"{uri}: the file does not say how to rebuild its network, and none was given"
        raise UserError(
            text, hint="SparkModel.load(uri, network=Net(...)), with the arguments it was saved with"
        )
    return blueprint.build(described)


def _given(name: str, value: Any) -> Any:
    if value is None:
        text = f"fit: expected a model with {name}, received none"
        raise OptionError(text, hint=f"SparkModel(network, {name}=..., ...)")
    return value
