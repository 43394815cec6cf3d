"""A validation as a round: every worker measures its own validation rows, and all add up all figures in one order."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from fatwood.data import Batch
from fatwood.errors import ProtocolError
from fatwood.exchange import Buffer
from fatwood.train.records import ValidationRecord
from fatwood.train.step import Step, Trained

__all__ = ["measured", "validation_record"]

_FIGURES: Final = struct.Struct("<QdddB")  # rows, weight, loss_sum, correct; 1 where labels are classes


def measured(step: Step, batches: Iterable[Batch]) -> bytes:
    """One worker's figures, as its message."""
    total = Trained()
    for batch in batches:
        total = total.plus(step.measure(batch))
    classes = total.correct is not None or not total.rows
    return _FIGURES.pack(total.rows, total.weight, total.loss_sum, total.correct or 0.0, classes)


def validation_record(
    step: int, epoch: int, ranks: Sequence[int], parts: Sequence[Buffer]
) -> ValidationRecord:
    """All workers' figures together; NaN where there are no rows.

    Args:
        step: Agreements until now.
        epoch: Of the last agreement.
        ranks: Whose messages they are.
        parts: What :func:`measured` gave, in the order of ranks.

    Raises:
        ProtocolError: A message is none.
    """
    rows, weight, loss_sum, correct, classes = 0, 0.0, 0.0, 0.0, True
    for rank, part in zip(ranks, parts, strict=True):
        if len(part) != _FIGURES.size:
            text = f"validation figures of rank {rank}: expected {_FIGURES.size} bytes, received {len(part)}"
            raise ProtocolError(text, hint="all workers must run the same version of fatwood")
        own = _FIGURES.unpack(part)
        rows, weight, loss_sum, correct = rows + own[0], weight + own[1], loss_sum + own[2], correct + own[3]
        classes = classes and bool(own[4])
    return ValidationRecord(
        step=step,
        epoch=epoch,
        loss=loss_sum / weight if weight else float("nan"),
        accuracy=correct / weight if classes and weight else None,
        rows=rows,
    )
