"""Layers for the tests: configurations by hand, plans filled with random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tests.migrate.formulas import Array

from fatwood.migrate.configuration import LayerConf, VertexConf
from fatwood.migrate.layers import LayerPlan, layer_module

_ACTIVATION = "org.nd4j.linalg.activations.impl.Activation"


def function(name: str, **fields: Any) -> dict[str, Any]:
    return {"@class": _ACTIVATION + name, **fields}


def loss(name: str, **fields: Any) -> dict[str, Any]:
    return {"@class": f"org.nd4j.linalg.lossfunctions.impl.Loss{name}", **fields}


def keep(probability: float, kind: str = "Dropout") -> dict[str, Any]:
    return {"@class": f"org.deeplearning4j.nn.conf.dropout.{kind}", "p": probability, "pSchedule": None}


def layer(
    kind: str, activation: str | None = None, before: dict[str, Any] | None = None, **fields: Any
) -> LayerConf:
    """A layer named ``it``, with a preprocessor before it where one is given."""
    if activation is not None:
        fields["activationFn"] = function(activation)
    return LayerConf("it", kind, fields, before, f"org.deeplearning4j.nn.conf.layers.{kind}")


def inside(kind: str, activation: str | None = None, **fields: Any) -> dict[str, Any]:
    """A layer in a field of another."""
    conf = layer(kind, activation, **fields)
    return {"@class": conf.source, **conf.fields}


def vertex(kind: str, *, preprocessor: dict[str, Any] | None = None, **fields: Any) -> VertexConf:
    source = f"org.deeplearning4j.nn.conf.graph.{kind}"
    return VertexConf("it", kind, fields, ("in",), None, preprocessor, source)


def filled(conf: LayerConf, seed: int = 0) -> tuple[torch.nn.Module, dict[str, Array]]:
    """A layer's module in float64 and evaluation mode, and the random arrays that it holds, in the original's shapes."""
    plan = layer_module(conf)
    return fill(plan, seed)


def fill(plan: LayerPlan, seed: int = 0) -> tuple[torch.nn.Module, dict[str, Array]]:
    random = np.random.default_rng(seed)
    arrays = {spec.key: 0.5 * random.standard_normal(spec.shape) for spec in plan.parameters}
    for key in arrays:
        if key == "var":
            arrays[key] = np.abs(arrays[key]) + 0.1
    plan.module.double()
    plan.load(arrays)
    return plan.module.eval(), arrays


def numbers(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def output(module: torch.nn.Module, *inputs: Array, **options: Any) -> Array:
    with torch.no_grad():
        result = module(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs), **options)
    return result.numpy()


def close(received: Array, expected: Array) -> None:
    """Within 1e-6, and of equal shape."""
    assert received.shape == expected.shape
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-6)
