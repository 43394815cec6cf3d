"""Several reports of the same rows, by name, and how the caller of an evaluation asks for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from fatwood.errors import OptionError, UserError
from fatwood.evaluation.report import UNCHANGED, Report
from fatwood.evaluation.sums import read_report
from fatwood.evaluation.texts import read_text, write_text
from fatwood.evaluation.torch_metric import TorchMetric, snake_case
from fatwood.storage import URI

__all__ = ["Reports", "metrics_by_output", "read_like"]

_EXAMPLE = "metrics=[Classification(top_n=5), ROCMultiClass(bins=200), torchmetrics.AUROC(task='multiclass', num_classes=10)]"


class Reports(Mapping[str, Report]):
    """Reports by name, of the same rows.

    Args:
        reports: By name.
    """

    KIND: ClassVar[str] = "reports"
    VERSION: ClassVar[int] = 1

    def __init__(self, reports: Mapping[str, Report]) -> None:
        self._reports = dict(reports)

    def __getitem__(self, name: str) -> Report:
        return self._reports[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reports)

    def __len__(self) -> int:
        return len(self._reports)

    def summary(self) -> dict[str, float]:
        """The figures of all, called ``name/figure``."""
        found = ((name, report.summary()) for name, report in self.items())
        return {f"{name}/{figure}": value for name, figures in found for figure, value in figures.items()}

    def merge(self, other: Mapping[str, Report]) -> Reports:
        """The reports of both one's rows; neither is changed.

        Args:
            other: Reports of the same names.

        Raises:
            UserError: It has others, or with other options.
        """
        if set(other) != set(self):
            text = f"Reports.merge: expected {', '.join(map(repr, self))}, received {', '.join(map(repr, other))}"
            raise UserError(text, hint="merge what the same metrics gave")
        return Reports({name: report.merge(other[name]) for name, report in self.items()})

    def to_json(self, uri: URI | None = None, *, storage_options: Mapping[str, Any] | None = None) -> str:
        """All of them as JSON text; equal reports give equal text.

        Args:
            uri: A file on any storage to write it to as well.
            storage_options: Arguments of the store's fsspec class, by name: address, credentials.

        Returns:
            Text for :meth:`from_json`.

        Raises:
            StorageError: It cannot be written.
        """
        parts = ", ".join(f"{json.dumps(name)}: {report.to_json()}" for name, report in self.items())
        text = f'{{"report": "{self.KIND}", "version": {self.VERSION}, "reports": {{{parts}}}}}'
        if uri is not None:
            write_text(uri, text, storage_options)
        return text

    @classmethod
    def from_json(
        cls, source: URI, metrics: object = None, *, storage_options: Mapping[str, Any] | None = None
    ) -> Reports:
        """The inverse of :meth:`to_json`.

        Args:
            source: What :meth:`to_json` returned, or the file that it wrote.
            metrics: What the evaluation was asked for; needed where some of that is of torchmetrics, whose options JSON does not hold.
            storage_options: Of the file's store, as for :meth:`to_json`.

        Raises:
            UserError: They are no reports, or a metric is missing.
            StorageError: The file cannot be read.
        """
        state = read_report(read_text(source, storage_options), cls.KIND, {cls.KIND: cls.VERSION})
        parts = state.get("reports")
        if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
            text = f"reports: expected an object of reports by name, received {parts!r:.60}"
            raise UserError(text, hint=UNCHANGED)
        asked = {} if metrics is None else _named(metrics)
        found: dict[str, Report] = {}
        for name, part in parts.items():
            like, text = asked.get(name), json.dumps(part)
            found[name] = read_like(like, text) if isinstance(like, TorchMetric) else Report.from_json(text)
        return cls(found)

    def to_html(
        self,
        uri: URI | None = None,
        title: str = "Evaluation",
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> str:
        """One page of all of them, which needs no network.

        Args:
            uri: A file on any storage to write it to as well.
            storage_options: Arguments of the store's fsspec class, by name: address, credentials.
            title: Of the page.

        Returns:
            HTML.

        Raises:
            StorageError: It cannot be written.
        """
        from fatwood.evaluation.page import page

        text = page(self, title)
        if uri is not None:
            write_text(uri, text, storage_options)
        return text

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from fatwood.evaluation.page import fragment

        return fragment(self)

    def __str__(self) -> str:
        return "\n\n".join(f"{name}\n{'-' * len(name)}\n{report}" for name, report in self.items())

    def __repr__(self) -> str:
        return f"Reports({', '.join(self)})"

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, Reports) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # they change


def metrics_by_output(metrics: object, keys: Sequence[Any]) -> dict[Any, dict[str, Report]]:
    """Empty reports for each output, by name.

    Args:
        metrics: A report or a metric of torchmetrics, a collection or a list of them, or a dict by name; or a dict of such things by output,
            where it has the outputs' keys.
        keys: Of the outputs.

    Raises:
        OptionError: It is something else, or two have one name.
    """
    if isinstance(metrics, Mapping) and keys != [None] and set(metrics) == set(keys):
        return {key: _named(metrics[key]) for key in keys}
    return {key: _named(metrics) for key in keys}


def read_like(report: Report, text: str) -> Report:
    """A report out of the JSON of one with the same options.

    Args:
        report: That one; it is not changed.
        text: What ``to_json()`` gave.
    """
    if isinstance(report, TorchMetric):
        return TorchMetric.from_json(text, report.metric)
    return type(report).from_json(text)


def _named(metrics: object) -> dict[str, Report]:
    if isinstance(metrics, Mapping) and not _collection(metrics):
        found = [pair for name, given in metrics.items() for pair in _listed(given, name)]
    elif isinstance(metrics, Sequence) and not isinstance(metrics, str):
        found = [pair for given in metrics for pair in _listed(given)]
    else:
        found = _listed(metrics)
    if not found:
        text = f"metrics: expected at least one, received {metrics!r}"
        raise OptionError(text, hint="leave metrics out for the report that fits the labels")
    names = [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        text = f"metrics: expected metrics of different names, received {twice!r} twice"
        raise OptionError(text, hint=f'name them in a dict: metrics={{"{twice}": ..., "another": ...}}')
    return dict(found)


def _listed(given: Any, name: object = None) -> list[tuple[str, Report]]:
    """Reports with their names; a collection's members have its name in front of theirs."""
    if name is not None and (not isinstance(name, str) or not name):
        text = f"metrics: expected names as keys of the dict, received {name!r}"
        raise OptionError(
            text, hint="outputs by position need a key for each output: metrics={0: ..., 1: ...}"
        )
    if isinstance(given, Report):
        kind = given.name if isinstance(given, TorchMetric) else given.KIND
        return [(name or kind, given.fresh())]
    library = sys.modules.get("torchmetrics")  # who has made a metric has imported it
    if _collection(given):
        front = "" if name is None else f"{name}_"
        return [(f"{front}{part}", TorchMetric(metric)) for part, metric in given.items()]
    if library is not None and isinstance(given, library.Metric):
        return [(name or snake_case(type(given).__name__), TorchMetric(given))]
    text = f"metrics: expected reports or metrics of torchmetrics, received {given!r:.80}"
    if isinstance(given, type):
        raise OptionError(text, hint=f"make one: {given.__name__}(...)")
    raise OptionError(text, hint=_EXAMPLE)


def _collection(given: object) -> bool:
    library = sys.modules.get("torchmetrics")
    return library is not None and isinstance(given, library.MetricCollection)
