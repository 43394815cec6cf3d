"""What every worker must know to train: one frozen value, made on the driver, the same on all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from fatwood.codec import trainable_parameters
from fatwood.data import Layout, OnBadRow, PartitionData
from fatwood.errors import OptionError
from fatwood.train.header import MAX_ROWS
from fatwood.train.strategy import Strategy

__all__ = ["LossFunction", "OptimizerFactory", "TrainingJob"]

LossFunction = Callable[[Any, Any], torch.Tensor]
OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The network, how to train it, and for how long."""

    network: torch.nn.Module
    loss: LossFunction
    """``loss(output, label)``: a scalar, the mean over the rows of the minibatch."""
    optimizer: OptimizerFactory
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

    def __post_init__(self) -> None:
        for name, lowest in (
            ("batch_size", 1),
            ("epochs", 1),
            ("first_epoch", 0),
            ("seed", 0),
            ("digest_every", 1),
        ):
            _require_whole(name, getattr(self, name), lowest)
        if self.seed >= 2**63:
            text = f"seed: expected less than 2**63, received {self.seed}"
            raise OptionError(text)
        if self.on_bad_row not in ("error", "skip"):
            text = f"on_bad_row: expected 'error' or 'skip', received {self.on_bad_row!r}"
            raise OptionError(text)
        _require_network(self.network)
        _require_strategy(self.strategy, self.batch_size)
        _require_loss(self.loss)
        _require_optimizer(self.optimizer, self.network)

    def partition(
        self,
        batches: Iterable[pa.RecordBatch],
        layout: Layout,
        rank: int,
        spill_directory: Path,
        *,
        keep: bool = False,
    ) -> PartitionData:
        """A worker's rows as minibatches of this job.

        Args:
            batches: The worker's share, in the order of the first epoch.
            layout: Of the rows.
            rank: Of the worker.
            spill_directory: For the rows of later epochs.
            keep: Whether to keep them there in any case.
        """
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
        )


def _require_whole(name: str, value: object, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        text = f"{name}: expected a whole number of at least {lowest}, received {value!r}"
        raise OptionError(text)


def _require_network(network: object) -> None:
    if not isinstance(network, torch.nn.Module):
        text = f"network: expected a torch.nn.Module, received {type(network).__name__} {network!r}"
        raise OptionError(text, hint="pass an instance, not the class: Net() instead of Net")
    trainable_parameters(network)


def _require_strategy(strategy: object, batch_size: int) -> None:
    if not isinstance(strategy, Strategy):
        text = f"strategy: expected a Strategy, received {strategy!r}"
        raise OptionError(text, hint="for example strategy=GradientSharing()")
    if strategy.every * batch_size > MAX_ROWS:
        text = f"strategy: expected at most {MAX_ROWS} rows between two agreements, received {strategy.every} x {batch_size}"
        raise OptionError(text)


def _require_loss(loss: object) -> None:
    if not callable(loss) or isinstance(loss, type):
        text = f"loss: expected a callable loss(output, label), received {loss!r}"
        raise OptionError(text, hint="pass an instance such as torch.nn.CrossEntropyLoss()")
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean":
        text = f"loss: expected reduction='mean', received {reduction!r}"
        raise OptionError(text, hint="workers' minibatches are averaged by rows, so each must give a mean")


def _require_optimizer(factory: object, network: torch.nn.Module) -> None:
    hint = "pass a factory: functools.partial(torch.optim.Adam, lr=1e-3)"
    if isinstance(factory, torch.optim.Optimizer) or not callable(factory):
        text = f"optimizer: expected a function from parameters to an optimizer, received {type(factory).__name__}"
        raise OptionError(text, hint=hint)
    try:
        made = factory([p for p in network.parameters() if p.requires_grad])
    except Exception as error:
        text = f"optimizer: {type(error).__name__}: {error}"
        raise OptionError(text, hint=hint) from error
    if not isinstance(made, torch.optim.Optimizer):
        text = f"optimizer: expected the function to return a torch.optim.Optimizer, received {type(made).__name__}"
        raise OptionError(text, hint=hint)
