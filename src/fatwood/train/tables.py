"""The statistics of a fit as Arrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fatwood.train.series import FIGURES

if TYPE_CHECKING:
    from fatwood.train.stats import FitStats

__all__ = ["job_time", "tables"]

_INT, _FLOAT, _TEXT = pa.int64(), pa.float64(), pa.string()
_WORKERS = {
    "rank": _INT,
    "host": _TEXT,
    "rows_trained": _INT,
    "rows_skipped": _INT,
    "minibatches": _INT,
    "agreements": _INT,
    "message_bytes": _INT,
    "bytes_sent": _INT,
    "digest": pa.uint64(),
}
_PHASES = {"rank": _INT, "phase": _TEXT, "seconds": _FLOAT}
_WAITS = {"rank": _INT, "waited_for": _INT, "seconds": _FLOAT}
_SPANS = {"rank": _INT, "phase": _TEXT, "start": _FLOAT, "seconds": _FLOAT}
_STEPS = {"rank": _INT, "step": _INT, "steps": _INT, "epoch": _INT, "end": _FLOAT}
_EPOCHS = {
    "epoch": _INT,
    "loss": _FLOAT,
    "rows": _INT,
    "seconds": _FLOAT,
    "validation_loss": _FLOAT,
    "accuracy": _FLOAT,
}
_INCIDENTS = {"seconds": _FLOAT, "kind": _TEXT, "rank": _INT, "text": _TEXT}


def tables(stats: FitStats) -> dict[str, pa.Table]:
    """See :meth:`FitStats.to_arrow`."""
    traced = [(worker.rank, worker.trace) for worker in stats.workers if worker.trace is not None]
    steps = dict(_STEPS)
    for name in FIGURES:
        steps |= {name: _FLOAT, f"{name}_least": _FLOAT, f"{name}_most": _FLOAT}
    epochs = [
        {
            **vars(record),
            "validation_loss": None if record.validation is None else record.validation.loss,
            "accuracy": None if record.validation is None else record.validation.accuracy,
        }
        for record in stats.history
    ]
    phases = [(w.rank, name, seconds) for w in stats.workers for name, seconds in w.seconds.items()]
    waits = [(w.rank, rank, seconds) for w in stats.workers for rank, seconds in w.waited_seconds.items()]
    return {
        "workers": _table(_WORKERS, [vars(worker) for worker in stats.workers]),
        "phases": _table(_PHASES, [dict(zip(_PHASES, row, strict=True)) for row in phases]),
        "waits": _table(_WAITS, [dict(zip(_WAITS, row, strict=True)) for row in waits]),
        "epochs": _table(_EPOCHS, epochs),
        "incidents": _table(_INCIDENTS, [incident.to_json() for incident in stats.incidents]),
        "steps": _table(steps, [row for rank, trace in traced for row in _steps(rank, trace)]),
        "spans": _table(_SPANS, [row for rank, trace in traced for row in _spans(rank, trace)]),
    }


def job_time(trace: Mapping[str, Any], at_seconds: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    """Moments of a trace on the job's clock.

    Between two readings of the clock time is a straight line, which takes drift out; before the first and after the last
    it runs at its own speed.

    Args:
        trace: Of :meth:`Trace.to_json`.
        at_seconds: Seconds since the trace's start, ``(n,)``.

    Returns:
        Seconds since 1970, ``(n,)``.
    """
    at = np.asarray(at_seconds, np.float64)
    readings = trace["clock"]
    if not readings:
        return at + float(trace["started"])
    known = np.array([reading["at"] for reading in readings], np.float64)
    shift = np.array([reading["time"] for reading in readings], np.float64) - known
    return at + np.interp(at, known, shift)


def _table(types: Mapping[str, pa.DataType], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()}
    return pa.table(columns)


def _steps(rank: int, trace: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    steps = trace["steps"]
    ends = job_time(trace, steps["end"]).tolist()
    for i, (count, epoch, end) in enumerate(zip(steps["steps"], steps["epoch"], ends, strict=True)):
        if not count:
            continue
        row = {
            "rank": rank,
            "step": steps["first"] + i * steps["width"],
            "steps": count,
            "epoch": epoch,
            "end": end,
        }
        for name, figure in steps["figures"].items():
            row[name] = figure["mean"][i]
            row[f"{name}_least"] = figure.get("least", figure["mean"])[i]
            row[f"{name}_most"] = figure.get("most", figure["mean"])[i]
        yield row


def _spans(rank: int, trace: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    names = trace["spans"]["phases"]
    for window in trace["spans"]["windows"]:
        packed = np.array(window, np.int64).reshape(-1, 3)
        starts = job_time(trace, packed[:, 1].cumsum() / 1e6)
        for phase, start, length in zip(packed[:, 0], starts.tolist(), packed[:, 2].tolist(), strict=True):
            yield {"rank": rank, "phase": names[phase], "start": start, "seconds": length / 1e6}
