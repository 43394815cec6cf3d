"""What a saved network of Deeplearning4j says of itself, read from its JSON: layers in a row, or a graph of vertices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CLASS", "LayerConf", "NetworkConf", "VertexConf", "kind_of"]

CLASS = "@class"
"""The key of a class's full name."""
_PACKAGES = ("org.deeplearning4j.nn.conf.", "org.nd4j.linalg.")


def kind_of(source: str) -> str:
    """The simple name of a class of the original; of a class of anybody else the full one, which no layer has.

    Example:
        >>> kind_of("org.deeplearning4j.nn.conf.layers.DenseLayer"), kind_of("com.acme.DenseLayer")
        ('DenseLayer', 'com.acme.DenseLayer')
    """
    return source.rpartition(".")[2] if source.startswith(_PACKAGES) else source


@dataclass(frozen=True)
class LayerConf:
    """One layer as it is configured."""

    name: str
    """Its own, or that of its vertex, or ``layer0`` and up by its place; unique in the network."""
    kind: str
    """The simple name of the original's class, such as ``DenseLayer``, ``LSTM``, ``BatchNormalization``."""
    fields: Mapping[str, Any]
    """The JSON object of the layer, such as ``kernelSize``, in the newest form: objects of a class have ``"@class"`` with its
    full name, whatever the file's age. ``nIn``, ``nOut``, ``iUpdater`` and ``iDropout`` are written so here, though the JSON
    has ``nin``, ``nout``, ``iupdater``, ``idropout``. A file of 0.7 and before, with ``"activationFunction": "relu"``, has
    ``activationFn`` here, too. Layers inside (``fwd``, ``bwd``, ``underlying``, ``layer``) are had by `inner`."""
    input_preprocessor: Mapping[str, Any] | None
    """What stands before the layer, such as ``{"kind": "CnnToFeedForwardPreProcessor", "inputHeight": 7, ...}``: the JSON
    object and the simple name of its class."""
    source: str
    """The name of its class in the JSON, for messages."""

    def inner(self, key: str) -> LayerConf | None:
        """A layer inside this one, such as ``fwd`` of a ``Bidirectional``; it has no preprocessor of its own.

        Args:
            key: Of `fields`.

        Returns:
            The layer, named as this one and the key; None where there is none.
        """
        fields = self.fields.get(key)
        if not isinstance(fields, Mapping) or not isinstance(fields.get(CLASS), str):
            return None
        source = fields[CLASS]
        return LayerConf(f"{self.name}.{key}", kind_of(source), fields, None, source)


@dataclass(frozen=True)
class VertexConf:
    """One vertex of a graph as it is configured."""

    name: str
    kind: str
    """The simple name of the original's class, such as ``LayerVertex``, ``MergeVertex``, ``ElementWiseVertex``."""
    fields: Mapping[str, Any]
    """As in `LayerConf`."""
    inputs: tuple[str, ...]
    """Names of vertices or of the graph's inputs, in the order in which the vertex takes them."""
    layer: LayerConf | None
    """Of a ``LayerVertex``."""
    preprocessor: Mapping[str, Any] | None
    """Of a ``LayerVertex`` (the same as its layer's) or a ``PreprocessorVertex``; as `LayerConf.input_preprocessor`."""
    source: str


@dataclass(frozen=True)
class NetworkConf:
    """A network as it is configured."""

    graph: bool
    """Whether it is a ``ComputationGraph``; else it is a ``MultiLayerNetwork``."""
    layers: tuple[LayerConf, ...]
    """All layers, in the order in which their parameters lie in the flat vector."""
    vertices: tuple[VertexConf, ...]
    """Of a graph, in the topological order of the original; the graph's inputs are not among them."""
    inputs: tuple[str, ...]
    """Of a graph, by name, in the order in which it takes them."""
    outputs: tuple[str, ...]
    """Of a graph, by name of vertex, in the order in which it gives them."""
    data_type: str
    """Of the parameters: ``FLOAT``, ``DOUBLE``, ``HALF`` or ``BFLOAT16``; ``FLOAT`` where the JSON does not say."""
    iteration: int
    epoch: int
    backprop: Mapping[str, Any]
    """Facts of training, as they are in the JSON: ``backpropType``, ``tbpttFwdLength``, ``tbpttBackLength``."""
