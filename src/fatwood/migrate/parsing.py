"""Reads ``configuration.json``: the layers of a MultiLayerNetwork, or the vertices of a ComputationGraph in their order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from fatwood.errors import UserError
from fatwood.migrate.configuration import CLASS, LayerConf, NetworkConf, VertexConf, kind_of
from fatwood.migrate.modern import modern_layer, modern_preprocessor, modern_vertex
from fatwood.migrate.ordering import topological_order

__all__ = ["parse_configuration"]

_MAX_LAYERS = 10_000
_BACKPROP = ("backpropType", "tbpttFwdLength", "tbpttBackLength")


def parse_configuration(text: bytes) -> NetworkConf:
    """What a network's JSON says.

    Args:
        text: Of ``configuration.json``, written by any version from 0.5 on.

    Raises:
        UserError: It is no configuration of a network, or one that nobody could compute.
    """
    try:
        state = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        problem = f"expected JSON, received {type(error).__name__}: {error}"
        raise _wrong(problem) from error
    try:
        if isinstance(state, dict) and isinstance(state.get("confs"), list):
            _require_few(len(state["confs"]))
            return _layer_network(state)
        if isinstance(state, dict) and isinstance(state.get("vertices"), dict):
            _require_few(len(state["vertices"]))
            return _graph_network(state)
    except RecursionError as error:
        problem = "expected layers, received layers in layers without end"
        raise _wrong(problem) from error
    received = sorted(state)[:8] if isinstance(state, dict) else type(state).__name__
    problem = f"expected 'confs' (a MultiLayerNetwork) or 'vertices' (a ComputationGraph), received {received!r:.200}"
    raise _wrong(problem)


def _require_few(count: int) -> None:
    if count > _MAX_LAYERS:
        problem = f"expected at most {_MAX_LAYERS} layers or vertices, received {count}"
        raise _wrong(problem)


def _layer_network(state: dict[str, Any]) -> NetworkConf:
    preprocessors = state.get("inputPreProcessors") or {}
    if not isinstance(preprocessors, dict):
        problem = f"inputPreProcessors: expected an object, received {preprocessors!r:.80}"
        raise _wrong(problem)
    layers: list[LayerConf] = []
    for i, conf in enumerate(state["confs"]):
        layers.append(_layer(conf, f"layer{i}", preprocessors.get(str(i)), named=None))
    names = Counter(layer.name for layer in layers)
    unique = [
        layer if names[layer.name] == 1 else _renamed(layer, f"layer{i}") for i, layer in enumerate(layers)
    ]
    if len({layer.name for layer in unique}) < len(unique):
        problem = f"expected layers of different names, received {sorted(names)!r:.200}"
        raise _wrong(problem)
    return NetworkConf(
        graph=False, layers=tuple(unique), vertices=(), inputs=(), outputs=(), **_facts(state, state["confs"])
    )


def _graph_network(state: dict[str, Any]) -> NetworkConf:
    inputs = _names(state.get("networkInputs"), "networkInputs")
    outputs = _names(state.get("networkOutputs"), "networkOutputs")
    edges = state.get("vertexInputs")
    if not isinstance(edges, dict):
        problem = f"vertexInputs: expected an object, received {edges!r:.80}"
        raise _wrong(problem)
    sources = {
        name: _names(edges.get(name) or [], f"vertexInputs of {name!r:.80}") for name in state["vertices"]
    }
    order = topological_order(inputs, sources, state.get("topologicalOrderStr"))
    vertices = tuple(_vertex(name, state["vertices"][name], sources[name]) for name in order)
    missing = [name for name in outputs if name not in sources]
    if missing:
        problem = f"networkOutputs: expected names of vertices, received {missing!r:.200}"
        raise _wrong(problem)
    return NetworkConf(
        graph=True,
        layers=tuple(vertex.layer for vertex in vertices if vertex.layer is not None),
        vertices=vertices,
        inputs=inputs,
        outputs=outputs,
        **_facts(state, [state.get("defaultConfiguration")]),
    )


def _vertex(name: str, state: Any, inputs: tuple[str, ...]) -> VertexConf:
    if not isinstance(state, Mapping):
        problem = f"vertex {name!r:.80}: expected an object, received {state!r:.80}"
        raise _wrong(problem)
    fields = modern_vertex(state)
    source = fields.get(CLASS)
    if not isinstance(source, str):
        problem = f"vertex {name!r:.80}: expected the name of its class, received {state!r:.80}"
        raise _wrong(problem)
    kind = kind_of(source)
    preprocessor = _preprocessor(fields.get("preProcessor"))
    layer = None
    if kind == "LayerVertex":
        layer = _layer(fields.get("layerConf"), name, fields.get("preProcessor"), named=name)
    return VertexConf(name, kind, fields, inputs, layer, preprocessor, source)


def _layer(conf: Any, default: str, preprocessor: Any, *, named: str | None) -> LayerConf:
    """A layer of what stands around it; `named` is the name it must have."""
    state = conf.get("layer") if isinstance(conf, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(conf, Mapping):
        problem = f"layer {default!r:.80}: expected an object with 'layer', received {conf!r:.80}"
        raise _wrong(problem)
    fields = modern_layer(state, conf)
    source = fields.get(CLASS)
    if not isinstance(source, str):
        problem = f"layer {default!r:.80}: expected the name of its class, received {state!r:.80}"
        raise _wrong(problem)
    own = fields.get("layerName")
    name = named or (own if isinstance(own, str) and own else default)
    return LayerConf(name, kind_of(source), fields, _preprocessor(preprocessor), source)


def _renamed(layer: LayerConf, name: str) -> LayerConf:
    return LayerConf(name, layer.kind, layer.fields, layer.input_preprocessor, layer.source)


def _preprocessor(state: Any) -> Mapping[str, Any] | None:
    fields = modern_preprocessor(state)
    return None if fields is None else {**fields, "kind": kind_of(str(fields.get(CLASS)))}


def _facts(state: Mapping[str, Any], confs: list[Any]) -> dict[str, Any]:
    """What layer networks and graphs say alike; before 0.9 the count of iterations is beside the first layer."""
    first = confs[0] if confs and isinstance(confs[0], Mapping) else {}
    data_type = state.get("dataType", first.get("dataType"))
    return {
        "data_type": data_type if isinstance(data_type, str) else "FLOAT",
        "iteration": _count(state.get("iterationCount", first.get("iterationCount", 0)), "iterationCount"),
        "epoch": _count(state.get("epochCount", 0), "epochCount"),
        "backprop": {name: state[name] for name in _BACKPROP if name in state},
    }


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        problem = f"{name}: expected a count, received {value!r:.80}"
        raise _wrong(problem)
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        problem = f"{where}: expected a list of names, received {value!r:.80}"
        raise _wrong(problem)
    return tuple(value)


def _refuse_constant(name: str) -> NoReturn:
    text = f"the number {name}"
    raise ValueError(text)


def _wrong(problem: str) -> UserError:
    hint = "pass a file that ModelSerializer.writeModel or save(File) of Deeplearning4j wrote, unchanged"
    return UserError(f"configuration.json: {problem}", hint=hint)
