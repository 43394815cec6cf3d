"""What a classifier got right, and what it took for what.

Shapes: B rows of a batch, C classes.

Only the cells of the confusion matrix that occurred are kept, so a report of 50 000 classes costs memory
by the rows seen and not by the square of the classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fatwood.errors import OptionError, UserError
from fatwood.evaluation.averages import Average, Averaged, Counts, multiclass_mcc, one_against_all
from fatwood.evaluation.cells import Cells
from fatwood.evaluation.columns import weight_column
from fatwood.evaluation.decisions import Decision, require_classes
from fatwood.evaluation.report import Report
from fatwood.evaluation.sums import ExactSum, checked_count

if TYPE_CHECKING:
    from fatwood.report.html import Markup

__all__ = ["Classification"]


class Classification(Averaged, Report):
    """What a classifier got right, what it took for what, and its mean loss; mergeable without any rounding.

    The predicted class is the one with the largest output, the first of equals. Precision, recall, F-scores, G-measure and rates of
    errors are methods with ``average=``, see :class:`Averaged`. Two classes are averaged like any other number of them, as
    scikit-learn does with ``average="macro"``; ``average="binary"`` or ``positive=`` takes one class alone (Deeplearning4j: class 1,
    unasked).

    Args:
        classes: C, the number of classes; None: learnt from the first batch.
        top_n: Of :attr:`top_n_accuracy`: a row is right when its class is among so many largest outputs.
        names: Of the C classes, for tables, JSON and pages.
        cost: Multiplied onto probabilities before the largest is taken. (C,): a factor for each class. (C, C): the worth of a prediction, by true class
            (first axis) and predicted class; the class of the largest expected worth is predicted.
        threshold: For two classes: class 1 is predicted where its probability is above it.

    Raises:
        UserError: An option that cannot be.

    Example:
        >>> import torch
        >>> report = Classification()
        >>> scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [0.5, 0.1]])
        >>> report.update(scores, torch.tensor([0, 1, 1]), loss_sum=1.5).accuracy
        0.6666666666666666
        >>> report.confusion.tolist()
        [[1, 0], [1, 1]]
        >>> report.precision(average=None).tolist(), report.recall(positive=1)
        ([0.5, 1.0], 0.5)
    """

    KIND: ClassVar[str] = "classification"
    VERSION: ClassVar[int] = 2

    def __init__(
        self,
        classes: int | None = None,
        *,
        top_n: int = 1,
        names: Sequence[str] | None = None,
        cost: Any = None,
        threshold: float | None = None,
    ) -> None:
        self.decision = Decision(top_n, names, cost, threshold)
        """The options."""
        self.classes = self.decision.classes() if classes is None else classes
        """C, the number of classes; None as long as it is not known."""
        if self.classes is not None:
            if type(self.classes) is not int or self.classes < 1:
                message = f"Classification: expected at least 1 class, received {classes!r}"
                raise UserError(message, hint="pass the number of outputs of the network's last layer")
            self.decision.require(self.classes)
        self.skipped = 0
        self.cells = Cells()
        """Rows by ``true class * C + predicted class``."""
        self.loss_sum = ExactSum()
        """Sum over the rows of weight times loss."""
        self.loss_weight = ExactSum()
        """What the rows weigh in it together."""
        self._weighed_rows = 0
        self._top, self._weighed_top = 0, ExactSum()

    @classmethod
    def empty(cls, classes: int) -> Classification:
        """A report of no rows.

        Args:
            classes: C, the number of classes.

        Returns:
            The neutral element of :meth:`merge`.

        Raises:
            UserError: ``classes`` is not a positive whole number.
        """
        return cls(0 if classes is None else classes)

    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,
        *,
        weights: Tensor | None = None,
        loss_weight: float | None = None,
    ) -> Classification:
        """Count one batch, in place.

        Args:
            outputs: (B, C) scores, logits or probabilities; probabilities where the report has ``cost`` or ``threshold``.
            labels: (B,) int64 true classes.
            loss_sum: Sum over the B rows of weight times loss; ignored when B is 0.
            weights: (B,) of at least 0; None where each weighs 1.
            loss_weight: What the B rows weigh in ``loss_sum`` together, where that differs from the sum of the weights: a loss with
                weights of its own for the classes.

        Returns:
            This same report.

        Raises:
            UserError: A shape or type that is none of the above, or NaN in the outputs.
            DataError: A label that is not a class, or a weight below 0.
        """
        if labels is None:
            message = "Classification: expected labels, received None"
            raise UserError(message, hint="name the column of labels: evaluate(..., label=...)")
        outputs, labels = outputs.detach().cpu(), labels.detach().cpu()
        require_classes(outputs, labels, self.classes)
        weighed = weight_column("Classification", weights, len(labels))
        if not len(labels):
            return self
        self.decision.require(outputs.shape[1])
        worth = self.decision.worth(outputs)
        self.classes, labels = outputs.shape[1], labels.to(torch.int64)
        self.cells.add((labels * self.classes + self.decision.predicted(worth)).numpy(), weighed)
        if self.decision.top_n > 1:
            right = self.decision.in_top(worth, labels).numpy()
            self._top += int(right.sum()) if weighed is None else 0
            self._weighed_top = self._weighed_top.plus([] if weighed is None else weighed[right].tolist())
        self._weighed_rows += 0 if weighed is None else len(labels)
        self.loss_sum = self.loss_sum.plus([float(loss_sum)])
        whole = [float(len(labels))] if weighed is None else weighed.tolist()
        self.loss_weight = self.loss_weight.plus(whole if loss_weight is None else [float(loss_weight)])
        return self

    def merge(self, other: Classification) -> Classification:
        """The report of both reports' rows; neither is changed.

        Args:
            other: Another report of the same classes and options.

        Returns:
            A new report.

        Raises:
            UserError: The other report has another number of classes, or other options.
        """
        if None not in (self.classes, other.classes) and other.classes != self.classes:
            message = (
                f"Classification.merge: expected a report of {self.classes} classes, received {other.classes}"
            )
            raise UserError(message, hint="merge reports of the same network only")
        if self.decision != other.decision:
            message = (
                f"Classification.merge: expected a report with {self.decision}, received {other.decision}"
            )
            raise UserError(message, hint="make all parts with the same options")
        merged = self.fresh() if self.classes is not None else other.fresh()
        merged.skipped = self.skipped + other.skipped
        merged.loss_sum = self.loss_sum.plus(other.loss_sum.parts)
        merged.loss_weight = self.loss_weight.plus(other.loss_weight.parts)
        merged.cells = self.cells.plus(other.cells)
        merged._weighed_rows = self._weighed_rows + other._weighed_rows
        merged._top = self._top + other._top
        merged._weighed_top = self._weighed_top.plus(other._weighed_top.parts)
        return merged

    def fresh(self) -> Classification:
        """An empty report of as many classes with the same options."""
        return Classification(self.classes, **self.decision.to_json())

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self.cells.ones.total() + self._weighed_rows

    @property
    def loss(self) -> float:
        """Mean loss per row, by weight; NaN when there are no rows."""
        return self.loss_sum.value / self.loss_weight.value if self.loss_weight.value else math.nan

    @property
    def accuracy(self) -> float:
        """Part of the rows whose predicted class is the true one, 0 to 1; NaN when there are no rows."""
        true, predicted, rows = self.occurred()
        whole = math.fsum(rows)
        return math.fsum(rows[true == predicted]) / whole if whole else math.nan

    @property
    def top_n_accuracy(self) -> float:
        """Part of the rows whose true class is among the ``top_n`` largest outputs, the first of equals first."""
        if self.decision.top_n == 1:
            return self.accuracy
        whole = math.fsum(self.occurred()[2])
        return self._weighed_top.plus([float(self._top)]).value / whole if whole else math.nan

    @property
    def confusion(self) -> NDArray[Any]:
        """(C, C) rows by true class (first axis) and predicted class (second axis): int64, or float64 where rows have weights."""
        classes = self.classes or 0
        cells, rows = self.cells.arrays()
        matrix = np.zeros(classes * classes, dtype=rows.dtype)
        matrix[cells] = rows
        return matrix.reshape(classes, classes)

    def occurred(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """(M,) true classes, predicted classes and rows of the cells of the confusion matrix that occurred."""
        cells, rows = self.cells.arrays()
        return cells // (self.classes or 1), cells % (self.classes or 1), rows

    def counts(self) -> Counts:
        """Rows by class, each against all others."""
        return one_against_all(*self.occurred(), self.classes or 0)

    def mcc(
        self,
        average: Literal["multiclass"] | Average = "multiclass",
        *,
        positive: int | str | None = None,
    ) -> Any:
        """Matthews' correlation of truth and prediction, -1 to 1, 0 where either is constant.

        Args:
            average: ``"multiclass"``: of all classes at once (Gorodkin's R_K, scikit-learn's ``matthews_corrcoef``), which is the usual one where
                there are two. Others: of each class against all others, see :class:`Averaged`.
            positive: One class against all others.

        Returns:
            A float, or (C,) float64 for ``average=None``.
        """
        if average != "multiclass" or positive is not None:
            return super().mcc("macro" if average == "multiclass" else average, positive=positive)
        return multiclass_mcc(*self.occurred())

    def _position(self, positive: int | str) -> int:
        names = list(self.decision.names or [])
        if positive in names:
            return names.index(str(positive))
        if type(positive) is int and 0 <= positive < (self.classes or 0):
            return positive
        message = f"Classification: expected one of {self.classes} classes as positive, received {positive!r}"
        raise OptionError(message, hint="pass its number, from 0, or its name")

    def name(self, number: int) -> str:
        """What a class is called: its name, or its number."""
        return self.decision.names[number] if self.decision.names else str(number)

    def summary(self) -> dict[str, float]:
        """Accuracy, loss, macro averages and rows."""
        n = self.decision.top_n
        top = {f"top_{n}_accuracy": self.top_n_accuracy} if n > 1 else {}
        return {
            "accuracy": self.accuracy,
            **top,
            "loss": self.loss,
            "precision": self.precision(),
            "recall": self.recall(),
            "f1": self.f1(),
            "mcc": self.mcc(),
            "rows": self.rows,
        }

    def sections(self) -> list[Markup]:
        """Figures, a table of the classes, and the confusion matrix."""
        from fatwood.evaluation.classification_text import sections

        return [*super().sections(), *sections(self)]

    def state(self) -> dict[str, Any]:
        """``confusion`` lists ``[true class, predicted class, rows]`` for every cell that occurred, ``weighed`` those of rows with weights."""
        base = self.classes or 1
        return {
            "classes": self.classes,
            **self.decision.to_json(),
            "loss_sum": self.loss_sum.to_json(),
            "loss_weight": self.loss_weight.to_json(),
            "skipped": self.skipped,
            "confusion": self.cells.listed(base),
            "top": self._top,
            "weighed": self.cells.listed_sums(base),
            "weighed_top": self._weighed_top.to_json(),
            "weighed_rows": self._weighed_rows,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Classification:
        """The inverse of :meth:`state`; version 1 had no options and no weights."""
        if state["version"] == 1:
            rows = float(sum(count for _, _, count in state["confusion"]))
            missing = {
                "top_n": 1,
                "names": None,
                "cost": None,
                "threshold": None,
                "loss_weight": [rows] if rows else [],
            }
            state = {**state, **missing, "top": 0, "weighed": [], "weighed_top": [], "weighed_rows": 0}
            cls.empty(state["classes"])
        options = {name: state[name] for name in ("top_n", "names", "cost", "threshold")}
        report = cls(state["classes"], **options)
        base = report.classes or 0
        report.cells = Cells.read(state["confusion"], state["weighed"], rows=base, base=base, kind=cls.KIND)
        report.loss_sum = ExactSum.from_json(state["loss_sum"])
        report.loss_weight = ExactSum.from_json(state["loss_weight"])
        report.skipped = checked_count(state["skipped"])
        report._weighed_rows = checked_count(state["weighed_rows"])
        report._top = checked_count(state["top"])
        report._weighed_top = ExactSum.from_json(state["weighed_top"])
        return report

    def __str__(self) -> str:
        from fatwood.evaluation.classification_text import text

        return text(self)
