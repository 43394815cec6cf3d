"""What a model does with rows without training on them: evaluate, predict, score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fatwood.data import Batch, OnBadRow
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.train import AnyLoss
from fatwood.train.device import Asked

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from fatwood.spark.udf import Returns

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
        metrics: Any = None,
        *,
        features: InputSpec | None = None,
        label: InputSpec | None = None,
        weight: str | None = None,
        by: str | Sequence[str] | None = None,
        activation: str | Callable[[torch.Tensor], torch.Tensor] | None = "auto",
        batch_size: int = 64,
        workers_per_node: int | None = None,
        device: Asked = "auto",
        on_bad_row: OnBadRow = "error",
    ) -> Any:
        """Evaluate the network on rows, in their own partitions, in one pass whatever is asked for.

        Args:
            data: The rows, of any form that :meth:`fit` takes.
            metrics: What to measure: a report of :mod:`fatwood.evaluation`, a metric of torchmetrics, a collection or a list
                of these, or a dict of them by name. With several labels each output is measured so, or each its own way by a dict
                that has the labels' names (or positions) as keys. Exact curves keep every score; ``bins=`` bounds them.
            features: As in :meth:`fit`.
            label: As in :meth:`fit`.
            weight: A column that says how much each row counts, in the loss and in every report; not with metrics of
                torchmetrics, which weigh all rows alike.
            by: A column or columns of single values: each group of rows that are equal in them is evaluated by itself. At
                most 10,000 groups.
            activation: What makes probabilities of outputs ``(B, ...)`` for the `metrics`, never for the loss: ``"softmax"``,
                ``"sigmoid"``, ``"exp"``, a function, or None. ``"auto"`` goes by the loss: softmax for ``CrossEntropyLoss``, sigmoid for
                ``BCEWithLogitsLoss``, exp for ``NLLLoss``, else none.
            batch_size: Rows per forward pass; changes speed and memory only.
            workers_per_node: As in :meth:`predict`.
            device: As in :meth:`predict`.
            on_bad_row: As in :meth:`fit`.

        Returns:
            Without `metrics`, for integer labels and an output ``(B, classes)`` a :class:`Classification` with accuracy, loss (NaN
            for a model without one) and confusion matrix, else a :class:`Loss`. With them :class:`fatwood.evaluation.Reports`, by name: that
            of the dict, or the kind of report, or the metric's class in snake case. Rows whose label the loss ignores
            (``ignore_index``) are not counted. Where labels are sequences, each real step counts as a row. With several labels a
            dict of these by output, and ``"loss"`` where one function is the loss of all.
            With `by` a dict of these by the column's value, or a tuple for a list of columns; null is None. A group
            without a usable row is left out.

        Raises:
            UserError: Something the caller can change: a column, a row (with its partition and number), the network.
            ClusterError: The Spark job failed.
        """
        from fatwood.spark.evaluation import evaluate

        return evaluate(
            data,
            {"network": self.network, "loss": self.loss},
            metrics,
            features=features,
            label=label,
            weight=weight,
            by=by,
            activation=activation,
            transforms=self.preprocessing,
            batch_size=batch_size,
            workers_per_node=workers_per_node,
            device=device,
            on_bad_row=on_bad_row,
        )

    def mean_score(
        self,
        data: Any,
        *,
        features: InputSpec | None = None,
        label: InputSpec | None = None,
        weight: str | None = None,
        batch_size: int = 64,
        workers_per_node: int | None = None,
        device: Asked = "auto",
        on_bad_row: OnBadRow = "error",
    ) -> float:
        """The mean loss over all rows: one number to compare models by.

        Args:
            data: As in :meth:`evaluate`.
            features: As in :meth:`fit`.
            label: As in :meth:`fit`.
            weight: A column that says how much each row counts.
            batch_size: As in :meth:`evaluate`.
            workers_per_node: As in :meth:`predict`.
            device: As in :meth:`predict`.
            on_bad_row: As in :meth:`fit`.

        Returns:
            The mean over rows, or real steps, by what each weighs (its sample weight times that of its class); of several
            outputs, the weighted sum of their means.

        Raises:
            UserError: As in :meth:`evaluate`; also for a model without a loss.
            ClusterError: The Spark job failed.
        """
        from fatwood.spark.evaluation import mean_score

        return mean_score(
            data,
            {"network": self.network, "loss": self.loss},
            features=features,
            label=label,
            weight=weight,
            transforms=self.preprocessing,
            batch_size=batch_size,
            workers_per_node=workers_per_node,
            device=device,
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
        returns: str | Sequence[str] = "output",
        activation: str | Callable[[torch.Tensor], torch.Tensor] | None = "auto",
        scalar: bool = False,
        function: Callable[[Any, Batch], Any] | None = None,
        batch_size: int = 64,
        workers_per_node: int | None = None,
        device: Asked = "auto",
        on_bad_row: OnBadRow = "error",
    ) -> DataFrame:
        """The network's output for every row, beside its key.

        Args:
            data: The rows, of any form that :meth:`fit` takes, read lazily, when the result is evaluated; or a streaming
                DataFrame.
            key: Column or columns of any type, passed through untouched. Minibatches have no columns: without a key their
                rows are told by ``partition`` or ``file``, and ``row``.
            features: As in :meth:`fit`.
            output: Name of the new column.
            outputs: For a network that returns several tensors: the names of those wanted, from a dict, or how many
                there are in a tuple. Each has a column ``{output}_{its name or position}``. With `function`, the same of what
                that returns.
            returns: What of each output, one or several of ``"output"`` (what the network returns, as it is), ``"class"`` (the
                most probable one, the first of equals) and ``"probability"`` (of that class). Their columns are called
                ``{output}``, ``{output}_class`` and ``{output}_probability``. Classes need outputs ``(B, classes)``, or one number a
                row, the probability of class 1.
            activation: What makes probabilities of outputs ``(B, ...)``, for these two columns alone: ``"softmax"``,
                ``"sigmoid"``, ``"exp"``, a function, None for outputs that are probabilities; ``"auto"`` is what belongs to the model's loss.
            scalar: Whether an output is one number a row, and its column ``float`` and no array.
            function: Called with what the network returned and the minibatch (a :class:`~fatwood.data.Batch`), returns what
                is predicted, ``(B, ...)``: embeddings, a reconstruction's error.
            batch_size: Rows per forward pass; changes speed and memory only. Where a minibatch does not fit into memory, a task
                goes on with half as many rows, once.
            workers_per_node: How many tasks of a host may be in a forward pass at a time; None for all that Spark starts.
            device: Where the network is called: ``"cpu"``; ``"cuda"``, the GPU that Spark gave the task, or one of the machine's where Spark
                knows of none; ``"auto"``, a GPU where there is one. Outputs come back to the host before anything is done with them.
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
            loss=self.loss,
            key=key,
            features=features,
            transforms=self.preprocessing,
            output=output,
            outputs=outputs,
            returns=returns,
            activation=activation,
            scalar=scalar,
            function=function,
            batch_size=batch_size,
            workers_per_node=workers_per_node,
            device=device,
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
        regularization: Callable[[torch.nn.Module], torch.Tensor | float] | None = None,
        batch_size: int = 64,
        workers_per_node: int | None = None,
        device: Asked = "auto",
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
            regularization: Called with the network, returns what is added to each row's score, such as
                ``lambda net: 1e-4 * sum(p.square().sum() for p in net.parameters())``.
            batch_size: As in :meth:`predict`.
            workers_per_node: As in :meth:`predict`.
            device: As in :meth:`predict`.
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
            regularization=regularization,
            batch_size=batch_size,
            workers_per_node=workers_per_node,
            device=device,
            on_bad_row=on_bad_row,
        )

    def udf(
        self,
        *,
        returns: Returns = "array<float>",
        shape: tuple[int, ...] | None = None,
        activation: str | Callable[[torch.Tensor], torch.Tensor] | None = "auto",
        batch_size: int = 64,
        workers_per_node: int | None = None,
        device: Asked = "auto",
        on_bad_row: OnBadRow = "error",
    ) -> Any:
        """The network as a function of columns, for ``select``, for SQL and for streams.

        It is called with the columns of one tensor, side by side: numbers, or arrays of them. Sequences, text and several
        tensors are for :meth:`predict`.

            digit = model.udf(returns="class")
            df.select("id", digit("pixels"))
            spark.udf.register("digit", digit)
            spark.sql("SELECT id, digit(pixels) FROM images")

        Args:
            returns: ``"array<float>"``, an output, flattened; ``"float"``, an output of one number a row; ``"class"`` (an int), or
                ``"probability"`` of that class (a double), as :meth:`predict` makes them.
            shape: Of one row as the network takes it; by default ``(numbers,)``, and ``()`` for one number.
            activation: As in :meth:`predict`.
            batch_size: As in :meth:`predict`.
            workers_per_node: As in :meth:`predict`.
            device: As in :meth:`predict`.
            on_bad_row: ``"error"``, or ``"skip"`` for null.

        Returns:
            A function of Spark's, which uses the parameters that the network has now. It belongs to the session that is
            active now.

        Raises:
            UserError: As in :meth:`predict`.
        """
        from fatwood.spark.udf import udf

        return udf(
            self.network,
            loss=self.loss,
            transforms=self.preprocessing,
            returns=returns,
            shape=shape,
            activation=activation,
            batch_size=batch_size,
            workers_per_node=workers_per_node,
            device=device,
            on_bad_row=on_bad_row,
        )
