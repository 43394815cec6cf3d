"""Metrics of torchmetrics as reports: they travel as arrays, and merge as torchmetrics synchronises the processes of a training.

A metric's state is tensors and lists of tensors by name, each with a way to join those of several processes. ``merge_state`` of
torchmetrics joins two metrics so that some cannot be merged again, or not at all (``PearsonCorrCoef``). Here the states of all parts
are joined once, when the value is asked for, unless joining a part at a time is the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fatwood.errors import UserError
from fatwood.evaluation.report import UNCHANGED, Report
from fatwood.evaluation.sums import checked_count, pack_array, read_report, unpack_array
from fatwood.evaluation.texts import read_text
from fatwood.storage import URI

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TorchMetric", "snake_case"]

_SHOWN: Final = 20
_JOINED_EARLY: Final = {
    "dim_zero_sum": torch.add,
    "dim_zero_max": torch.maximum,
    "dim_zero_min": torch.minimum,
}
"""Ways to join that do not depend on how many parts there are, nor on their grouping."""

_WRONG: Final = frozenset({"NormalizedRootMeanSquaredError"})
"""Of more than two processes torchmetrics 1.9 takes the first and the last, or fails."""

_State: TypeAlias = "Tensor | list[Tensor]"


class TorchMetric(Report):
    """A metric of torchmetrics.

    The merged value is that of torchmetrics' own synchronisation of as many processes. Floats are summed in the metric's type; with
    ``metric.set_dtype(torch.float64)`` outputs are given to it in float64.

    Labels are given as integers to metrics of classes and as floats to others, ``(N, 1)`` as ``(N,)``, and to a binary metric the second of
    two classes' outputs.

    Args:
        metric: Copied, and emptied.

    Raises:
        UserError: It is none, or one that holds other metrics.

    Example:
        >>> from torchmetrics.regression import MeanSquaredError
        >>> empty = TorchMetric(MeanSquaredError())
        >>> parts = [empty.fresh().update(torch.tensor([x]), torch.tensor([0.0])) for x in (1.0, 3.0)]
        >>> parts[0].merge(parts[1]).value
        tensor(5.)
    """

    KIND: ClassVar[str] = "torchmetric"

    def __init__(self, metric: Any) -> None:
        _require_metric(metric)
        self.metric = _on_cpu(metric.clone())
        """What was updated here; other parts are beside it."""
        self.metric.reset()
        self.metric.sync_on_compute = self.metric._to_sync = False
        self.rows = 0
        self.skipped = 0
        self._parts, self._updates = 0, 0
        self._states: dict[str, list[_State]] = {name: [] for name in self.metric._defaults}

    @property
    def name(self) -> str:
        """The metric's class in snake case."""
        return snake_case(type(self.metric).__name__)

    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,
        *,
        weights: Tensor | None = None,
    ) -> TorchMetric:
        """Count one batch, in place.

        Args:
            outputs: ``(N, ...)``, the metric's ``preds``.
            labels: ``(N, ...)``, its ``target``.
            loss_sum: Not used.
            weights: None; metrics of torchmetrics take none.

        Returns:
            This same report.

        Raises:
            UserError: There are weights or no labels.
        """
        del loss_sum
        if weights is not None:
            text = f"{self.name}: expected no weights, received some: metrics of torchmetrics weigh all rows alike"
            raise UserError(
                text, hint="leave weight out, or use a report such as Classification or Regression"
            )
        if labels is None:
            text = f"{self.name}: expected labels, received None"
            raise UserError(text, hint="name the column of labels: evaluate(..., label=...)")
        if len(outputs):
            self.metric.update(*self._given(outputs.detach().cpu(), labels.detach().cpu()))
            self.rows += len(outputs)
        return self

    def _given(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kinds = [kind.__name__ for kind in type(self.metric).__mro__ if _is_of_classes(kind)]
        if outputs.dim() == 2 and outputs.shape[1] == 2 and labels.dim() == 1 and kinds:
            outputs = outputs[:, 1] if any(name.startswith("Binary") for name in kinds) else outputs
        if outputs.dim() == 2 and outputs.shape[1] == 1:
            outputs, labels = outputs[:, 0], labels.reshape(-1) if labels.dim() == 2 else labels
        if outputs.is_floating_point():
            outputs = outputs.to(self.metric.dtype)
        if kinds and labels.is_floating_point() and bool((labels == labels.round()).all()):
            labels = labels.long()
        return outputs, labels.to(self.metric.dtype) if labels.is_floating_point() else labels

    def merge(self, other: TorchMetric) -> TorchMetric:
        """The report of both reports' rows; neither is changed.

        Raises:
            UserError: The other is of another metric.
        """
        if type(other.metric) is not type(self.metric):
            text = f"TorchMetric.merge: expected a report of {type(self.metric).__name__}, received {type(other.metric).__name__}"
            raise UserError(text, hint="merge reports of the same metric only")
        merged = self.fresh()
        merged.rows, merged.skipped = self.rows + other.rows, self.skipped + other.skipped
        all_parts = [self._all_parts(), other._all_parts()]
        merged._take(
            sum(parts for parts, _, _ in all_parts),
            sum(updates for _, updates, _ in all_parts),
            {name: [state for _, _, states in all_parts for state in states[name]] for name in self._states},
        )
        return merged

    def fresh(self) -> TorchMetric:
        """An empty report of the same metric."""
        return TorchMetric(self.metric)

    @property
    def value(self) -> Any:
        """What the metric computes: a tensor, or several; NaN without rows."""
        parts, updates, states = self._all_parts()
        if not parts:
            return torch.tensor(math.nan)
        metric = self.metric.clone()
        for name, found in states.items():
            joined = found[0] if parts == 1 else self._joined(name, found)
            setattr(metric, name, _cloned(joined))
        metric._update_count, metric._computed = updates, None
        return metric.compute()

    def _joined(self, name: str, states: list[_State]) -> _State:
        """As torchmetrics does it with what it gathers from all processes."""
        reduction = self.metric._reductions[name]
        if _way(reduction) in _JOINED_EARLY:
            return states[0]
        gathered: Any
        if isinstance(states[0], list):
            gathered = [tensor for state in states for tensor in state]
            if _way(reduction) == "dim_zero_cat" and not gathered:
                return torch.tensor([], dtype=self.metric.dtype)
        else:
            gathered = torch.stack(states)  # type: ignore[arg-type]
        joined: _State = gathered if reduction is None else reduction(gathered)
        return joined

    def _all_parts(self) -> tuple[int, int, dict[str, list[_State]]]:
        """How many there are, their updates together, and their states; none of a metric that was not updated."""
        if not self.metric._update_count:
            return self._parts, self._updates, self._states
        states = {
            name: [*found, self._compact(name, getattr(self.metric, name))]
            for name, found in self._states.items()
        }
        states = {name: self._folded(name, found) for name, found in states.items()}
        return self._parts + 1, self._updates + self.metric._update_count, states

    def _compact(self, name: str, state: Any) -> _State:
        tensors = state if isinstance(state, list) else [state]
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            text = f"{self.name}: expected states of tensors, received another in {name!r}"
            raise UserError(text, hint="such a metric cannot be sent between machines as arrays")
        if (
            isinstance(state, list)
            and len(state) > 1
            and _way(self.metric._reductions[name]) == "dim_zero_cat"
        ):
            return [self.metric._reductions[name](state)]
        copy: _State = _cloned(state)
        return copy

    def _folded(self, name: str, states: list[_State]) -> list[_State]:
        way = _way(self.metric._reductions[name])
        if way == "dim_zero_cat" and states and isinstance(states[0], list):
            return [self._compact(name, [tensor for state in states for tensor in state])]
        join = _JOINED_EARLY.get(way)
        if join is None or len(states) < 2 or isinstance(states[0], list):
            return states
        total = states[0]
        for state in states[1:]:
            total = join(total, state)  # type: ignore[operator]
        return [total]

    def _take(self, parts: int, updates: int, states: Mapping[str, list[_State]]) -> None:
        """Be these parts; a single one can be updated further as it is."""
        if parts == 1:
            for name, found in states.items():
                setattr(self.metric, name, _cloned(found[0]))
            self.metric._update_count = updates
        elif parts:
            self._parts, self._updates = parts, updates
            self._states = {name: self._folded(name, list(found)) for name, found in states.items()}

    def summary(self) -> dict[str, float]:
        """The value by the metric's name, one for each number of a short list or a dict; and rows."""
        value = self.value
        figures = value if isinstance(value, Mapping) else {self.name: value}
        found: dict[str, float] = {}
        for name, figure in figures.items():
            if isinstance(figure, Tensor) and figure.numel() == 1:
                found[name] = float(figure)
            elif isinstance(figure, Tensor) and figure.dim() == 1 and len(figure) <= _SHOWN:
                found.update({f"{name}_{i}": float(number) for i, number in enumerate(figure)})
        return {**found, "rows": self.rows}

    def __str__(self) -> str:
        figures = self.summary()
        width = max(map(len, figures))
        lines = [f"{name:<{width}}  {value:.6g}" for name, value in figures.items() if name != "rows"]
        skipped = f" ({self.skipped:,} skipped)" if self.skipped else ""
        return "\n".join([*lines, f"{'rows':<{width}}  {self.rows:,}{skipped}"])

    def state(self) -> dict[str, Any]:
        """The metric's class, and the states of its parts as arrays."""
        parts, updates, states = self._all_parts()
        return {
            "metric": _title(self.metric),
            "rows": self.rows,
            "skipped": self.skipped,
            "parts": parts,
            "updates": updates,
            "states": {name: [_packed(name, state) for state in found] for name, found in states.items()},
        }

    @classmethod
    def from_json(
        cls, source: URI, metric: Any = None, *, storage_options: Mapping[str, Any] | None = None
    ) -> Self:
        """The inverse of :meth:`to_json`.

        Args:
            source: What :meth:`to_json` returned, or the file that it wrote.
            metric: Made as the one that was written; JSON does not hold its options.
            storage_options: Of the file's store, as for :meth:`to_json`.

        Returns:
            An equal report.

        Raises:
            UserError: It is no such report, or of another metric, or the metric is missing.
            StorageError: The file cannot be read.
        """
        state = read_report(read_text(source, storage_options), cls.KIND, {cls.KIND: cls.VERSION})
        if metric is None:
            return cls.from_state(state)
        report = cls(metric)
        try:
            report._read(state)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            text = f"{report.name}: expected the parts that to_json() wrote, received {error!r}"
            raise UserError(text, hint=UNCHANGED) from error
        return report

    def _read(self, state: Mapping[str, Any]) -> None:
        if state["metric"] != _title(self.metric):
            text = f"TorchMetric: expected a report of {_title(self.metric)}, received one of {state['metric']!r}"
            raise UserError(text, hint="pass a metric like the one that was written")
        self.rows, self.skipped = checked_count(state["rows"]), checked_count(state["skipped"])
        parts, updates = checked_count(state["parts"]), checked_count(state["updates"])
        found = {name: [_unpacked(packed) for packed in state["states"][name]] for name in self._states}
        for name, default in self.metric._defaults.items():
            early = _way(self.metric._reductions[name]) in (*_JOINED_EARLY, "dim_zero_cat")
            allowed = (min(parts, 1), parts) if early else (parts,)
            kinds = {type(entry) is list for entry in found[name]}
            if len(found[name]) not in allowed or not kinds <= {isinstance(default, list)}:
                text = f"expected {parts} parts of {name!r}"
                raise ValueError(text)
        self._take(parts, updates, found)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Not possible without the metric; see :meth:`from_json`."""
        text = (
            f"TorchMetric: expected the metric that the report is of, {state.get('metric')!r}, received none"
        )
        raise UserError(text, hint="TorchMetric.from_json(text, metric), or Reports.from_json(text, metrics)")


def snake_case(name: str) -> str:
    """The name of a class as one of a variable.

    >>> snake_case("BinaryAUROC"), snake_case("R2Score")
    ('binary_auroc', 'r2_score')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _require_metric(metric: Any) -> None:
    try:
        import torchmetrics
    except ImportError as error:
        text = f"TorchMetric: expected torchmetrics to be installed, received {error}"
        raise UserError(text, hint="pip install 'fatwood[metrics]', on the executors too") from error
    if not isinstance(metric, torchmetrics.Metric):
        text = f"TorchMetric: expected a metric of torchmetrics, received {metric!r:.80}"
        raise UserError(text, hint="pass an object such as torchmetrics.AUROC(task='binary')")
    wrong = [kind.__name__ for kind in type(metric).__mro__ if kind.__name__ in _WRONG]
    if wrong:
        text = f"TorchMetric: expected a metric that torchmetrics can synchronise, received {wrong[0]}"
        raise UserError(
            text, hint="Regression has the RMSE, and what it can be divided by is one aggregate of Spark"
        )
    inner = [type(part).__name__ for part in metric.modules() if part is not metric and _holds_states(part)]
    if inner:
        text = f"TorchMetric: expected a metric of its own, received {type(metric).__name__}, which holds {', '.join(inner)}"
        raise UserError(text, hint="pass the metrics within one by one")


def _holds_states(part: torch.nn.Module) -> bool:
    import torchmetrics

    return isinstance(part, torchmetrics.Metric | torchmetrics.MetricCollection)


def _on_cpu(metric: Any) -> Any:
    if metric.device.type == "cpu":
        return metric
    dtype = metric.dtype
    return metric.cpu().set_dtype(dtype)  # the move forgets the type


def _is_of_classes(kind: type) -> bool:
    return kind.__module__.startswith(("torchmetrics.classification", "torchmetrics.segmentation"))


def _way(reduction: Any) -> str:
    """The name of one of torchmetrics' own reductions; nothing for any other."""
    own = getattr(reduction, "__module__", "").startswith("torchmetrics.utilities")
    return str(reduction.__name__) if own else ""


def _title(metric: Any) -> str:
    return f"{type(metric).__module__}.{type(metric).__qualname__}"


def _cloned(state: Any) -> Any:
    return (
        [tensor.detach().clone() for tensor in state] if isinstance(state, list) else state.detach().clone()
    )


def _packed(name: str, state: _State) -> Any:
    if isinstance(state, list):
        return [_packed(name, tensor) for tensor in state]
    try:
        return pack_array(state.numpy())
    except TypeError as error:
        text = f"TorchMetric: state {name!r}: expected a type that NumPy has, received {state.dtype}"
        raise UserError(text, hint="metric.set_dtype(torch.float32)") from error


def _unpacked(packed: Any) -> _State:
    if isinstance(packed, list):
        return [_tensor(part) for part in packed]
    return _tensor(packed)


def _tensor(packed: Any) -> Tensor:
    array = unpack_array(packed, np.dtype(packed["dtype"]))
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
