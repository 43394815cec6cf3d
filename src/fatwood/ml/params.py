"""The Params of estimator and model, in Spark ML's words."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasFeaturesCol,
    HasLabelCol,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasSeed,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from fatwood.data.inputs import InputSpec
from fatwood.errors import OptionError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FitParams", "FitWords", "ModelParams", "ModelWords", "TorchParams"]

_P = TypeVar("_P", bound=Params)


class ModelWords(TypedDict, total=False):
    """The Params of a model, as keywords."""

    featuresCol: str
    featuresCols: list[str]
    labelCol: str
    predictionCol: str
    rawPredictionCol: str
    probabilityCol: str
    predictionType: str
    activation: str
    handleInvalid: str
    batchSize: int


class FitWords(ModelWords, total=False):
    """The Params of an estimator, as keywords."""

    weightCol: str
    validationIndicatorCol: str
    epochs: int
    learningRate: float
    workers: int
    seed: int
    shuffle: bool
    accumulate: int
    clipNorm: float
    clipValue: float
    precision: str


def _one_of(name: str, *words: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value in words:
            return str(value)
        text = f"{name}: expected one of {', '.join(map(repr, words))}, received {value!r}"
        raise OptionError(text)

    return convert


class TorchParams(Params):
    """What both kinds of Params have in common: they are set by name."""

    features: InputSpec | None

    def _take(self, given: dict[str, Any]) -> None:
        """Set Params by name; None leaves one as it is.

        Raises:
            OptionError: There is no Param of a name, or the value is none for it.
        """
        for name, value in given.items():
            if not self.hasParam(name):
                near = difflib.get_close_matches(name, [param.name for param in self.params], n=1)
                text = f"{type(self).__name__}: expected names of Params, received {name!r}"
                raise OptionError(text, hint=f"did you mean {near[0]!r}?" if near else self.explainParams())
            if value is None:
                continue
            try:
                self._set(**{name: value})
            except TypeError as error:
                text = f"{type(self).__name__}: {name}: {error}"
                raise OptionError(text) from error

    def _column(self, param: Param[str]) -> str | None:
        """The name of a column; None where it is not set, or empty."""
        return (self.getOrDefault(param) or None) if self.isDefined(param) else None


class ModelParams(
    TorchParams, HasFeaturesCol, HasLabelCol, HasPredictionCol, HasRawPredictionCol, HasProbabilityCol
):
    """Of a model, and of an estimator, which hands them on."""

    featuresCols: Param[list[str]] = Param(
        Params._dummy(),
        "featuresCols",
        "columns that are put side by side in one tensor, in place of featuresCol",
        typeConverter=TypeConverters.toListString,
    )
    predictionType: Param[str] = Param(
        Params._dummy(),
        "predictionType",
        "what predictionCol holds: 'class' (the position of the largest output), 'binary' (0 or 1 of one output), 'value' (the "
        "one output), 'vector' (all of them), or 'auto': 'class' for CrossEntropyLoss, NLLLoss and MultiMarginLoss, 'binary' "
        "for BCEWithLogitsLoss and BCELoss, 'value' for other losses",
        typeConverter=_one_of("predictionType", "auto", "class", "binary", "value", "vector"),
    )
    activation: Param[str] = Param(
        Params._dummy(),
        "activation",
        "what makes probabilities of the outputs of 'class' and 'binary': 'softmax', 'sigmoid', 'exp', 'none', or 'auto': what "
        "belongs to the loss; without one that is known, softmax for 'class' and sigmoid for 'binary'",
        typeConverter=_one_of("activation", "auto", "softmax", "sigmoid", "exp", "none"),
    )
    handleInvalid: Param[str] = Param(
        Params._dummy(),
        "handleInvalid",
        "what to do with rows that have nulls, NaN or wrong lengths: 'error', 'skip' them, or 'keep' them with null as "
        "prediction (they are not trained on)",
        typeConverter=_one_of("handleInvalid", "error", "skip", "keep"),
    )
    batchSize: Param[int] = Param(
        Params._dummy(), "batchSize", "rows of a minibatch, per worker", typeConverter=TypeConverters.toInt
    )

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(
            predictionType="auto",
            activation="auto",
            handleInvalid="error",
            batchSize=32,
        )

    def setFeaturesCol(self, value: str) -> Self:
        """Set the column that the network is called with."""
        return self._set(featuresCol=value)

    def setFeaturesCols(self, value: list[str]) -> Self:
        """Set the columns that the network is called with, side by side."""
        return self._set(featuresCols=value)

    def setPredictionCol(self, value: str) -> Self:
        """Set the name of the new column of predictions."""
        return self._set(predictionCol=value)

    def setRawPredictionCol(self, value: str) -> Self:
        """Set the name of the new column of a classifier's outputs; an empty one leaves it out."""
        return self._set(rawPredictionCol=value)

    def setProbabilityCol(self, value: str) -> Self:
        """Set the name of the new column of a classifier's probabilities; an empty one leaves it out."""
        return self._set(probabilityCol=value)

    def setHandleInvalid(self, value: str) -> Self:
        """Set what becomes of rows that cannot be used."""
        return self._set(handleInvalid=value)

    def setBatchSize(self, value: int) -> Self:
        """Set the rows of a minibatch."""
        return self._set(batchSize=value)

    def _features(self) -> InputSpec:
        """What the network is called with.

        Raises:
            OptionError: It is said twice.
        """
        said = {
            "features": self.features,
            "featuresCols": self.getOrDefault(self.featuresCols) if self.isSet(self.featuresCols) else None,
            "featuresCol": self.getFeaturesCol() if self.isSet(self.featuresCol) else None,
        }
        given = {name: value for name, value in said.items() if value is not None}
        if len(given) > 1:
            text = f"{type(self).__name__}: expected one of features, featuresCols and featuresCol, received {given!r}"
            raise OptionError(text)
        return next(iter(given.values()), self.getFeaturesCol())


class FitParams(ModelParams, HasWeightCol, HasValidationIndicatorCol, HasSeed):
    """Of an estimator."""

    epochs: Param[int] = Param(
        Params._dummy(), "epochs", "passes over all rows", typeConverter=TypeConverters.toInt
    )
    learningRate: Param[float] = Param(
        Params._dummy(),
        "learningRate",
        "what the optimizer is called with as lr; not set, it is what the optimizer says itself",
        typeConverter=TypeConverters.toFloat,
    )
    workers: Param[int] = Param(
        Params._dummy(),
        "workers",
        "Spark tasks that train together; not set, as many as the cluster can run at once",
        typeConverter=TypeConverters.toInt,
    )
    shuffle: Param[bool] = Param(
        Params._dummy(),
        "shuffle",
        "whether every epoch has its own random order",
        typeConverter=TypeConverters.toBoolean,
    )
    accumulate: Param[int] = Param(
        Params._dummy(),
        "accumulate",
        "minibatches whose gradients make one optimizer step",
        typeConverter=TypeConverters.toInt,
    )
    clipNorm: Param[float] = Param(
        Params._dummy(),
        "clipNorm",
        "the largest 2-norm of all gradients together",
        typeConverter=TypeConverters.toFloat,
    )
    clipValue: Param[float] = Param(
        Params._dummy(),
        "clipValue",
        "the largest absolute value of a gradient's element",
        typeConverter=TypeConverters.toFloat,
    )
    precision: Param[str] = Param(
        Params._dummy(),
        "precision",
        "of forward and loss: 'float32', 'bfloat16' or 'float16'",
        typeConverter=_one_of("precision", "float32", "bfloat16", "float16"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(epochs=1, seed=0, shuffle=True, accumulate=1, precision="float32")

    def setLabelCol(self, value: str) -> Self:
        """Set the column that the outputs are compared with."""
        return self._set(labelCol=value)

    def setWeightCol(self, value: str) -> Self:
        """Set the column that says how much each row counts in the loss."""
        return self._set(weightCol=value)

    def setValidationIndicatorCol(self, value: str) -> Self:
        """Set the column that is true for rows that the fit is measured on, and not trained on."""
        return self._set(validationIndicatorCol=value)

    def setEpochs(self, value: int) -> Self:
        """Set the passes over all rows."""
        return self._set(epochs=value)

    def setLearningRate(self, value: float) -> Self:
        """Set what the optimizer is called with as lr."""
        return self._set(learningRate=value)

    def setWorkers(self, value: int) -> Self:
        """Set how many Spark tasks train together."""
        return self._set(workers=value)

    def setSeed(self, value: int) -> Self:
        """Set the seed of orders and of the workers' random generators."""
        return self._set(seed=value)
