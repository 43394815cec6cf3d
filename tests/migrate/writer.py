"""Writes files as Deeplearning4j's ModelSerializer does, from known arrays; shares no code with the reader.

::

    configuration.json   as given
    coefficients.bin     one row: the parameters of all layers one after another, each in its own order
    updaterState.bin     one row
    normalizer.bin       as given, see `standardize_normalizer` and its like
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

LAYERS = "org.deeplearning4j.nn.conf.layers."
GRAPH = "org.deeplearning4j.nn.conf.graph."
_TYPES = {"f8": "DOUBLE", "f4": "FLOAT", "f2": "HALF", "i8": "LONG", "i4": "INT", "i2": "SHORT", "i1": "BYTE"}
_WRAPPERS = {  # names before 1.0.0-beta, where they differ from the class's
    "DenseLayer": "dense",
    "OutputLayer": "output",
    "RnnOutputLayer": "rnnoutput",
    "LossLayer": "loss",
    "ConvolutionLayer": "convolution",
    "Convolution1DLayer": "convolution1d",
    "SubsamplingLayer": "subsampling",
    "Subsampling1DLayer": "subsampling1d",
    "BatchNormalization": "batchNormalization",
    "LocalResponseNormalization": "localResponseNormalization",
    "EmbeddingLayer": "embedding",
    "ActivationLayer": "activation",
    "DropoutLayer": "dropout",
    "GravesLSTM": "gravesLSTM",
    "GravesBidirectionalLSTM": "gravesBidirectionalLSTM",
    "GlobalPoolingLayer": "GlobalPooling",
    "ZeroPaddingLayer": "zeroPadding",
    "ZeroPadding1DLayer": "zeroPadding1d",
}
_RECURRENT = ("Bidirectional", "LastTimeStep", "SimpleRnn", "TimeDistributed")


def _utf(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">H", len(encoded)) + encoded


def array_bytes(
    array: NDArray[Any], order: str = "c", *, mode: str = "MIXED_DATA_TYPES", kind: str = ""
) -> bytes:
    """What ``Nd4j.write`` writes; a legacy `mode` (DIRECT, HEAP, JAVACPP) has lengths of four bytes.

    Args:
        array: Any shape; bfloat16 is given as uint16 of its bits with ``kind="BFLOAT16"``.
        order: ``"c"`` or ``"f"``, of the elements in the file.
        mode: Of the buffers; LONG_SHAPE and before have the shape in ints where `mode` is a legacy one.
        kind: The name of the elements' type, where it is not that of the array.
    """
    legacy = mode in ("DIRECT", "HEAP", "JAVACPP")
    strides, step = [], 1
    for length in reversed(array.shape) if order == "c" else array.shape:
        strides.append(step)
        step *= length
    if order == "c":
        strides.reverse()
    information = [array.ndim, *array.shape, *strides, 0 if legacy else 8192, 1, ord(order)]
    shape_form, shape_kind = ("i", "INT") if legacy else ("q", "LONG")
    length_form = ">i" if legacy else ">q"
    elements = array.ravel(order="F" if order == "f" else "C")
    swapped = elements.astype(elements.dtype.newbyteorder(">"))
    return b"".join(
        [
            _utf(mode),
            struct.pack(length_form, len(information)),
            _utf(shape_kind),
            struct.pack(f">{len(information)}{shape_form}", *information),
            _utf(mode),
            struct.pack(length_form, elements.size),
            _utf(kind or _TYPES[array.dtype.str[1:]]),
            swapped.tobytes(),
        ]
    )


def flat(parameters: Sequence[NDArray[Any] | tuple[NDArray[Any], str]]) -> NDArray[Any]:
    """The row vector of all parameters: each an array (its order is "f", as most of the original's are) or (array, order)."""
    pieces = []
    for item in parameters:
        array, order = item if isinstance(item, tuple) else (item, "f")
        pieces.append(np.asarray(array).ravel(order="F" if order == "f" else "C"))
    return np.concatenate(pieces)[None, :] if pieces else np.zeros((1, 0), np.float32)


def write_network(
    path: Path | BinaryIO,
    configuration: Mapping[str, Any] | str,
    parameters: Sequence[NDArray[Any] | tuple[NDArray[Any], str]],
    updater_state: NDArray[Any] | None = None,
    normalizer: bytes | None = None,
    *,
    mode: str = "MIXED_DATA_TYPES",
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a network's file.

    Args:
        path: Of the file, or a file that is open.
        configuration: `layer_network` or `graph_network` make one; or its text.
        parameters: In the order of the flat vector: arrays as the original sees them (such as nIn x nOut), each in
            Fortran order, or (array, "c" or "f").
        updater_state: The flat updater state.
        normalizer: The content of ``normalizer.bin``.
        mode: As in `array_bytes`.
        extra: Further entries by name.
    """
    text = configuration if isinstance(configuration, str) else json.dumps(configuration, indent=2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("configuration.json", text)
        vector = flat(parameters)
        file.writestr("coefficients.bin", array_bytes(vector, mode=mode) if vector.size else b"")
        if not vector.size:
            file.writestr("noParams.marker", b"")
        if updater_state is not None:
            file.writestr("updaterState.bin", array_bytes(np.atleast_2d(updater_state), mode=mode))
        if normalizer is not None:
            file.writestr("normalizer.bin", normalizer)
        for name, content in (extra or {}).items():
            file.writestr(name, content)


def _package(kind: str) -> str:
    if kind in ("Bidirectional", "LastTimeStep", "SimpleRnn"):
        return LAYERS + "recurrent."
    if kind in ("Cropping1D", "Cropping2D"):
        return LAYERS + "convolutional."
    if kind in ("FrozenLayer", "ElementWiseMultiplicationLayer", "RepeatVector"):
        return LAYERS + "misc."
    return LAYERS


def layer(kind: str, *, activation: str | None = None, old: bool = False, **fields: Any) -> dict[str, Any]:
    """The JSON of a layer.

    Args:
        kind: The simple name of its class.
        activation: The simple name of an activation without "Activation", such as ``ReLU``.
        old: In the form before 1.0.0-beta: an object around it has the class's short name.
        fields: Further keys; ``nIn`` and ``nOut`` become ``nin`` and ``nout``, as the original writes them, and
            ``iUpdater``, ``iDropout`` likewise.
    """
    renamed = {"nIn": "nin", "nOut": "nout", "iUpdater": "iupdater", "iDropout": "idropout"}
    content = {renamed.get(key, key): value for key, value in fields.items()}
    if activation is not None:
        name = f"org.nd4j.linalg.activations.impl.Activation{activation}"
        content["activationFn"] = {activation: {}} if old else {"@class": name}
    if old:
        return {_WRAPPERS.get(kind, kind): content}
    return {"@class": _package(kind) + kind, **content}


def preprocessor(kind: str, *, old: bool = False, **fields: Any) -> dict[str, Any]:
    """The JSON of an input preprocessor, such as ``CnnToFeedForwardPreProcessor``."""
    if old:
        short = kind.removesuffix("PreProcessor")
        return {short[0].lower() + short[1:]: fields}
    return {"@class": f"org.deeplearning4j.nn.conf.preprocessor.{kind}", **fields}


def updater(kind: str, **fields: Any) -> dict[str, Any]:
    """The JSON of an updater, such as ``Adam`` with ``learningRate=0.001``."""
    return {"@class": f"org.nd4j.linalg.learning.config.{kind}", **fields}


def layer_network(
    layers: Sequence[Mapping[str, Any]],
    *,
    preprocessors: Mapping[int, Mapping[str, Any]] | None = None,
    data_type: str = "FLOAT",
    iteration: int = 0,
    epoch: int = 0,
    variables: Mapping[int, Sequence[str]] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """The configuration of a MultiLayerNetwork: layers as `layer` makes them, preprocessors by the layer they stand before."""
    return {
        "backpropType": "Standard",
        "cacheMode": "NONE",
        "confs": [
            {
                "dataType": data_type,
                "layer": dict(one),
                "miniBatch": True,
                "variables": list((variables or {}).get(i, [])),
            }
            for i, one in enumerate(layers)
        ],
        "dataType": data_type,
        "epochCount": epoch,
        "inputPreProcessors": {str(key): dict(value) for key, value in (preprocessors or {}).items()},
        "iterationCount": iteration,
        "tbpttBackLength": 20,
        "tbpttFwdLength": 20,
        **fields,
    }


def vertex(kind: str, *, old: bool = False, **fields: Any) -> dict[str, Any]:
    """The JSON of a vertex that is no layer, such as ``MergeVertex``."""
    package = GRAPH + (
        "rnn."
        if kind in ("LastTimeStepVertex", "DuplicateToTimeSeriesVertex", "ReverseTimeSeriesVertex")
        else ""
    )
    return {kind: fields} if old else {"@class": package + kind, **fields}


def layer_vertex(
    one: Mapping[str, Any], *, preprocessor: Mapping[str, Any] | None = None, old: bool = False
) -> dict[str, Any]:
    """The JSON of a ``LayerVertex``."""
    return vertex(
        "LayerVertex", old=old, layerConf={"layer": dict(one), "variables": []}, preProcessor=preprocessor
    )


def graph_network(
    vertices: Mapping[str, Mapping[str, Any]],
    vertex_inputs: Mapping[str, Sequence[str]],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    data_type: str = "FLOAT",
    iteration: int = 0,
    epoch: int = 0,
    **fields: Any,
) -> dict[str, Any]:
    """The configuration of a ComputationGraph: vertices as `vertex` and `layer_vertex` make them, and the inputs of each."""
    return {
        "backpropType": "Standard",
        "dataType": data_type,
        "epochCount": epoch,
        "iterationCount": iteration,
        "networkInputs": list(inputs),
        "networkOutputs": list(outputs),
        "vertexInputs": {name: list(names) for name, names in vertex_inputs.items()},
        "vertices": {name: dict(one) for name, one in vertices.items()},
        **fields,
    }


def standardize_normalizer(
    mean: NDArray[Any], std: NDArray[Any], *labels: NDArray[Any], order: str = "c"
) -> bytes:
    """``normalizer.bin`` of a NormalizerStandardize; `labels` are mean and standard deviation of the labels."""
    arrays = [array_bytes(np.atleast_2d(one), order) for one in (mean, std, *labels)]
    return _normalizer("STANDARDIZE") + struct.pack(">?", bool(labels)) + b"".join(arrays)


def min_max_normalizer(
    low: float, high: float, least: NDArray[Any], greatest: NDArray[Any], *labels: NDArray[Any]
) -> bytes:
    """``normalizer.bin`` of a NormalizerMinMaxScaler."""
    arrays = [array_bytes(np.atleast_2d(one)) for one in (least, greatest, *labels)]
    return _normalizer("MIN_MAX") + struct.pack(">?dd", bool(labels), low, high) + b"".join(arrays)


def image_normalizer(low: float, high: float, greatest: float) -> bytes:
    """``normalizer.bin`` of an ImagePreProcessingScaler."""
    return _normalizer("IMAGE_MIN_MAX") + struct.pack(">ddd", low, high, greatest)


def _normalizer(kind: str) -> bytes:
    return _utf("NORMALIZER") + struct.pack(">i", 1) + _utf(kind)
