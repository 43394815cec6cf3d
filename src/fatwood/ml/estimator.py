"""A network to be trained as a stage of a pipeline."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import torch
from pyspark.ml import Estimator
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import FractionalType, StructField

from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import OptionError
from fatwood.ml.model import TorchModel, fitted_model
from fatwood.ml.outputs import meaning_of
from fatwood.ml.params import FitParams, FitWords
from fatwood.ml.stage import Stage
from fatwood.model import SparkModel
from fatwood.spark.columns import find_field, named_column
from fatwood.train import AnyLoss, OptimizerFactory, SchedulerFactory, Strategy

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TorchEstimator"]

_BY_PARAMS: Final = frozenset(
    [
        "self",
        "data",
        "features",
        "label",
        "weight",
        "validation",
        "batch_size",
        "epochs",
        "workers",
        "shuffle",
        "seed",
        "on_bad_row",
        "accumulate",
        "clip_norm",
        "clip_value",
        "precision",
    ]
)
_ONE_AT_A_TIME: Final = threading.Lock()
"""A fit takes all the slots of a cluster; two at once would each wait for the other's."""


class TorchEstimator(Stage, FitParams, Estimator[TorchModel]):
    """Trains a network as :meth:`fatwood.SparkModel.fit` does; usable in a ``Pipeline``, a ``CrossValidator``, a ``TrainValidationSplit``.

    Every fit begins with the network as it was given, which stays as it is. Fits of one driver come one after another, whatever
    a validator's ``parallelism``: each uses the whole cluster, or the ``workers`` it is told.

    A label of whole numbers in a column of doubles, as ``StringIndexer`` makes one, is taken as classes where the predictions are
    classes. Saved stages hold losses and optimizers of torch, and strategies; functions of a program are given again by :meth:`give`.

    Args:
        network: Any ``torch.nn.Module`` that returns one tensor ``(B, ...)``.
        loss: As in :class:`fatwood.SparkModel`.
        optimizer: Makes an optimizer from parameters; called with ``lr=`` where ``learningRate`` is set.
        scheduler: Makes a learning-rate scheduler from the optimizer.
        strategy: How the workers train together.
        preprocessing: As in :class:`fatwood.SparkModel`; fitted anew by every fit.
        features: What the network is called with, where ``featuresCol`` and ``featuresCols`` cannot say it: several inputs,
            sequences, images; as in :meth:`fatwood.SparkModel.fit`.
        options: More arguments of :meth:`fatwood.SparkModel.fit`, such as ``callbacks`` or ``early_stopping``.
        params: Params by name; :meth:`explainParams` tells what they mean.

    Example::

        estimator = TorchEstimator(network=net, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.Adam, epochs=3)
        grid = ParamGridBuilder().addGrid(estimator.learningRate, [1e-2, 1e-3]).build()
        model = Pipeline(stages=[indexer, assembler, estimator]).fit(df)
    """

    PARTS: ClassVar[tuple[str, ...]] = ("loss", "optimizer", "scheduler", "strategy", "features", "options")

    loss: AnyLoss | None
    optimizer: OptimizerFactory | None
    scheduler: SchedulerFactory | None
    strategy: Strategy | None
    features: InputSpec | None
    preprocessing: Mapping[str, Transform]
    options: Mapping[str, Any] | None

    def __init__(
        self,
        *,
        network: torch.nn.Module,
        loss: AnyLoss | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        strategy: Strategy | None = None,
        preprocessing: Transform | Mapping[str, Transform] | None = None,
        features: InputSpec | None = None,
        options: Mapping[str, Any] | None = None,
        **params: Unpack[FitWords],
    ) -> None:
        _require_options(options)
        self._begin(
            {
                "network": network,
                "loss": loss,
                "optimizer": optimizer,
                "scheduler": scheduler,
                "strategy": strategy,
                "preprocessing": preprocessing,
                "features": features,
                "options": None if options is None else dict(options),
            }
        )
        self._take(dict(params))

    def _init_params(self) -> None:
        super().__init__()

    def setParams(self, **params: Unpack[FitWords]) -> TorchEstimator:
        """Set Params by name.

        Raises:
            OptionError: There is no Param of a name, or the value is none for it.
        """
        self._take(dict(params))
        return self

    def _fit(self, dataset: DataFrame) -> TorchModel:
        network = self._need("network")
        self._require_whole()
        said: Any = self.getOrDefault
        # How the outputs are read later belongs to the model, which may be saved without the loss.
        meaning = meaning_of(self._need("loss"), said(self.predictionType), said(self.activation))
        features = self._features()
        label = self.getLabelCol()
        training, validation = self._split(
            self._with_classes(dataset, label, classes=meaning.kind == "class")
        )
        model = SparkModel(
            copy.deepcopy(network),
            loss=self.loss,
            optimizer=self._optimizer(),
            scheduler=self.scheduler,
            strategy=self.strategy,
            preprocessing=self.preprocessing,
        )
        with _ONE_AT_A_TIME:
            fit = model.fit(
                training,
                features=features,
                label=label,
                weight=self._column(self.weightCol),
                validation=validation,
                batch_size=said(self.batchSize),
                epochs=said(self.epochs),
                workers=said(self.workers) if self.isSet(self.workers) else None,
                shuffle=said(self.shuffle),
                seed=said(self.seed),
                on_bad_row="error" if said(self.handleInvalid) == "error" else "skip",
                accumulate=said(self.accumulate),
                clip_norm=said(self.clipNorm) if self.isSet(self.clipNorm) else None,
                clip_value=said(self.clipValue) if self.isSet(self.clipValue) else None,
                precision=said(self.precision),
                **(self.options or {}),
            )
        model.reset()  # what a further fit would go on with is not kept on the disk
        fitted = fitted_model(
            fit,
            network=model.network,
            loss=self.loss,
            preprocessing=model.preprocessing,
            features=self.features,
        )
        fitted._resetUid(self.uid)
        self._copyValues(fitted)
        return fitted._set(predictionType=meaning.kind, activation=meaning.activation)

    def _optimizer(self) -> OptimizerFactory:
        factory: Any = self._need("optimizer")
        if not self.isSet(self.learningRate):
            return cast("OptimizerFactory", factory)
        try:
            parameters = inspect.signature(factory).parameters.values()
        except (TypeError, ValueError):
            parameters = ()  # type: ignore[assignment]
        if not any(each.name == "lr" or each.kind is each.VAR_KEYWORD for each in parameters):
            text = f"learningRate: expected an optimizer that is called with lr=, received {factory!r}"
            hint = "optimizer=torch.optim.Adam, or a function (parameters, lr)"
            raise OptionError(text, hint=hint)
        return partial(factory, lr=self.getOrDefault(self.learningRate))

    def _split(self, dataset: DataFrame) -> tuple[DataFrame, DataFrame | None]:
        """Rows to train on, and rows to measure on."""
        name = self._column(self.validationIndicatorCol)
        if name is None:
            return dataset, None
        chosen = F.coalesce(named_column(find_field(dataset, name).name), F.lit(False))
        return dataset.where(~chosen), dataset.where(chosen)

    def _with_classes(self, dataset: DataFrame, label: str, *, classes: bool) -> DataFrame:
        """The rows with whole numbers for classes; a label that is none is null, or an error."""
        field: StructField = find_field(dataset, label)
        if not (classes and isinstance(field.dataType, FractionalType)):
            return dataset
        column = named_column(field.name)
        otherwise: Column = F.lit(None).cast("int")
        if self.getOrDefault(self.handleInvalid) == "error":
            text = f"label column {label!r}: expected whole numbers for classes, received "
            otherwise = F.raise_error(F.concat(F.lit(text), column.cast("string"))).cast("int")
        whole = F.when(column.isNull() | (column == F.floor(column)), column.cast("int")).otherwise(otherwise)
        return dataset.withColumn(field.name, whole)


def _require_options(options: object) -> None:
    if options is None:
        return
    known = set(inspect.signature(SparkModel.fit).parameters) - _BY_PARAMS
    wrong = [name for name in options if name not in known] if isinstance(options, Mapping) else [options]
    if wrong:
        text = f"options: expected a dict of arguments of SparkModel.fit that are no Params, received {wrong[0]!r}"
        raise OptionError(text, hint=f"options can have {', '.join(sorted(known))}")
