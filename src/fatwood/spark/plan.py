"""What a fit is, found out on the driver before its job: everything that can be wrong is wrong here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from pyspark.sql import DataFrame, SparkSession

from fatwood.codec import trainable_parameters
from fatwood.data import Layout
from fatwood.data.inputs import InputSpec, read_specs
from fatwood.data.preprocessing import Transform
from fatwood.errors import OptionError
from fatwood.exchange import Identity, new_identity
from fatwood.spark.barrier import require_barrier_options
from fatwood.spark.checkpointing import Resumed, require_usable, resume
from fatwood.spark.connect import is_connect
from fatwood.spark.elasticity import Elasticity
from fatwood.spark.given import Selection, feed_of, texts_of
from fatwood.spark.gpus import device_order, require_profile
from fatwood.spark.job import JobOptions
from fatwood.spark.preprocessing import fit_transforms
from fatwood.spark.room import require_settings
from fatwood.spark.run_state import FitState
from fatwood.spark.session import allocates, require_slots
from fatwood.spark.shipping import ship
from fatwood.spark.staying import Repartition
from fatwood.spark.task import TaskOrder
from fatwood.spark.validation import validation_feed
from fatwood.storage import URI, absolute
from fatwood.train import (
    AnyLoss,
    Recipe,
    Rendezvous,
    RunInfo,
    TrainingJob,
    WorkOrder,
    checked_time_source,
    json_value,
    require_labels,
    takes_batch,
)
from fatwood.train.device import Asked, DeviceOrder, checked_device
from fatwood.train.garbage import checked_gc_every_seconds
from fatwood.train.logs import checked_level

__all__ = ["FitOptions", "FitPlan", "plan_fit"]

_SHIPPED = ("network", "loss", "strategy", "callbacks")
_SHIPPED_OF_RECIPE = ("optimizer", "scheduler")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What :meth:`fatwood.SparkModel.fit` is told beside what is trained."""

    features: InputSpec | None
    """What the network is called with; see :mod:`fatwood.data.inputs`."""
    label: InputSpec | None
    """Likewise, or ``None`` for a loss that is called with the whole minibatch."""
    weight: str | None
    """Column of sample weights."""
    transforms: Mapping[str, Transform]
    """Preprocessing, by the names of fields; fitted or not."""
    validation: Any
    """Data of the same form and columns, whose rows the workers validate on."""
    prefetch: int
    """Minibatches that each worker reads ahead."""
    prefetch_bytes: int
    """The most bytes of them that wait."""
    repartition: Repartition
    """Whether rows are dealt out anew."""
    time_source: str
    """By which clock the times of the statistics are told."""
    workers: int | None
    """Spark tasks that train together; ``None`` takes all slots of the cluster."""
    elasticity: Elasticity
    """How the fit goes on when workers are lost."""
    resume_from: URI | None
    """A checkpoint, or a folder of them, to go on from."""
    encrypt: bool
    """Whether the workers' connections are encrypted."""
    device: Asked = "auto"
    """Where the workers compute."""
    profile: Any = None
    """A ``pyspark.resource.ResourceProfile`` of the workers' executors and tasks; None for the session's."""
    gc_every_seconds: float | None = None
    """Seconds between two collections of garbage in a worker; None leaves them to Python."""
    worker_logs: int | str | None = "WARNING"
    """The lowest level of what workers log that the driver logs, too; None for none."""
    precheck: Callable[[SparkSession], None] | None = None
    """Looks at the session before anything is done with it, and raises what makes every fit fail."""

    def __post_init__(self) -> None:
        if not isinstance(self.prefetch, int) or isinstance(self.prefetch, bool) or self.prefetch < 0:
            text = f"prefetch: expected a whole number of at least 0, received {self.prefetch!r}"
            raise OptionError(text, hint="0 reads each minibatch when it is trained")
        if (
            not isinstance(self.prefetch_bytes, int)
            or isinstance(self.prefetch_bytes, bool)
            or self.prefetch_bytes < 1
        ):
            text = f"prefetch_bytes: expected a whole number of at least 1, received {self.prefetch_bytes!r}"
            raise OptionError(text)
        if self.repartition not in get_args(Repartition):
            text = f"repartition: expected one of {', '.join(map(repr, get_args(Repartition)))}, received {self.repartition!r}"
            raise OptionError(text)
        checked_time_source(self.time_source)
        checked_device(self.device)
        checked_gc_every_seconds(self.gc_every_seconds)
        checked_level(self.worker_logs)


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """All that is known before the training job."""

    job: TrainingJob
    workers: int
    frame: DataFrame
    """A partition for each worker."""
    rows: int
    """To train on."""
    layout: Layout
    about: Mapping[str, Any]
    """What a run that goes on from a checkpoint of this one must have in common with it, as JSON values."""
    options: JobOptions
    given: FitOptions
    shipped: bytes
    reading: bytes | None
    resumed: Resumed | None
    device: DeviceOrder

    def order(self, rendezvous: Rendezvous) -> TaskOrder:
        """What the tasks are told."""
        states = self.options.states
        work = WorkOrder(
            workers=self.workers,
            layout=replace(self.layout, decoders={}),  # they are shipped
            rendezvous=rendezvous,
            checkpoints=self.given.elasticity.checkpoints,
            prefetch=self.given.prefetch,
            prefetch_bytes=self.given.prefetch_bytes,
            time_source=self.given.time_source,
            gc_every_seconds=self.given.gc_every_seconds,
            stateless=tuple(rank for rank in range(self.workers) if states and rank not in states),
            ledger=None if self.resumed is None else self.resumed.ledger.to_json(),
        )
        return TaskOrder(
            shipped=self.shipped,
            reading=self.reading,
            options=_fields(self.job, (*_SHIPPED, "recipe")),
            recipe=_fields(self.job.recipe, _SHIPPED_OF_RECIPE),
            work=work,
            device=self.device,
            logs=checked_level(self.given.worker_logs),
        )

    def info(self, network: Any) -> RunInfo:
        """What callbacks are told; the network is the model's own."""
        job, given = self.job, self.given
        left_out = ("network", "recipe", "callbacks", "strategy", "epochs", "first_epoch")
        of_given = ("features", "label", "weight", "prefetch", "repartition", "device")
        named = {name: getattr(given, name) for name in of_given}
        return RunInfo(
            workers=self.workers,
            epochs=job.epochs,
            first_epoch=job.first_epoch,
            rows=self.rows,
            batch_size=job.batch_size,
            parameters=self.parameters,
            strategy=str(job.strategy),
            options=json_value(named | _fields(job, left_out) | _fields(job.recipe, ())),
            network=network,
        )

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for _, p in trainable_parameters(self.job.network))


def plan_fit(
    data: object, job: TrainingJob, given: FitOptions, *, directory: Path, before: FitState | None
) -> FitPlan:
    """Check, count and balance.

    Everything that can be known to be wrong without a Spark job is an error before the first one; what takes a
    count to know (ragged arrays, no rows) is an error before the training job.

    Args:
        data: The rows to train, of any form; they are read twice, once to count and once to train.
        job: What to train.
        given: How.
        directory: An empty local directory for what comes back.
        before: What the last fit left, to go on from.
    """
    transforms = given.transforms
    selection = Selection(
        features=given.features,
        label=given.label,
        weight=given.weight,
        text=texts_of(transforms),
    )
    feed = feed_of(data, selection)
    elasticity = given.elasticity.with_allocation() if allocates(feed.spark) else given.elasticity
    if given.precheck is not None:
        given.precheck(feed.spark)
    if is_connect(feed.spark):
        require_barrier_options(elasticity)
    if given.profile is not None:
        require_profile(feed.spark, given.profile, given.workers)
    device = device_order(feed.spark, given.device, given.profile)
    if given.features is not None:
        _require_label(given.label, job.loss)
        require_labels(job.loss, None if given.label is None else read_specs("label", given.label).keys)
    held_out = validation_feed(given.validation, feed, selection)
    identity = new_identity() if given.encrypt else None
    resumed = (
        None if given.resume_from is None else resume(absolute(given.resume_from), directory / "resumed")
    )
    if elasticity.checkpoints is not None:
        require_usable(elasticity.checkpoints, resumed)
    if resumed is not None:
        job, before = _resumed_job(job, resumed), _resumed_state(resumed)
    shipped = ship(_shipped_parts(job) | {"decoders": feed.decoders})
    count = _worker_count(given.workers, before, resumed)
    # executors of a profile come when tasks wait for them; those that are there say nothing of them
    executors_come = given.profile is not None
    known = count if executors_come else None
    workers = _slots(feed.spark, count, elasticity.min_workers) if known is None else known
    on_gpus = device.asked == "cuda" or device.scheduled
    if not (executors_come or on_gpus or is_connect(feed.spark)):
        require_settings(dict(feed.spark.sparkContext.getConf().getAll()), job, workers)
    about = _about(job, workers)
    if resumed is not None:
        resumed.require(about)
    rows = feed.opened(held_out)
    job = replace(job, weighted=rows.layout.weight is not None)  # minibatches say so themselves
    _require_label(rows.layout.label, job.loss)
    require_labels(job.loss, None if rows.layout.label is None else rows.layout.label.keys)
    about |= {"rows": rows.rows, "validation_rows": rows.validation_rows}
    if resumed is not None:
        resumed.require(about)
    if transforms:
        transforms = fit_transforms(rows.spread(), rows.layout, transforms, job.on_bad_row)
    _require_steps(job, rows.layout)
    shares = rows.shares(workers=workers, seed=job.seed, shuffle=job.shuffle, repartition=given.repartition)
    return FitPlan(
        job=job,
        workers=workers,
        frame=shares.frame,
        rows=rows.rows,
        layout=replace(rows.layout, transforms=transforms),
        about=about,
        options=replace(
            _job_options(job, workers, directory, before, elasticity, identity), profile=given.profile
        ),
        given=given,
        shipped=shipped,
        reading=None if shares.reader is None else ship({"reader": shares.reader}),
        resumed=resumed,
        device=device,
    )


def _job_options(
    job: TrainingJob,
    workers: int,
    directory: Path,
    before: FitState | None,
    elasticity: Elasticity,
    identity: Identity | None,
) -> JobOptions:
    tensor_bytes = sum(t.nbytes for t in job.network.state_dict().values())
    return JobOptions(
        workers=workers,
        directory=directory,
        states={} if before is None else before.states,
        max_result_bytes=12 * tensor_bytes + 2**24,  # optimizers keep a few numbers per parameter
        elasticity=elasticity,
        identity=identity,
    )


def _shipped_parts(job: TrainingJob) -> dict[str, Any]:
    of_job = {name: getattr(job, name) for name in _SHIPPED}
    return of_job | {name: getattr(job.recipe, name) for name in _SHIPPED_OF_RECIPE}


def _fields(of: TrainingJob | Recipe, shipped: Sequence[str]) -> dict[str, Any]:
    """The fields that need no cloudpickle."""
    return {f.name: getattr(of, f.name) for f in fields(of) if f.name not in shipped}


def _about(job: TrainingJob, workers: int) -> dict[str, Any]:
    """What a run and one that goes on from its checkpoint must have in common beside the rows, as JSON values."""
    named = (
        "batch_size",
        "seed",
        "shuffle",
        "first_epoch",
        "epochs",
        "on_bad_row",
        "validate_every",
        "bucket_by_length",
    )
    return {
        "workers": workers,
        **{name: getattr(job, name) for name in named},
        "recipe": {name: str(value) for name, value in _fields(job.recipe, _SHIPPED_OF_RECIPE).items()},
        "early_stopping": repr(job.early_stopping),
        "strategy": repr(job.strategy),
        "parameters": [[name, list(p.shape)] for name, p in trainable_parameters(job.network)],
    }


def _require_steps(job: TrainingJob, layout: Layout) -> None:
    if job.bucket_by_length and not any(field.ragged for field in layout.features.fields):
        text = "bucket_by_length: expected features with steps, received none"
        raise OptionError(text, hint="describe an array of any length as SequenceColumn(...)")


def _require_label(label: object, loss: AnyLoss) -> None:
    if label is None and not takes_batch(loss):
        text = "label: expected the name of a column, received None"
        hint = "only a loss(network, batch), whose second parameter is called batch, trains without labels"
        raise OptionError(text, hint=hint)


def _resumed_job(job: TrainingJob, resumed: Resumed) -> TrainingJob:
    network = copy.deepcopy(job.network)
    try:
        network.load_state_dict(dict(resumed.network))
    except RuntimeError as error:
        text = f"resume_from: the tensors of {resumed.uri} do not fit the network: {error}"
        raise OptionError(text, hint="build the network with the arguments of the run") from error
    return replace(job, network=network, first_epoch=int(resumed.about["first_epoch"]))


def _resumed_state(resumed: Resumed) -> FitState:
    workers, epochs = int(resumed.about["workers"]), int(resumed.about["first_epoch"])
    return FitState(workers=workers, epochs=epochs, states=resumed.states)


def _slots(spark: SparkSession, workers: int | None, min_workers: int | None) -> int:
    """The number of workers; as many slots as must be there at the start are there."""
    if min_workers is None:
        return require_slots(spark, workers)
    workers = require_slots(spark, None) if workers is None else workers
    if not isinstance(min_workers, int) or isinstance(min_workers, bool) or not 1 <= min_workers <= workers:
        text = f"min_workers: expected a whole number from 1 to workers={workers}, received {min_workers!r}"
        raise OptionError(text)
    require_slots(spark, min_workers)
    return workers


def _worker_count(workers: int | None, before: FitState | None, resumed: Resumed | None) -> int | None:
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        text = f"workers: expected a whole number of at least 1, or None, received {workers!r}"
        raise OptionError(text)
    if before is None:
        return workers
    if resumed is not None and workers is not None:
        resumed.require({"workers": workers})
    if workers not in (None, before.workers):
        text = f"workers: expected {before.workers} as in the last fit, whose optimizers and residuals go on, received {workers}"
        raise OptionError(text, hint="call model.reset() to begin with fresh ones")
    return before.workers
