"""What a fit records as it goes: steps, validations, epochs. Equal on all workers but for the seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["EpochRecord", "History", "StepRecord", "ValidationRecord", "epoch_record"]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One agreement of all workers."""

    step: int
    """Agreements over the model's whole life, this one included."""
    epoch: int
    """Counted from 0 over the model's whole life."""
    rows: int
    """Rows of all workers that this agreement trained."""
    rows_of_epoch: int
    """Rows of all workers trained in this epoch until now."""
    loss: float
    """Mean training loss over the rows of this agreement; NaN where there are none."""
    mean_loss: float
    """Mean training loss over the epoch's rows until now."""
    learning_rate: float | None = None
    """Of the optimizer's first group, in this step."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StepRecord:
        """From the values of :meth:`to_json`."""
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """The network's figures on the validation rows of all workers."""

    step: int
    """Agreements over the model's whole life when it was made."""
    epoch: int
    """The epoch that it was made in, or at the end of."""
    loss: float
    """Mean over the rows, over their weights, or over their real steps."""
    accuracy: float | None
    """Share of rows (or of their weights or steps) whose class has the largest output; None where labels are no classes, or
    there are several."""
    rows: int
    best: bool = False
    """Whether it was the best until then, as early stopping judges."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ValidationRecord:
        """From the values of :meth:`to_json`."""
        return cls(**values)

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.2%}"
        return f"validation loss {self.loss:.4f}{accuracy}{' (best)' if self.best else ''}"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch over all workers."""

    epoch: int
    """Counted from 0 over the model's whole life."""
    loss: float
    """Mean training loss over the epoch's rows (or their weights or steps), as they were trained."""
    rows: int
    seconds: float
    """Wall time on worker 0."""
    rows_of_worker: tuple[int, ...]
    validation: ValidationRecord | None = None
    """Made at the epoch's end, if one was."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EpochRecord:
        """From the values of :meth:`to_json`."""
        found = values.get("validation")
        validation = None if found is None else ValidationRecord.from_json(found)
        return cls(**{**values, "rows_of_worker": tuple(values["rows_of_worker"]), "validation": validation})

    def __str__(self) -> str:
        validation = "" if self.validation is None else f", {self.validation}"
        return f"epoch {self.epoch + 1}: loss {self.loss:.4f}{validation}, {self.rows} rows in {self.seconds:.1f} s"


class History(tuple[EpochRecord, ...]):
    """The epochs of a fit, in order; prints as a line each."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(str(record) for record in self)


def epoch_record(
    epoch: int, rows: Sequence[int], loss_sum: float, seconds: float, weight: float | None = None
) -> EpochRecord:
    """A record from each worker's rows and the sum of losses over all rows.

    Args:
        epoch: Its number.
        rows: Of each worker.
        loss_sum: Of (mean loss x weight) over all minibatches.
        seconds: Wall time.
        weight: Of all rows; None where each weighs 1.
    """
    total = sum(rows) if weight is None else weight
    loss = loss_sum / total if total else float("nan")
    return EpochRecord(epoch=epoch, loss=loss, rows=sum(rows), seconds=seconds, rows_of_worker=tuple(rows))
