"""The model: a network, how it is trained, and its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch

from fatwood.data import OnBadRow
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import OptionError
from fatwood.model import saving
from fatwood.model.inference import Inference
from fatwood.snapshots import Checkpoints
from fatwood.spark.run_state import RunState
from fatwood.storage import URI
from fatwood.train import (
    AnyLoss,
    Callback,
    Callbacks,
    EarlyStopping,
    Fit,
    GradientSharing,
    OptimizerFactory,
    Precision,
    Recipe,
    SchedulerFactory,
    Strategy,
    TrainingJob,
    WorkerCallback,
    split_callbacks,
)
from fatwood.train.device import Asked

__all__ = ["SparkModel"]


class SparkModel(Inference):
    """A PyTorch network that trains, evaluates and predicts on Spark.

    Args:
        network: Any ``torch.nn.Module``. It is called with one tensor, several by position or several by name, as
            ``features`` of :meth:`fit` says, and returns a tensor ``(B, ...)``, a tuple or a dict of them.
        loss: ``loss(output, label)``, the mean over the rows; one for each of several outputs, as a dict, a list, or
            :class:`fatwood.Losses` with weights; or ``loss(network, batch)``, which does the forward pass itself:
            its second parameter is called ``batch``, a :class:`fatwood.Batch`. Needed to fit; optional to evaluate.
        optimizer: Makes an optimizer from parameters, on every worker. Needed to fit. For several groups, the list it is
            given has the network: ``lambda parameters: SGD([{"params": parameters.network.head.parameters()}, ...])``.
        scheduler: Makes a learning-rate scheduler from the optimizer, on every worker.
        strategy: How the workers train together.
        preprocessing: What becomes of columns before the network gets them, fitted on the first rows that :meth:`fit` is
            given and saved with the model: for the features, or a dict by field, ``{"features/age": Standardize(),
            "label": OneHot()}``.

    Example::

        model = SparkModel(net, loss=torch.nn.CrossEntropyLoss(), optimizer=partial(torch.optim.Adam, lr=1e-3))
        fit = model.fit(train_df, features="pixels", label="digit", epochs=3)
        model.evaluate(test_df, features="pixels", label="digit").accuracy
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        loss: AnyLoss | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        strategy: Strategy | None = None,
        preprocessing: Transform | Mapping[str, Transform] | None = None,
    ) -> None:
        if not isinstance(network, torch.nn.Module):
            text = f"SparkModel: expected a torch.nn.Module, received {network!r}"
            raise OptionError(text, hint="pass an instance, not the class: Net() instead of Net")
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.strategy = GradientSharing() if strategy is None else strategy
        self.preprocessing = _transforms(preprocessing)
        self._run = RunState()
        self._schema: Mapping[str, Any] | None = None

    @property
    def epochs_trained(self) -> int:
        """Epochs that :meth:`fit` trained since this object was made, loaded or reset."""
        return self._run.epochs

    def fit(
        self,
        data: Any,
        *,
        features: InputSpec | None = None,
        label: InputSpec | None = None,
        weight: str | None = None,
        validation: Any = None,
        batch_size: int = 32,
        epochs: int = 1,
        workers: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        on_bad_row: OnBadRow = "error",
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        precision: Precision = "float32",
        compile: bool | Mapping[str, Any] = False,  # noqa: A002  # torch's own word
        schedule: Literal["step", "epoch"] = "step",
        validate_every: int | None = None,
        early_stopping: EarlyStopping | None = None,
        prefetch: int = 0,
        prefetch_bytes: int = 256 << 20,
        bucket_by_length: bool = False,
        repartition: Literal["auto", "never", "always"] = "auto",
        min_workers: int | None = None,
        heartbeat_timeout_seconds: float = 10.0,
        rejoin_timeout_seconds: float = 120.0,
        checkpoints: Checkpoints | None = None,
        resume_from: URI | None = None,
        encrypt: bool = False,
        device: Asked = "auto",
        profile: Any = None,
        gc_every_seconds: float | None = 5.0,
        worker_logs: int | str | None = "WARNING",
        callbacks: Sequence[Callback | WorkerCallback] = (),
        collect_stats: bool = False,
        time_source: str = "job",
        progress: bool = True,
    ) -> Fit:
        """Train the network on rows, as one Spark job for each worker.

        A further fit goes on where the last one ended: optimizers, residuals and thresholds survive, so two fits
        of one epoch equal one fit of two epochs. :meth:`reset` begins anew.

        When a worker is lost, the others go on; another process takes its place, gets the state of the training from
        a living worker, and goes on with the rows of it that are not trained yet. ``fit.stats`` counts what that cost.

        Args:
            data: A DataFrame of Spark or pandas, an Arrow table, :class:`fatwood.Parquet` or shards, which the workers read
                themselves, an RDD of :class:`fatwood.Batch`, or :class:`fatwood.Files` with a loader. Read twice: once to
                count the rows, once to train. Cache it (:func:`fatwood.spark.persist`) if it is expensive.
            features: What the network is called with: a column (number, array or vector), a list of columns to be put side
                by side, or a description such as :class:`fatwood.SequenceColumn`; several inputs as a list of these by
                position, or as a dict by name. Integers come as int64, everything else as float32, ``(B, ...)``.
                None for minibatches, which say themselves what is what.
            label: In the same forms: integers for classes ``(B,)`` int64; floats ``(B,)`` or arrays ``(B, k)`` float32. Where
                the network returns as many numbers as the label has, the label comes in the output's shape and type.
                None for minibatches, and for a loss that is called with the network and the minibatch.
            weight: A column that says how much each row counts in the loss: numbers of at least 0, ``(B,)`` float32.
                A row of weight 0 is read and counted, and changes nothing.
            validation: Rows of the same form and columns, to measure the network on during the fit. Each worker
                keeps an equal share of them on its local disk. They do not change what is trained.
            batch_size: Rows of a minibatch, per worker.
            epochs: Passes over all rows.
            workers: Spark tasks that train together; by default as many as the cluster can run at once.
            shuffle: Whether every epoch has its own random order.
            seed: Of orders and of the workers' random generators. The same seed, rows and workers give the same bits.
            on_bad_row: What to do with nulls, NaN, wrong lengths, labels out of range and negative weights: ``"error"``
                or ``"skip"``.
            accumulate: Minibatches whose gradients make one optimizer step, as one minibatch of so many times the rows.
            clip_norm: The largest 2-norm of all gradients together, at an optimizer step.
            clip_value: The largest absolute value of a gradient's element, at an optimizer step.
            precision: Of forward and loss (``torch.autocast``): ``"float32"``, ``"bfloat16"`` or ``"float16"`` with loss
                scaling. Parameters, gradients and messages stay float32.
            compile: Let ``torch.compile`` compile the network on the workers; a dict holds its arguments. Executors need a
                C++ compiler for its default backend.
            schedule: When the scheduler steps: with every optimizer ``"step"``, or at each ``"epoch"``'s end.
            validate_every: Agreements between two validations, and one at the end; None for one at each epoch's end.
            early_stopping: When to stop before the last epoch, and whether to end with the best parameters.
            prefetch: Minibatches that a thread of each worker reads ahead; 0 reads each when it is trained. It changes
                speed and memory only.
            prefetch_bytes: The most bytes of minibatches that wait there.
            bucket_by_length: Make minibatches of rows with similar numbers of steps, so that little is padding.
            repartition: Whether rows are dealt out anew, in equal shares and in a random order over all workers:
                ``"always"``; ``"never"``, each of the frame's partitions is a worker's; ``"auto"``, unless the partitions are
                as many as the workers, differ by less than 1 %, and ``shuffle`` is off.
            min_workers: With fewer workers training waits, at the start and later. With a number, the fit begins with
                that many if not all have started within two minutes, and goes on without the rows of workers that do
                not come back in time (counted in ``fit.stats.rows_lost``). None: all workers at the start, with dynamic
                allocation within five minutes of the first, one later, and no row is given up.
            heartbeat_timeout_seconds: A worker that is silent for so long is lost. One whose process has died is
                noticed at once.
            rejoin_timeout_seconds: How long training waits for lost workers when it cannot go on without them.
            checkpoints: Where and how often to keep what is needed to go on after the driver was lost.
            resume_from: A checkpoint, or a folder of them (then the newest), to go on from; all other arguments and
                the rows as in the fit that was broken off.
            encrypt: Encrypt the workers' connections with TLS, by a key of this fit alone; needs the extra ``encrypt``
                on the driver.
            device: Where workers compute: ``"cpu"``; ``"cuda"``, the GPU that Spark gave the task, or one of the machine's where
                Spark knows of none, or an error; ``"auto"``, a GPU where there is one.
            profile: A ``pyspark.resource.ResourceProfile``: executors and tasks of the training alone, such as ones with GPUs.
            gc_every_seconds: Workers look for cyclic garbage at most so often, between two steps, and at no other time;
                None leaves that to Python.
            worker_logs: The lowest level of ``logging`` from which the driver logs what workers log, as ``fatwood.worker``, and
                what they warn of. A flood is cut and counted. None for none.
            callbacks: Told of the fit: on the driver a `Callback`, in every worker a `WorkerCallback`.
            collect_stats: Note when each worker does what, for ``fit.stats.to_html(...)`` and the other forms of it.
            time_source: By which clock: the driver's, asked over the ``"job"``'s own connection, each machine's own
                (``"system"``), or a time server's (``"ntp"``, ``"ntp:host"``; needs the extra ``ntp``).
            progress: Show a progress bar when there is a terminal.

        Raises:
            UserError: Something the caller can change; most are found before any Spark task starts.
            WorldError: The cluster failed. The network is then as it was before.
        """
        from fatwood.doctor.quick import require_fit
        from fatwood.spark.elasticity import Elasticity
        from fatwood.spark.fit import fit_and_keep
        from fatwood.spark.plan import FitOptions
        from fatwood.spark.progress import ProgressBar

        on_driver, on_workers = split_callbacks(callbacks)
        recipe = Recipe(
            optimizer=_given("optimizer", self.optimizer),
            scheduler=self.scheduler,
            schedule=schedule,
            accumulate=accumulate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            precision=precision,
            compile=compile,
        )
        job = TrainingJob(
            network=self.network,
            loss=_given("loss", self.loss),
            recipe=recipe,
            strategy=self.strategy,
            batch_size=batch_size,
            epochs=epochs,
            first_epoch=self._run.epochs,
            seed=seed,
            shuffle=shuffle,
            on_bad_row=on_bad_row,
            weighted=weight is not None,
            with_validation=validation is not None,
            validate_every=validate_every,
            early_stopping=early_stopping,
            callbacks=on_workers,
            collect_stats=collect_stats,
            bucket_by_length=bucket_by_length,
        )
        elasticity = Elasticity(
            min_workers=min_workers,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
            rejoin_timeout_seconds=rejoin_timeout_seconds,
            checkpoints=checkpoints,
        )
        options = FitOptions(
            features=features,
            label=label,
            weight=weight,
            transforms=self.preprocessing,
            validation=validation,
            repartition=repartition,
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            time_source=time_source,
            workers=workers,
            elasticity=elasticity,
            resume_from=resume_from,
            encrypt=encrypt,
            device=device,
            profile=profile,
            gc_every_seconds=gc_every_seconds,
            worker_logs=worker_logs,
            precheck=require_fit,
        )
        told = Callbacks([ProgressBar(), *on_driver] if progress else on_driver)
        fitted, run, transforms = fit_and_keep(data, job, options, run=self._run, callbacks=told)
        self._run.close()
        self._run, self._schema = run, run.schema
        self.preprocessing = transforms
        told.end(fitted.history, fitted.stats)
        return fitted

    def save(
        self,
        uri: str | Path | BinaryIO,
        *,
        run: bool = False,
        export: Any = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Write network and preprocessing to a file of tensors and JSON: whole under its name, or not at all.

        Args:
            uri: A path, a URI that fsspec knows, such as ``s3://bucket/digits.fatwood``, or an open binary file, which is
                written from the first byte to the last and stays open.
            run: Write the optimizers, residuals, thresholds and random states, too, so that a loaded model's :meth:`fit`
                goes on where this one's would.
            export: What the network is called with, to write its operators, too, for processes that cannot import
                its class: a tensor ``(B, ...)``, a tuple of them by position, a dict by name. One row is enough.
            storage_options: Arguments of the store's fsspec class, by name.

        Raises:
            UserError: A network whose tensors or operators cannot be written.
            StorageError: The file cannot be written.
        """
        saving.save(
            uri,
            self.network,
            preprocessing=self.preprocessing,
            schema=self._schema,
            run=self._run if run else None,
            export=export,
            storage_options=storage_options,
        )

    @classmethod
    def load(
        cls,
        uri: str | Path | BinaryIO,
        *,
        network: torch.nn.Module | None = None,
        loss: AnyLoss | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        strategy: Strategy | None = None,
        run: bool = True,
        storage_options: Mapping[str, Any] | None = None,
    ) -> SparkModel:
        """Read a file that :meth:`save` wrote; nothing in it is unpickled or executed.

        The network is the one that is given; else one of the class that the file names, where it is importable; else the
        operators that were exported.

        Args:
            uri: As in :meth:`save`. A local file is mapped into memory: replace it as a whole, as :meth:`save` does, and do not
                write into it, while the network is used.
            network: A network to load the tensors into.
            loss: As in the constructor; files hold none.
            optimizer: As in the constructor; files hold none, but what it knows of a saved run.
            scheduler: As in the constructor.
            strategy: As in the constructor; that of the saved run.
            run: Whether to go on from a run, if the file holds one.
            storage_options: As in :meth:`save`.

        Raises:
            StorageError: There is no such file, or it is damaged or of a newer version.
            UserError: There is no way to the network, or the one given does not fit.
        """
        strategy = GradientSharing() if strategy is None else strategy
        found = saving.load(uri, network=network, strategy=strategy, run=run, storage_options=storage_options)
        model = cls(
            found.network,
            preprocessing=found.preprocessing,
            loss=loss,
            optimizer=optimizer,
            scheduler=scheduler,
            strategy=strategy,
        )
        model._run, model._schema = found.run, found.schema
        return model

    def reset(self) -> None:
        """Forget optimizers, residuals, thresholds and epochs of former fits; the network keeps its parameters."""
        self._run.close()
        self._run = RunState()


def _transforms(given: Transform | Mapping[str, Transform] | None) -> dict[str, Transform]:
    found = {"features": given} if isinstance(given, Transform) else given
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(t, Transform) for t in found.values()):
        text = f"preprocessing: expected a transform, or a dict of them by field, received {given!r}"
        raise OptionError(text, hint='preprocessing=Standardize(), or {"features/age": Standardize()}')
    return dict(found)


def _given(name: str, value: Any) -> Any:
    if value is None:
        text = f"fit: expected a model with {name}, received none"
        raise OptionError(text, hint=f"SparkModel(network, {name}=..., ...)")
    return value
