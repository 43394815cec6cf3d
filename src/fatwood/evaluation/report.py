"""What every report can do: count, merge, be written and read, be printed and shown."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fatwood import storage
from fatwood.errors import UserError
from fatwood.evaluation.sums import read_report
from fatwood.evaluation.texts import read_text, write_text

if TYPE_CHECKING:
    from typing_extensions import Self

    from fatwood.report.html import Markup

__all__ = ["UNCHANGED", "Report"]

UNCHANGED = "pass what to_json() returned or wrote, unchanged"
"""The hint of errors in a report's JSON."""

_KINDS: dict[str, type[Report]] = {}


class Report(ABC):
    """What a network did on rows that may lie on many machines.

    A report starts empty, with its options; ``update`` counts a batch, ``merge`` joins two. However the rows are split, the merged
    report is that of one pass over all of them. A kind of report is a subclass with a `KIND`; the suite
    :func:`fatwood.testing.merging.merging_suite` checks it.
    """

    KIND: ClassVar[str]
    """Its name in JSON."""
    VERSION: ClassVar[int] = 1
    """The newest version of its JSON; older ones can be read."""

    skipped: int
    """Bad rows that were left out, in no other number of this report."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "KIND" in vars(cls):
            _KINDS[cls.KIND] = cls

    @abstractmethod
    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,
        *,
        weights: Tensor | None = None,
    ) -> Self:
        """Count one batch, in place.

        Args:
            outputs: ``(N, ...)`` of N rows, or of N real steps of sequences: scores, probabilities or numbers, as the report asks.
            labels: ``(N, ...)`` the truth; None only where the report needs none.
            loss_sum: Sum over the N of weight times loss; NaN where there is no loss. Ignored when N is 0.
            weights: ``(N,)`` of at least 0; None where each weighs 1.

        Returns:
            This same report.

        Raises:
            UserError: A shape or type that the report cannot use.
            DataError: A label that cannot be right.
        """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """The report of both reports' rows; neither is changed.

        Raises:
            UserError: The other has other options.
        """

    @abstractmethod
    def fresh(self) -> Self:
        """An empty report with the same options: the neutral element of :meth:`merge`."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Options and all that was counted, as JSON values; equal reports give equal ones."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`state`, also of older versions (``state["version"]``).

        Raises:
            UserError: A part has a wrong value.
            KeyError, TypeError, ValueError: The same, to be explained by :meth:`from_json`.
        """

    @abstractmethod
    def summary(self) -> dict[str, float]:
        """The figures that a table of several reports shows, by name; NaN where there are no rows."""

    def sections(self) -> list[Markup]:
        """What the page of :meth:`to_html` shows of this report."""
        from fatwood.evaluation.page import summary_table

        return [summary_table(self.summary())]

    def to_json(
        self, uri: storage.URI | None = None, *, storage_options: Mapping[str, Any] | None = None
    ) -> str:
        """The whole state as JSON text, which can be read, merged and updated; equal reports give equal text.

        Args:
            uri: A file on any storage to write it to as well.
            storage_options: Arguments of the store's fsspec class, by name: address, credentials.

        Returns:
            Text for :meth:`from_json`.

        Raises:
            StorageError: It cannot be written.
        """
        text = json.dumps({"report": self.KIND, "version": self.VERSION, **self.state()})
        if uri is not None:
            write_text(uri, text, storage_options)
        return text

    @classmethod
    def from_json(cls, source: storage.URI, *, storage_options: Mapping[str, Any] | None = None) -> Self:
        """The inverse of :meth:`to_json`; ``Report.from_json`` reads a report of any kind.

        Args:
            source: What :meth:`to_json` returned, or the file that it wrote.
            storage_options: Of the file's store, as for :meth:`to_json`.

        Returns:
            An equal report.

        Raises:
            UserError: It is no such report, or of a newer version.
            StorageError: The file cannot be read.
        """
        text = read_text(source, storage_options)
        state = read_report(
            text, getattr(cls, "KIND", None), {kind: of.VERSION for kind, of in _KINDS.items()}
        )
        kind: Any = _KINDS[state["report"]]
        try:
            report: Self = kind.from_state(state)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            message = f"{kind.KIND} report: expected the parts that to_json() wrote, received {error!r}"
            raise UserError(message, hint=UNCHANGED) from error
        return report

    def to_html(
        self, uri: storage.URI | None = None, *, storage_options: Mapping[str, Any] | None = None
    ) -> str:
        """One page with tables and figures, which needs no network.

        Args:
            uri: A file on any storage to write it to as well.
            storage_options: Arguments of the store's fsspec class, by name: address, credentials.

        Returns:
            HTML.

        Raises:
            StorageError: It cannot be written.
        """
        from fatwood.evaluation.page import page

        text = page({self.KIND: self})
        if uri is not None:
            write_text(uri, text, storage_options)
        return text

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from fatwood.evaluation.page import fragment

        return fragment({self.KIND: self})

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Report) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes
