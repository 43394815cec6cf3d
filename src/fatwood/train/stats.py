"""What a fit did, by count: per epoch, per worker, and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fatwood import report, storage
from fatwood.codec import findings
from fatwood.errors import OptionError, StorageError
from fatwood.train.clock import PhaseClock
from fatwood.train.encoding_log import EncodingLog
from fatwood.train.records import EpochRecord, History, ValidationRecord
from fatwood.train.summary import clock_remarks, summary
from fatwood.train.tables import tables
from fatwood.train.worker_stats import Incident, WorkerStats

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EncodingLog", "FitStats", "Incident", "PhaseClock", "WorkerStats"]

_MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class FitStats:
    """What a fit did in all. Prints as a text of a screen."""

    workers: tuple[WorkerStats, ...]
    """Those that were there at the end; of a worker that was replaced, what its last process did."""
    rows_trained: int
    """Rows trained by all workers in all epochs, those of lost workers included; no row of a dropped message."""
    rows_expected: int
    """Rows of the DataFrame times epochs, counted before the job."""
    rows_lost: int = 0
    """Rows that no agreement counted: rows of workers that were lost and did not come back in time. Bad rows that were
    skipped are not among them."""
    rows_trained_twice: int = 0
    """Rows that two agreements of one epoch counted."""
    incidents: tuple[Incident, ...] = ()
    """What happened to workers, in order."""
    checkpoints: int = 0
    """Checkpoints that were written."""
    parameters: int
    """Trainable parameters."""
    seconds: float
    """Wall seconds on the driver, from the first Spark job to the last."""
    started: float = 0.0
    """When the training job began, by the driver's clock, in seconds since 1970; incidents count from then. 0: not known."""
    history: History = field(default_factory=History)
    """The epochs of this fit."""
    validations: tuple[ValidationRecord, ...] = ()
    """All validations of this fit, those within epochs included."""

    @property
    def workers_lost(self) -> int:
        """How often a worker was lost; what it held back as a residual is lost with it."""
        return sum(incident.kind == "lost" for incident in self.incidents)

    @property
    def rejoined(self) -> int:
        """How often another process took a lost worker's place."""
        return sum(incident.kind == "rejoined" for incident in self.incidents)

    @property
    def rows_skipped(self) -> int:
        """Bad rows left out by all workers."""
        return sum(worker.rows_skipped for worker in self.workers)

    @property
    def bytes_per_step(self) -> float:
        """Mean bytes of one worker's message at one agreement, headers included."""
        agreements = sum(worker.agreements for worker in self.workers)
        return sum(worker.message_bytes for worker in self.workers) / agreements if agreements else 0.0

    @property
    def dense_bytes_per_step(self) -> int:
        """Bytes of the same message as dense float32."""
        return 4 * self.parameters

    @property
    def digest_equal(self) -> bool:
        """Whether parameters and buffers were bitwise equal on all workers at the end."""
        return len({worker.digest for worker in self.workers}) == 1

    @property
    def findings(self) -> list[str]:
        """What ``encoding_debug`` has to say against the threshold, worker by worker; empty when all is well."""
        return [f"worker {w.rank}: {finding}" for w in self.workers for finding in findings(w.encoding)]

    def __str__(self) -> str:
        return summary(self)

    def to_json(self) -> dict[str, Any]:
        """As JSON values. ``figures`` has what follows from the rest, for readers that are no Python."""
        derived = ("workers_lost", "rejoined", "rows_skipped", "bytes_per_step", "dense_bytes_per_step")
        figures = {name: getattr(self, name) for name in (*derived, "digest_equal", "findings")}
        return {
            **report.stamp(),
            **vars(self),
            **{
                name: [item.to_json() for item in getattr(self, name)]
                for name in ("workers", "incidents", "history", "validations")
            },
            "figures": {**figures, "clock_remarks": clock_remarks(self)},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FitStats:
        """From the values of :meth:`to_json`.

        Raises:
            OptionError: They are something else, or of a newer version.
        """
        report.require_stamp(values)
        try:
            own = {known.name: values[known.name] for known in fields(cls)}
            own["workers"] = tuple(WorkerStats.from_json(worker) for worker in own["workers"])
            own["incidents"] = tuple(Incident.from_json(incident) for incident in own["incidents"])
            own["history"] = History(EpochRecord.from_json(record) for record in own["history"])
            own["validations"] = tuple(ValidationRecord.from_json(record) for record in own["validations"])
            return cls(**own)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"statistics of a fit: expected what FitStats.to_json gives, received something else ({error!r:.200})"
            raise OptionError(text) from error

    def save(self, uri: storage.URI, *, storage_options: Mapping[str, Any] | None = None) -> None:
        """Write a JSON file, for :meth:`load` and ``fatwood report``.

        Args:
            uri: Where; a scheme picks the store, a plain path is local.
            storage_options: Arguments of the store's fsspec class, by name: address, credentials.

        Raises:
            StorageError: It cannot be written.
        """
        content = report.encode(self.to_json())
        storage.write_atomic(storage.location(uri, storage_options), lambda file: file.writelines([content]))

    @classmethod
    def load(cls, uri: storage.URI, *, storage_options: Mapping[str, Any] | None = None) -> FitStats:
        """Read what :meth:`save` wrote.

        Args:
            uri: Where; a scheme picks the store, a plain path is local.
            storage_options: As for :meth:`save`.

        Raises:
            StorageError: It cannot be read, or is something else.
        """
        content = storage.read_bytes(storage.location(uri, storage_options), max_bytes=_MAX_FILE_BYTES)
        try:
            return cls.from_json(report.decode(content))
        except OptionError as error:
            text = f"cannot read {uri}: {error.message}"
            raise StorageError(text, hint=error.hint) from error

    def to_html(
        self,
        uri: storage.URI,
        *,
        title: str = "Fatwood training report",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one HTML page with timeline, curves and tables; it needs no network and no other file.

        Args:
            uri: Where; a scheme picks the store, a plain path is local.
            title: Of the page.
            storage_options: As for :meth:`save`.

        Raises:
            StorageError: It cannot be written.
        """
        content = report.page(self.to_json(), title=title).encode()
        storage.write_atomic(storage.location(uri, storage_options), lambda file: file.writelines([content]))

    def to_arrow(self) -> dict[str, pa.Table]:
        """As tables, by name.

        ``workers``: a row each. ``phases``: rank, phase, seconds. ``waits``: rank, waited_for, seconds. ``epochs``: a row
        each. ``incidents``: a row each. ``steps``: a row for each worker and stretch of steps, with mean, least and largest
        value of its figures. ``spans``: rank, phase, start, seconds of the spans that were kept exactly. Times are seconds;
        ``start`` and ``end`` since 1970, on the job's clock.
        """
        return tables(self)

    def to_pandas(self) -> dict[str, pd.DataFrame]:
        """The tables of :meth:`to_arrow` as DataFrames.

        Raises:
            OptionError: pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: F401
        except ImportError:
            text = "FitStats.to_pandas: pandas is not installed"
            raise OptionError(text, hint="pip install 'fatwood[spark]', or use to_arrow()") from None
        return {name: table.to_pandas() for name, table in self.to_arrow().items()}
