"""A trained network as a stage of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyspark.ml import Model
from pyspark.sql import DataFrame

from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import SchemaError
from fatwood.ml.outputs import columns_of, meaning_of
from fatwood.ml.params import ModelWords
from fatwood.ml.stage import Stage
from fatwood.model import SparkModel
from fatwood.spark.columns import named_column
from fatwood.train import AnyLoss, Fit

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TorchModel"]


class TorchModel(Stage, Model):
    """A network that adds columns of predictions to a DataFrame, in Spark ML's forms.

    A :class:`TorchEstimator` makes one, and a network that was trained elsewhere can be one as well.

    Args:
        network: Any ``torch.nn.Module`` that returns one tensor ``(B, ...)``.
        loss: What it was trained with: it tells what the outputs are, where ``predictionType`` is ``"auto"``.
        preprocessing: As in :class:`fatwood.SparkModel`, fitted.
        features: What the network is called with, where ``featuresCol`` and ``featuresCols`` cannot say it: several inputs,
            sequences, images; as in :meth:`fatwood.SparkModel.fit`.
        params: Params by name; :meth:`explainParams` tells what they mean.

    Example::

        model = TorchModel(network=net, predictionType="class", featuresCol="pixels")
        model.transform(df).select("id", "prediction", "probability")
    """

    PARTS: ClassVar[tuple[str, ...]] = ("loss", "features")

    loss: AnyLoss | None
    features: InputSpec | None
    preprocessing: Mapping[str, Transform]

    def __init__(
        self,
        *,
        network: torch.nn.Module,
        loss: AnyLoss | None = None,
        preprocessing: Transform | Mapping[str, Transform] | None = None,
        features: InputSpec | None = None,
        **params: Unpack[ModelWords],
    ) -> None:
        parts = {"network": network, "loss": loss, "preprocessing": preprocessing, "features": features}
        self._begin(parts)
        self._take(dict(params))

    def _init_params(self) -> None:
        super().__init__()
        self._fit_result: Fit | None = None

    @property
    def hasSummary(self) -> bool:
        """Whether there is a :attr:`summary`: on models that were fitted, and not on those that were loaded."""
        return self._fit_result is not None

    @property
    def summary(self) -> Fit | None:
        """History and statistics of the fit that made this model; None for a model that was loaded."""
        return self._fit_result

    @property
    def spark_model(self) -> SparkModel:
        """The same network with what :class:`fatwood.SparkModel` can do: evaluate, score, predict with its own options."""
        return SparkModel(self._need("network"), loss=self.loss, preprocessing=self.preprocessing)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        features = self._need("features") if "features" in self._missing else self._features()
        meaning = meaning_of(self.loss, *map(self.getOrDefault, ("predictionType", "activation")))
        output = f"{self.uid}__output"
        kept = self.getOrDefault(self.handleInvalid)
        predicted = self.spark_model.predict(
            dataset,
            key=dataset.columns,
            features=features,
            output=output,
            batch_size=self.getOrDefault(self.batchSize),
            on_bad_row="error" if kept == "error" else "skip",
        )
        outputs = named_column(output)
        if kept == "skip":
            predicted = predicted.where(outputs.isNotNull())
        made = columns_of(outputs.cast("array<double>"), meaning)
        names = {role: self._column(self.getParam(f"{role}Col")) for role in made}
        new = [made[role].alias(name) for role, name in names.items() if name]
        self._require_new(dataset, [name for name in names.values() if name])
        return predicted.select(*(named_column(name) for name in dataset.columns), *new)

    def _require_new(self, dataset: DataFrame, names: list[str]) -> None:
        taken = {name.lower() for name in dataset.columns}
        for name in names:
            if name.lower() in taken:
                text = f"{type(self).__name__}: expected a name for a new column, received {name!r}, which is there already"
                hint = "drop that column first, or set predictionCol, rawPredictionCol and probabilityCol to other names"
                raise SchemaError(text, hint=hint)
            taken.add(name.lower())


def fitted_model(fit: Fit, **parts: Any) -> TorchModel:
    """A model with what its fit told.

    Args:
        fit: What came of it.
        parts: Of the constructor.
    """
    model = TorchModel(**parts)
    model._fit_result = fit
    return model
