"""The records of a run on their way to the driver's callbacks: their order, and their form as JSON values.

A record is sent as ``[kind, values]`` with the kinds ``"step"``, ``"validation"`` and ``"epoch"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

from fatwood.train.records import EpochRecord, StepRecord, ValidationRecord

__all__ = ["Record", "in_order", "place", "record_from_json", "record_to_json"]

Record: TypeAlias = StepRecord | ValidationRecord | EpochRecord

_KINDS: Final[dict[str, type[Record]]] = {
    "step": StepRecord,
    "validation": ValidationRecord,
    "epoch": EpochRecord,
}
_NAMES: Final = {cls: name for name, cls in _KINDS.items()}


def place(record: Record) -> tuple[int, ...]:
    """What sorts records in the order of events: steps of an epoch, validations after their step, the epoch's end."""
    match record:
        case StepRecord():
            return record.epoch, 0, record.step, 0
        case ValidationRecord():
            return record.epoch, 0, record.step, 1
        case EpochRecord():
            return record.epoch, 1


def in_order(*parts: Iterable[Record]) -> list[Record]:
    """Records of any kinds, in the order of events."""
    return sorted((record for part in parts for record in part), key=place)


def record_to_json(record: Record) -> list[Any]:
    """As JSON values."""
    flat = not isinstance(record, EpochRecord)  # a thousand steps a second: `asdict` would copy deeply
    return [_NAMES[type(record)], dict(vars(record)) if flat else record.to_json()]


def record_from_json(values: Sequence[Any]) -> Record:
    """From what :func:`record_to_json` gave.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    kind, fields = values
    return _KINDS[kind].from_json(fields)
