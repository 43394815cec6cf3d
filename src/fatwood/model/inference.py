"""What a model does with rows without training on them: evaluate, predict, score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fatwood.data import OnBadRow
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.evaluation import Classification, Loss
from fatwood.train import AnyLoss

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["Inference"]


class Inference:
    """The part of :class:`fatwood.SparkModel` that changes nothing."""

    network: torch.nn.Module
    """The network itself, a plain module, on the driver; :meth:`fit` changes its parameters in place."""
    loss: AnyLoss | None
    preprocessing: Mapping[str, Transform]
    """By the name of the field, as in :meth:`fit`; fitted once :meth:`fit` was called, or as they were loaded."""

    def evaluate(
        self,
        data: Any,
        *,
        features: InputSpec | None = None,
        label: InputSpec | None = None,
        batch_size: int = 64,
        on_bad_row: OnBadRow = "error",
    ) -> Classification | Loss | dict[str | int, Classification | Loss]:
        """Evaluate the network on rows, in their own partitions.

        Args:
            data: The rows, of any form that :meth:`fit` takes.
            features: As in :meth:`fit`.
            label: As in :meth:`fit`.
            batch_size: Rows per forward pass; changes speed and memory only.
            on_bad_row: As in :meth:`fit`.

        Returns:
            With integer labels and an output ``(B, classes)`` a :class:`Classification` with accuracy, loss (NaN
            for a model without one) and confusion matrix, else a :class:`Loss`. Rows whose label the loss ignores
            (``ignore_index``) are not counted. Where labels are sequences, each real step counts as a row.
            With several labels a dict with a report for each, by name or position.

        Raises:
            UserError: Something the caller can change: a column, a row (with its partition and number), the network.
            ClusterError: The Spark job failed.
        """
        from fatwood.spark.evaluation import evaluate

        return evaluate(
            data,
            {"network": self.network, "loss": self.loss},
            features=features,
            label=label,
            transforms=self.preprocessing,
            batch_size=batch_size,
            on_bad_row=on_bad_row,
        )

    def predict(
        self,
        data: Any,
        *,
        key: str | Sequence[str] | None = None,
        features: InputSpec | None = None,
        output: str = "prediction",
        outputs: Sequence[str] | int | None = None,
        batch_size: int = 64,
        on_bad_row: OnBadRow = "error",
    ) -> DataFrame:
        """The network's output for every row, beside its key.

        Args:
            data: The rows, of any form that :meth:`fit` takes; read lazily, when the result is evaluated.
            key: Column or columns of any type, passed through untouched. Minibatches have no columns: without a key their
                rows are told by ``partition`` or ``file``, and ``row``.
            features: As in :meth:`fit`.
            output: Name of the new column.
            outputs: For a network that returns several tensors: the names of those wanted, from a dict, or how many
                there are in a tuple. Each has a column ``{output}_{its name or position}``.
            batch_size: Rows per forward pass; changes speed and memory only.
            on_bad_row: ``"error"``, or ``"skip"`` for a null prediction.

        Returns:
            A DataFrame with as many rows as there are: the key columns, and the output, flattened to ``array<float>``;
            of a sequence, its real steps. It uses the parameters that the network has now.

        Raises:
            UserError: Now, for what schema and options tell. What is found in a row or raised by the network comes
                later, from whichever Spark action needs the result, as text of Spark's ``PythonException``.
        """
        from fatwood.spark.inference import predict

        return predict(
            data,
            self.network,
            key=key,
            features=features,
            transforms=self.preprocessing,
            output=output,
            outputs=outputs,
            batch_size=batch_size,
            on_bad_row=on_bad_row,
        )

    def score(
        self,
        data: Any,
        *,
        key: str | Sequence[str] | None = None,
        features: InputSpec | None = None,
        label: InputSpec | None = None,
        weight: str | None = None,
        output: str = "score",
        batch_size: int = 64,
        on_bad_row: OnBadRow = "error",
    ) -> DataFrame:
        """The loss of every row, beside its key.

        Args:
            data: As in :meth:`predict`.
            key: As in :meth:`predict`.
            features: As in :meth:`fit`.
            label: As in :meth:`fit`.
            weight: A column that each row's loss is multiplied by.
            output: Name of the new column.
            batch_size: As in :meth:`predict`.
            on_bad_row: ``"error"``, or ``"skip"`` for a null score.

        Returns:
            A DataFrame with as many rows as there are: the key columns, and the loss as ``float``; of a sequence, the mean
            over its real steps; of several outputs, the weighted sum.

        Raises:
            UserError: As in :meth:`predict`; also for a model without a loss.
        """
        from fatwood.spark.inference import score

        return score(
            data,
            {"network": self.network, "loss": self.loss},
            key=key,
            features=features,
            label=label,
            weight=weight,
            transforms=self.preprocessing,
            output=output,
            batch_size=batch_size,
            on_bad_row=on_bad_row,
        )
