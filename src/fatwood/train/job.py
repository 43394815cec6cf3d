"""What every worker must know to train: one frozen value, made on the driver, the same on all workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from fatwood.codec import trainable_parameters
from fatwood.data import Layout, OnBadRow, PartitionData
from fatwood.errors import OptionError
from fatwood.train.callback import WorkerCallback
from fatwood.train.checks import require_whole
from fatwood.train.header import MAX_ROWS
from fatwood.train.losses import AnyLoss, require_loss
from fatwood.train.objective import Objective
from fatwood.train.recipe import Recipe
from fatwood.train.stopping import EarlyStopping
from fatwood.train.strategy import Strategy

__all__ = ["TrainingJob"]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The network, how to train it, and for how long."""

    network: torch.nn.Module
    loss: AnyLoss
    """``loss(output, label)`` or ``loss(network, batch)``: a scalar, the mean over the rows of the minibatch (or over its
    real steps); or a loss for each of several outputs."""
    recipe: Recipe
    strategy: Strategy
    batch_size: int
    """Rows of a minibatch, per worker."""
    epochs: int
    first_epoch: int = 0
    """Epochs this model was trained before; orders and seeds go on from there."""
    seed: int = 0
    shuffle: bool = True
    on_bad_row: OnBadRow = "error"
    digest_every: int = 100
    """Agreements between two comparisons of the replicas' digests; the fit's end is always compared."""
    weighted: bool = False
    """Whether rows have sample weights."""
    with_validation: bool = False
    """Whether there are validation rows."""
    validate_every: int | None = None
    """Agreements between two validations; None for one at each epoch's end."""
    early_stopping: EarlyStopping | None = None
    callbacks: tuple[WorkerCallback, ...] = ()
    collect_stats: bool = False
    """Whether workers note when they did what."""
    bucket_by_length: bool = False
    """Whether minibatches are made of rows with similar numbers of steps, in the first of the features that have any."""

    def __post_init__(self) -> None:
        for name, lowest in (
            ("batch_size", 1),
            ("epochs", 1),
            ("first_epoch", 0),
            ("seed", 0),
            ("digest_every", 1),
        ):
            require_whole(name, getattr(self, name), lowest)
        if self.seed >= 2**63:
            text = f"seed: expected less than 2**63, received {self.seed}"
            raise OptionError(text)
        if self.on_bad_row not in ("error", "skip"):
            text = f"on_bad_row: expected 'error' or 'skip', received {self.on_bad_row!r}"
            raise OptionError(text)
        _require_network(self.network)
        _require_strategy(self.strategy, self.batch_size * self.recipe.accumulate)
        require_loss(self.loss)
        Objective(self.loss, weighted=self.weighted)
        self.recipe.require_fit(self.network)
        if self.validate_every is not None:
            require_whole("validate_every", self.validate_every)
            if not self.with_validation:
                text = f"validate_every: expected validation rows beside it, received validate_every={self.validate_every}"
                raise OptionError(text, hint="pass fit(..., validation=df)")
        if not isinstance(self.early_stopping, EarlyStopping | None):
            text = f"early_stopping: expected EarlyStopping or None, received {self.early_stopping!r}"
            raise OptionError(text, hint="early_stopping=EarlyStopping(patience=3)")
        if self.early_stopping is not None:
            self.early_stopping.require_validation(with_validation=self.with_validation)

    def partition(
        self,
        batches: Iterable[pa.RecordBatch],
        layout: Layout,
        rank: int,
        spill_directory: Path,
        *,
        keep: bool = False,
        prefetch: int = 0,
        prefetch_bytes: int | None = None,
        pin: bool = False,
    ) -> PartitionData:
        """A worker's rows as minibatches of this job.

        Args:
            batches: The worker's share, in the order of the first epoch.
            layout: Of the rows.
            rank: Of the worker.
            spill_directory: For the rows of later epochs.
            keep: Whether to keep them there in any case.
            prefetch: How many minibatches a thread reads ahead.
            prefetch_bytes: How many bytes of them may wait.
            pin: Whether they wait in page-locked memory, for a GPU.

        Raises:
            OptionError: Rows are to be bucketed by length, and have no steps.
        """
        bucket_by = None
        if self.bucket_by_length:
            bucket_by = next((field.name for field in layout.features.fields if field.ragged), None)
            if bucket_by is None:
                text = "bucket_by_length: expected features with steps, received none"
                raise OptionError(text, hint="describe an array of any length as SequenceColumn(...)")
        return PartitionData(
            batches,
            layout,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            first_epoch=self.first_epoch,
            epochs=self.epochs,
            shuffle=self.shuffle,
            on_bad_row=self.on_bad_row,
            spill_directory=spill_directory,
            keep=keep,
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            pin=pin,
            bucket_by=bucket_by,
        )


def _require_network(network: object) -> None:
    if not isinstance(network, torch.nn.Module):
        text = f"network: expected a torch.nn.Module, received {type(network).__name__} {network!r}"
        raise OptionError(text, hint="pass an instance, not the class: Net() instead of Net")
    trainable_parameters(network)


def _require_strategy(strategy: object, rows_of_step: int) -> None:
    if not isinstance(strategy, Strategy):
        text = f"strategy: expected a Strategy, received {strategy!r}"
        raise OptionError(text, hint="for example strategy=GradientSharing()")
    if strategy.every * rows_of_step > MAX_ROWS:
        text = f"strategy: expected at most {MAX_ROWS} rows between two agreements, received {strategy.every} x {rows_of_step}"
        raise OptionError(text)
