"""Layers that run over sequences, and wrappers around them.

The original keeps the gates of an LSTM in the order candidate, forget, output, input, as columns; torch in the order input, forget,
candidate, output, as rows, with two biases, of which the second stays zero here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fatwood.migrate.activations import activation_of
from fatwood.migrate.cells import GatedLSTM, SimpleRecurrence
from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.context import Context, Contextual, mask_for
from fatwood.migrate.dense import named, transposed
from fatwood.migrate.dropout import dropout_of
from fatwood.migrate.fields import Fields, refused
from fatwood.migrate.parameters import LayerPlan, ParameterSpec, Placement, row

__all__ = ["Recurrent", "graves_bidirectional", "graves_lstm", "lstm", "simple_rnn"]

_GATES = [3, 1, 0, 2]  # the original's blocks in torch's order
_NOTE = "the second bias of torch's layer is zero and frozen: the original has one"


class Recurrent(Contextual):
    """Runs a recurrent layer over sequences and gives its output of every step.

    At a step that is not real, output and state are zero, as in the original; so a sequence may be padded at either end.

    Args:
        layer: Takes ``[rows, steps, features]`` and a state, gives outputs and the new state, as ``nn.LSTM`` with ``batch_first``.
        features_first: Whether sequences are ``[rows, features, steps]``.
    """

    def __init__(self, layer: nn.Module, *, features_first: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.features_first = features_first

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """The outputs.

        Args:
            x: The sequences.
            context: Of the network's call.
        """
        steps = x.transpose(1, 2) if self.features_first else x
        mask = mask_for(context, steps.shape[0], steps.shape[1])
        outputs = self.layer(steps)[0] if mask is None else self._masked(steps, mask.to(steps.dtype))
        return outputs.transpose(1, 2) if self.features_first else outputs

    def _masked(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        state: Any = None
        outputs = []
        for t in range(steps.shape[1]):
            real = mask[:, t, None]  # [rows, 1]
            output, state = self.layer(steps[:, t : t + 1], state)
            state = tuple(part * real for part in state) if isinstance(state, tuple) else state * real
            outputs.append(output * real[:, None])
        return torch.cat(outputs, 1)

    def extra_repr(self) -> str:
        """Whether features come first."""
        return f"features_first={self.features_first}"


def _facts(conf: LayerConf) -> tuple[int, int, Callable[[nn.Module], nn.Module]]:
    fields = Fields(conf)
    first = not fields.channels_last("rnnDataFormat")

    def wrap(layer: nn.Module) -> nn.Module:
        return Recurrent(layer, features_first=first)

    return fields.whole("nIn", least=1), fields.whole("nOut", least=1), wrap


def _gates(name: str) -> Placement:
    """The placement of a matrix of inputs by four blocks of units in torch's LSTM."""

    def place(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        blocks = array.reshape(array.shape[0], 4, -1)[:, _GATES]
        return {name: blocks.reshape(array.shape[0], -1).T}

    return place


def _gate_bias(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"bias_ih_l0": array.reshape(4, -1)[_GATES].reshape(-1)}


def _one_bias(layer: nn.RNNBase) -> None:
    bias = layer.get_parameter("bias_hh_l0")
    with torch.no_grad():
        bias.zero_()
    bias.requires_grad_(False)


def lstm(conf: LayerConf) -> LayerPlan:
    """``LSTM``: torch's where its functions are tanh and sigmoid.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    inputs, units, wrap = _facts(conf)
    functions = activation_of(conf), _gate(conf)
    specs = (
        ParameterSpec("W", (inputs, 4 * units)),
        ParameterSpec("RW", (units, 4 * units)),
        ParameterSpec("b", (4 * units,)),
    )
    if isinstance(functions[0], nn.Tanh) and isinstance(functions[1], nn.Sigmoid):
        module = nn.LSTM(inputs, units, batch_first=True)
        _one_bias(module)
        placements = {"W": _gates("weight_ih_l0"), "RW": _gates("weight_hh_l0"), "b": _gate_bias}
        plan = LayerPlan(module, specs, placements, (_NOTE,))
    else:
        own = GatedLSTM(inputs, units, *functions)
        placements = {
            "W": transposed("input.weight"),
            "RW": transposed("recurrent.weight"),
            "b": named("input.bias"),
        }
        plan = LayerPlan(own, specs, placements)
    return row([("dropout", dropout_of(conf, 2)), ("recurrent", plan.within(wrap, "layer"))])


def _gate(conf: LayerConf) -> nn.Module:
    """Sigmoid where the configuration has none, which is the original's default."""
    return (
        nn.Sigmoid()
        if conf.fields.get("gateActivationFn") is None
        else activation_of(conf, "gateActivationFn")
    )


def _peephole_plan(conf: LayerConf) -> LayerPlan:
    inputs, units, wrap = _facts(conf)
    module = GatedLSTM(inputs, units, activation_of(conf), _gate(conf), peepholes=True)
    specs = (
        ParameterSpec("W", (inputs, 4 * units)),
        ParameterSpec("RW", (units, 4 * units + 3)),
        ParameterSpec("b", (4 * units,)),
    )

    def place(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {"recurrent.weight": array[:, : 4 * units].T, "peephole": np.transpose(array[:, 4 * units :])}

    placements: dict[str, Placement] = {
        "W": transposed("input.weight"),
        "RW": place,
        "b": named("input.bias"),
    }
    return LayerPlan(module, specs, placements).within(wrap, "layer")


def graves_lstm(conf: LayerConf) -> LayerPlan:
    """``GravesLSTM``, with peepholes: the last three columns of ``RW`` are those of forget, output and input gate.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    return row([("dropout", dropout_of(conf, 2)), ("recurrent", _peephole_plan(conf))])


def graves_bidirectional(conf: LayerConf, join: Callable[[LayerPlan, LayerPlan], LayerPlan]) -> LayerPlan:
    """``GravesBidirectionalLSTM``: the sum of two with peepholes.

    Args:
        conf: Of the layer.
        join: Makes one plan of both directions'.

    Raises:
        UserError: An option that is not known here.
    """
    forward, backward = _peephole_plan(conf), _peephole_plan(conf)
    plan = join(forward.renamed("", lambda key: key + "F"), backward.renamed("", lambda key: key + "B"))
    return row([("dropout", dropout_of(conf, 2)), ("recurrent", plan)])


def simple_rnn(conf: LayerConf) -> LayerPlan:
    """``SimpleRnn``: torch's where its function is tanh or ReLU.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    fields = Fields(conf)
    if fields.flag("hasLayerNorm", default=False):
        raise refused(conf, "no layer normalisation in a recurrent layer", "hasLayerNorm")
    inputs, units, wrap = _facts(conf)
    bias = fields.flag("useBias", default=True)
    specs = [ParameterSpec("W", (inputs, units)), ParameterSpec("RW", (units, units))]
    specs += [ParameterSpec("b", (units,))] * bias
    function = activation_of(conf)
    if type(function) in (nn.Tanh, nn.ReLU):
        kind = "tanh" if isinstance(function, nn.Tanh) else "relu"
        module = nn.RNN(inputs, units, nonlinearity=kind, bias=bias, batch_first=True)
        if bias:
            _one_bias(module)
        placements = {
            "W": transposed("weight_ih_l0"),
            "RW": transposed("weight_hh_l0"),
            "b": named("bias_ih_l0"),
        }
        plan = LayerPlan(module, tuple(specs), placements, (_NOTE,) * bias)
    else:
        own = SimpleRecurrence(inputs, units, function, bias=bias)
        placements = {
            "W": transposed("input.weight"),
            "RW": transposed("recurrent.weight"),
            "b": named("input.bias"),
        }
        plan = LayerPlan(own, tuple(specs), placements)
    return row([("dropout", dropout_of(conf, 2)), ("recurrent", plan.within(wrap, "layer"))])
