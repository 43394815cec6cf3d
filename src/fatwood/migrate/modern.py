"""Brings the JSON of layers of all ages into the newest form.

======================  ==============================================================================================
since                   what is new
======================  ==============================================================================================
0.6                     ``lossFn``, an object, instead of ``lossFunction``
0.7.2                   ``activationFn``, an object, instead of ``activationFunction``
0.9                     ``iupdater``, an object, instead of ``updater``, ``learningRate``, ``momentum``, ``rho`` and others
1.0.0-alpha             ``idropout``, an object, instead of ``dropOut``
1.0.0-beta              ``"@class"`` in an object instead of an object around it with a short name
1.0.0-beta4             ``regularization``, a list of objects, instead of ``l1`` and ``l2``; ``useLogStd``
======================  ==============================================================================================

What an old field means in the new form is what the original's own readers of old files make of it
(``BaseNetConfigDeserializer``, ``LegacyJsonFormat``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fatwood.migrate.configuration import CLASS

__all__ = ["modern_layer", "modern_preprocessor", "modern_vertex"]

_LAYERS = "org.deeplearning4j.nn.conf.layers."
_LAYER_NAMES = {
    "autoEncoder": "AutoEncoder",
    "convolution": "ConvolutionLayer",
    "convolution1d": "Convolution1DLayer",
    "gravesLSTM": "GravesLSTM",
    "gravesBidirectionalLSTM": "GravesBidirectionalLSTM",
    "output": "OutputLayer",
    "rnnoutput": "RnnOutputLayer",
    "loss": "LossLayer",
    "dense": "DenseLayer",
    "subsampling": "SubsamplingLayer",
    "subsampling1d": "Subsampling1DLayer",
    "batchNormalization": "BatchNormalization",
    "localResponseNormalization": "LocalResponseNormalization",
    "embedding": "EmbeddingLayer",
    "activation": "ActivationLayer",
    "dropout": "DropoutLayer",
    "GlobalPooling": "GlobalPoolingLayer",
    "zeroPadding": "ZeroPaddingLayer",
    "zeroPadding1d": "ZeroPadding1DLayer",
    "ElementWiseMult": "ElementWiseMultiplicationLayer",
}
_SAME_NAMES = (
    "LSTM CenterLossOutputLayer VariationalAutoencoder FrozenLayer Upsampling2D Yolo2OutputLayer RnnLossLayer "
    "CnnLossLayer Bidirectional SimpleRnn MaskLayer MaskZeroLayer Cropping1D Cropping2D"
)
_KNOWN_LAYERS = {**_LAYER_NAMES, **{name: name for name in _SAME_NAMES.split()}}
_VERTICES = [
    "ElementWiseVertex",
    "MergeVertex",
    "SubsetVertex",
    "LayerVertex",
    "LastTimeStepVertex",
    "ReverseTimeSeriesVertex",
    "DuplicateToTimeSeriesVertex",
    "PreprocessorVertex",
    "StackVertex",
    "UnstackVertex",
    "L2Vertex",
    "ScaleVertex",
    "L2NormalizeVertex",
]
_PREPROCESSORS = [
    "cnnToFeedForward",
    "cnnToRnn",
    "composableInput",
    "feedForwardToCnn",
    "feedForwardToRnn",
    "rnnToFeedForward",
    "rnnToCnn",
]
_ACTIVATIONS = {
    name.lower(): name
    for name in [
        "Cube",
        "ELU",
        "HardSigmoid",
        "HardTanH",
        "Identity",
        "LReLU",
        "RationalTanh",
        "RectifiedTanh",
        "SELU",
        "Swish",
        "ReLU",
        "ReLU6",
        "RReLU",
        "Sigmoid",
        "Softmax",
        "SoftPlus",
        "SoftSign",
        "TanH",
        "GELU",
        "Mish",
    ]
} | {"leakyrelu": "LReLU"}
_LOSSES = {
    "MCXENT": "LossMCXENT",
    "MSE": "LossMSE",
    "NEGATIVELOGLIKELIHOOD": "LossNegativeLogLikelihood",
    "SQUARED_LOSS": "LossL2",
    "XENT": "LossBinaryXENT",
}
_CASES = {"nin": "nIn", "nout": "nOut", "iupdater": "iUpdater", "idropout": "iDropout"}
_INNER = ("fwd", "bwd", "underlying", "layer")


def modern_layer(state: Mapping[str, Any], conf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a layer in the newest form, its class under ``"@class"``.

    Args:
        state: The JSON object of the layer, or the one around it.
        conf: The one that holds the layer: it knows ``variables``, and in old files ``useDropConnect``.

    Returns:
        A new object; ``"@class"`` is missing where the JSON has none.
    """
    source, content = _unwrapped(state, _KNOWN_LAYERS, _LAYERS)
    fields = {_CASES.get(name, name): value for name, value in content.items()}
    if source is not None:
        fields[CLASS] = source
    for name in _INNER:
        if isinstance(fields.get(name), Mapping):
            fields[name] = modern_layer(fields[name], {})
    for name in ("activationFn", "gateActivationFn", "recurrentActivationFn"):
        if isinstance(fields.get(name), Mapping):
            fields[name] = _activation(fields[name])
    if fields.get("activationFn") is None and isinstance(fields.get("activationFunction"), str):
        fields["activationFn"] = _activation({fields["activationFunction"]: {}})
    if isinstance(fields.get("lossFn"), Mapping) and CLASS not in fields["lossFn"]:
        fields["lossFn"] = _modern_loss(fields["lossFn"])
    elif fields.get("lossFn") is None and fields.get("lossFunction") in _LOSSES:
        fields["lossFn"] = {CLASS: f"org.nd4j.linalg.lossfunctions.impl.{_LOSSES[fields['lossFunction']]}"}
    _add_updater(fields)
    _add_dropout(fields, conf)
    _add_regularization(fields)
    _add_form_of_variance(fields, conf)
    return fields


def modern_preprocessor(state: Any) -> dict[str, Any] | None:
    """The fields of a preprocessor with its class under ``"@class"``; None where there is none."""
    if not isinstance(state, Mapping):
        return None
    names = {name: f"{name[0].upper()}{name[1:]}PreProcessor" for name in _PREPROCESSORS}
    source, content = _unwrapped(state, names, "org.deeplearning4j.nn.conf.preprocessor.")
    return {**content, CLASS: source}


def modern_vertex(state: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a vertex with its class under ``"@class"``."""
    source, content = _unwrapped(
        state, {name: name for name in _VERTICES}, "org.deeplearning4j.nn.conf.graph."
    )
    return {**content, CLASS: source}


def _unwrapped(
    state: Mapping[str, Any], names: Mapping[str, str], package: str
) -> tuple[str | None, Mapping[str, Any]]:
    """The name of an object's class and what it holds: it says so itself, or the one around it does."""
    if isinstance(state.get(CLASS), str):
        return state[CLASS], state
    if len(state) == 1:
        ((name, content),) = state.items()
        if isinstance(content, Mapping):
            return package + names[name] if name in names else name, content
    return None, state


def _activation(state: Mapping[str, Any]) -> Mapping[str, Any]:
    if CLASS in state or len(state) != 1:
        return state
    ((name, content),) = state.items()
    known = _ACTIVATIONS.get(name.lower())
    source = name if known is None else f"org.nd4j.linalg.activations.impl.Activation{known}"
    return {**(content if isinstance(content, Mapping) else {}), CLASS: source}


def _modern_loss(state: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(state) != 1:
        return state
    ((name, content),) = state.items()
    fields = content if isinstance(content, Mapping) else {}
    return {**fields, CLASS: f"org.nd4j.linalg.lossfunctions.impl.Loss{name}"}


def _add_updater(fields: dict[str, Any]) -> None:
    """``iUpdater`` of a file before 0.9."""
    name = fields.get("updater")
    if fields.get("iUpdater") is not None or not isinstance(name, str):
        return

    def number(key: str, otherwise: float) -> float:
        value = fields.get(key)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if usable and value is not None else otherwise

    learning_rate = {"learningRate": number("learningRate", 0.1)}
    moments = {"beta1": number("adamMeanDecay", 0.9), "beta2": number("adamVarDecay", 0.999)}
    small, larger = ({"epsilon": number("epsilon", default)} for default in (1e-8, 1e-6))
    known: dict[str, tuple[str, dict[str, float]]] = {
        "SGD": ("Sgd", learning_rate),
        "ADAM": ("Adam", {**learning_rate, **moments, **small}),
        "ADAMAX": ("AdaMax", {**learning_rate, **moments, **small}),
        "ADADELTA": ("AdaDelta", {"rho": number("rho", 0.95), **larger}),
        "NESTEROVS": ("Nesterovs", {**learning_rate, "momentum": number("momentum", 0.9)}),
        "NADAM": ("Nadam", {**learning_rate, **moments, **small}),
        "ADAGRAD": ("AdaGrad", {**learning_rate, **larger}),
        "RMSPROP": ("RmsProp", {**learning_rate, "rmsDecay": number("rmsDecay", 0.95), **small}),
        "NONE": ("NoOp", {}),
    }
    kind, options = known.get(name, (name, {}))
    fields["iUpdater"] = {CLASS: f"org.nd4j.linalg.learning.config.{kind}", **options}


def _add_dropout(fields: dict[str, Any], conf: Mapping[str, Any]) -> None:
    """``iDropout`` of a file before 1.0.0-alpha: the probability that an input stays."""
    kept = fields.get("dropOut")
    if (
        fields.get("iDropout") is None
        and isinstance(kept, float)
        and kept > 0
        and not conf.get("useDropConnect")
    ):
        fields["iDropout"] = {CLASS: "org.deeplearning4j.nn.conf.dropout.Dropout", "p": kept}


def _add_regularization(fields: dict[str, Any]) -> None:
    """``regularization`` and ``regularizationBias`` of a file before 1.0.0-beta4."""
    package = "org.nd4j.linalg.learning.regularization."
    for name, suffix in (("regularization", ""), ("regularizationBias", "Bias")):
        l1, l2 = fields.get(f"l1{suffix}"), fields.get(f"l2{suffix}")
        if fields.get(name) is not None or (l1 is None and l2 is None):
            continue
        found: list[dict[str, Any]] = []
        if isinstance(l1, float) and l1 > 0:
            found.append({CLASS: f"{package}L1Regularization", "l1": l1})
        if isinstance(l2, float) and l2 > 0:
            found.append({CLASS: f"{package}WeightDecay", "coeff": l2, "applyLR": False})
        fields[name] = found


def _add_form_of_variance(fields: dict[str, Any], conf: Mapping[str, Any]) -> None:
    """``useLogStd`` of batch normalisation: the names of the layer's parameters say it, whatever the field says."""
    if str(fields.get(CLASS)).rpartition(".")[2] == "BatchNormalization":
        names = conf.get("variables")
        if isinstance(names, list) and ("var" in names or "log10stdev" in names):
            fields["useLogStd"] = "var" not in names
        fields.setdefault("useLogStd", False)
