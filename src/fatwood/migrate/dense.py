"""Layers of vectors: dense, output and loss layers, activation and dropout.

The original keeps a weight as inputs by outputs, columns first; torch's is its transpose.
"""

from __future__ import annotations

import torch
from torch import nn

from fatwood.migrate.activations import activation_of
from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.dropout import dropout_of
from fatwood.migrate.fields import Fields, refused
from fatwood.migrate.layouts import FeaturesFirst
from fatwood.migrate.parameters import LayerPlan, ParameterSpec, Placement, row

__all__ = [
    "ElementWiseScale",
    "ParametricReLU",
    "Repeated",
    "activation",
    "dense",
    "dropout",
    "element_wise",
    "function_of",
    "linear",
    "loss_layer",
    "named",
    "parametric_relu",
    "per_step_output",
    "repeat_vector",
    "transposed",
]


def named(name: str) -> Placement:
    """The placement of an array that goes into one tensor as it is.

    Args:
        name: Of the tensor.
    """
    return lambda array: {name: array}


def transposed(name: str) -> Placement:
    """The placement of a matrix of inputs by outputs.

    Args:
        name: Of the tensor, outputs by inputs.
    """
    return lambda array: {name: array.T}


def linear(inputs: int, outputs: int, *, bias: bool = True) -> LayerPlan:
    """A plan of ``nn.Linear``.

    Args:
        inputs: Features in.
        outputs: Features out.
        bias: Whether it has one.
    """
    specs = [ParameterSpec("W", (inputs, outputs))] + [ParameterSpec("b", (outputs,))] * bias
    placements = {"W": transposed("weight"), "b": named("bias")}
    return LayerPlan(nn.Linear(inputs, outputs, bias=bias), tuple(specs), placements)


def _normalised(inputs: int, outputs: int, *, bias: bool) -> LayerPlan:
    """A dense layer with layer normalisation before the bias; the gain lies behind the bias."""
    layer = nn.Sequential()
    layer.add_module("linear", nn.Linear(inputs, outputs, bias=False))
    layer.add_module("norm", nn.LayerNorm(outputs, eps=1e-12, bias=bias))
    specs = [ParameterSpec("W", (inputs, outputs))] + [ParameterSpec("b", (outputs,))] * bias
    placements = {"W": transposed("linear.weight"), "b": named("norm.bias"), "g": named("norm.weight")}
    return LayerPlan(layer, (*specs, ParameterSpec("g", (outputs,))), placements)


def dense(conf: LayerConf) -> LayerPlan:
    """``DenseLayer`` and ``OutputLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    fields = Fields(conf)
    sizes = fields.whole("nIn", least=1), fields.whole("nOut", least=1)
    make = _normalised if fields.flag("hasLayerNorm", default=False) else linear
    core = make(*sizes, bias=fields.flag("hasBias", default=True))
    return row([("dropout", dropout_of(conf)), ("linear", core), ("activation", function_of(conf))])


def function_of(conf: LayerConf) -> nn.Module | None:
    """The activation of a layer; None for the identity, which needs no module.

    Args:
        conf: Of the layer.

    Raises:
        UserError: A function that is not known here.
    """
    function = activation_of(conf)
    return None if isinstance(function, nn.Identity) else function


def per_step_output(conf: LayerConf) -> LayerPlan:
    """``RnnOutputLayer``: a dense layer and its activation at every step.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    plan = dense(conf)
    return plan if Fields(conf).channels_last("rnnDataFormat") else plan.within(FeaturesFirst, "layer")


def loss_layer(conf: LayerConf) -> LayerPlan:
    """``LossLayer``, ``RnnLossLayer`` and ``CnnLossLayer``: an activation only, over the features.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    plan = row([("activation", activation_of(conf))])
    if conf.kind == "LossLayer" or not isinstance(plan.module, nn.Softmax):
        return plan
    last = Fields(conf).channels_last("rnnDataFormat", "format", "dataFormat")
    return plan if last else plan.within(FeaturesFirst, "layer")


def activation(conf: LayerConf) -> LayerPlan:
    """``ActivationLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: A function that is not known here.
    """
    return row([("activation", activation_of(conf))])


def dropout(conf: LayerConf) -> LayerPlan:
    """``DropoutLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: Another kind of noise.
    """
    return row([("dropout", dropout_of(conf)), ("activation", function_of(conf))])


class ElementWiseScale(nn.Module):
    """``x * weight + bias``, feature by feature.

    Args:
        features: Of a row.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scaled features.

        Args:
            x: ``[rows, features]``.
        """
        return x * self.weight + self.bias


def element_wise(conf: LayerConf) -> LayerPlan:
    """``ElementWiseMultiplicationLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    features = Fields(conf).whole("nOut", least=1)
    specs = ParameterSpec("W", (features,)), ParameterSpec("b", (features,))
    core = LayerPlan(ElementWiseScale(features), specs, {"W": named("weight"), "b": named("bias")})
    return row([("dropout", dropout_of(conf)), ("scale", core), ("activation", function_of(conf))])


class ParametricReLU(nn.Module):
    """``x`` where it is positive, ``weight * x`` elsewhere, with a weight for each place.

    Args:
        shape: Of the weights, without rows; 1 along an axis that shares them.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.weight = nn.Parameter(torch.zeros(self.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: ``[rows, *shape]``.
        """
        return torch.where(x > 0, x, self.weight * x)


def parametric_relu(conf: LayerConf) -> LayerPlan:
    """``PReLULayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    shape = conf.fields.get("inputShape")
    if not isinstance(shape, list):
        raise refused(conf, "a list as inputShape", shape)
    sizes = list(Fields(conf).sizes("inputShape", len(shape), least=1))
    for axis in conf.fields.get("sharedAxes") or []:
        if not isinstance(axis, int) or not 1 <= axis <= len(sizes):
            raise refused(conf, f"axes from 1 to {len(sizes)} as sharedAxes", axis)
        sizes[axis - 1] = 1
    spec = ParameterSpec("W", tuple(sizes))
    return LayerPlan(ParametricReLU(tuple(sizes)), (spec,), {"W": named("weight")})


class Repeated(nn.Module):
    """Each row as a sequence of equal steps.

    Args:
        steps: How many.
        features_first: Whether the output is ``[rows, features, steps]``.
    """

    def __init__(self, steps: int, *, features_first: bool = True) -> None:
        super().__init__()
        self.steps = steps
        self.features_first = features_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sequences.

        Args:
            x: ``[rows, features]``.
        """
        axis = 2 if self.features_first else 1
        return x.unsqueeze(axis).repeat_interleave(self.steps, axis)

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"steps={self.steps}, features_first={self.features_first}"


def repeat_vector(conf: LayerConf) -> LayerPlan:
    """``RepeatVector``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    fields = Fields(conf)
    first = not fields.channels_last("dataFormat")
    return LayerPlan(Repeated(fields.whole("n", 1, least=1), features_first=first))
