"""Makes a network of PyTorch out of what a file of Deeplearning4j says: layers, their numbers, what trained them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.data.preprocessing import Transform
from fatwood.errors import DamagedError
from fatwood.migrate.configuration import LayerConf, NetworkConf
from fatwood.migrate.file import SavedFile
from fatwood.migrate.layers import layer_module, parameter_specs
from fatwood.migrate.losses import loss_of
from fatwood.migrate.networks import build_network
from fatwood.migrate.normalizer import read_normalizer
from fatwood.migrate.optimizer import SavedOptimizer, Trained, saved_optimizer
from fatwood.migrate.parameters import LayerPlan, ParameterSpec
from fatwood.migrate.parsing import parse_configuration
from fatwood.migrate.table import LayerRow, table

__all__ = ["MigratedNetwork", "migrated"]

_STATISTICS = ("mean", "var", "log10stdev", "beta", "gamma", "g")
"""Parameters that are neither weights nor biases: the original does not regularise them."""


@dataclass(frozen=True, kw_only=True)
class MigratedNetwork:
    """A network that Deeplearning4j saved; as a text it is a table of its layers."""

    network: torch.nn.Module
    """With the saved parameters, in evaluation mode; it takes its inputs by position, in the order of the configuration."""
    optimizer: SavedOptimizer | None
    """Makes the optimizer that trained it, its state included, for ``SparkModel(optimizer=...)``; None where PyTorch has none like it."""
    loss: torch.nn.Module | list[torch.nn.Module] | None
    """That of the output layer, for ``SparkModel(loss=...)``, of labels in the shape of the output; a list for several outputs; None where
    it is not known here."""
    preprocessing: Mapping[str, Transform]
    """The saved normalizer, for ``SparkModel(preprocessing=...)``; empty where there is none."""
    iteration: int
    """Optimizer steps that were done."""
    epoch: int
    """Epochs that were done."""
    inputs: tuple[str, ...]
    """Of a ComputationGraph, by name, in the order in which the network takes them."""
    outputs: tuple[str, ...]
    """Of a ComputationGraph, by name, in the order in which the network gives them."""
    layers: tuple[LayerRow, ...]
    """One for each layer."""
    notes: tuple[str, ...]
    """What is left out, and of what else to know."""

    def __str__(self) -> str:
        return table(self.layers, self.notes)

    def to_json(self) -> dict[str, Any]:
        """The table as JSON values, with what else there is."""
        return {
            "layers": [row.to_json() for row in self.layers],
            "notes": list(self.notes),
            "parameters": sum(row.parameters for row in self.layers),
            "iteration": self.iteration,
            "epoch": self.epoch,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "optimizer": None if self.optimizer is None else self.optimizer.to_json(),
            "preprocessing": {name: t.to_json() for name, t in self.preprocessing.items()},
        }


def migrated(file: SavedFile, *, updater: bool, dtype: torch.dtype) -> MigratedNetwork:
    """The network of a file.

    Args:
        file: What was read.
        updater: Whether to read the state of the optimizer.
        dtype: Of the network.

    Raises:
        UserError: A layer that has no equal here, by name and class; a configuration that makes no sense.
        DamagedError: Not as many parameters as the layers have.
    """
    conf = parse_configuration(file.configuration)
    _require_length(conf, file.parameters.size)
    plans = {layer.name: layer_module(layer) for layer in conf.layers}
    network = build_network(conf, plans).to(dtype)
    arrays = _load(conf, plans, file.parameters)
    trained = [array for layer in conf.layers for array in _trained(layer, plans[layer.name], network)]
    _freeze(plans)
    optimizer, notes = _optimizer(network, trained, file, conf, updater=updater)
    preprocessing, missing = ({}, None) if file.normalizer is None else read_normalizer(file.normalizer)
    notes += [f"normalizer.bin: {missing}"] if missing else []
    notes += _notes(file, conf, dtype)
    return MigratedNetwork(
        network=network.eval(),
        optimizer=optimizer,
        loss=_loss(conf),
        preprocessing=preprocessing,
        iteration=conf.iteration,
        epoch=conf.epoch,
        inputs=conf.inputs,
        outputs=conf.outputs,
        layers=tuple(_row(layer, plans[layer.name], arrays[layer.name]) for layer in conf.layers),
        notes=tuple(notes),
    )


def _load(
    conf: NetworkConf, plans: Mapping[str, LayerPlan], flat: NDArray[np.generic]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Cut the flat vector into the layers' arrays and put them into their modules."""
    at, arrays = 0, {}
    for layer in conf.layers:
        plan = plans[layer.name]
        own = {}
        for spec in plan.parameters:
            own[spec.key] = _shaped(flat[at : at + spec.length], spec)
            at += spec.length
        plan.load(own)
        arrays[layer.name] = own
    return arrays


def _shaped(piece: NDArray[Any], spec: ParameterSpec) -> NDArray[Any]:
    native = piece.astype(piece.dtype.newbyteorder("="))
    return native.reshape(spec.shape, order="F" if spec.order == "f" else "C")


def _trained(layer: LayerConf, plan: LayerPlan, network: torch.nn.Module) -> list[Trained]:
    """What trains each array of a layer."""
    (prefix,) = (name for name, module in network.named_modules() if module is plan.module)
    dot = f"{prefix}." if prefix else ""

    def placed(key: str) -> Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]:
        return lambda array: {dot + name: value for name, value in plan.place(key, array).items()}

    found = []
    for spec in plan.parameters:
        own = _configured(layer, spec.key)
        bias = "W" not in spec.key and spec.key not in _STATISTICS
        updater = own.fields.get("biasUpdater") if bias else None
        updater = updater if isinstance(updater, Mapping) else own.fields.get("iUpdater")
        terms = own.fields.get("regularizationBias" if bias else "regularization")
        usable = isinstance(terms, list) and spec.key not in _STATISTICS
        found.append(
            Trained(
                name=f"{layer.name}.{spec.key}",
                shape=spec.shape,
                order=spec.order,
                updater=updater if spec.trained and isinstance(updater, Mapping) else None,
                regularization=[term for term in terms if isinstance(term, Mapping)]
                if usable and terms
                else [],
                place=placed(spec.key),
                old="updater" in own.fields,
            )
        )
    return found


def _configured(layer: LayerConf, key: str) -> LayerConf:
    """The layer that has a parameter's updater: of layers around others the inner one."""
    names = (
        ["underlying", "layer"]
        if layer.kind != "Bidirectional"
        else ["bwd" if key.startswith("b") else "fwd"]
    )
    for name in names:
        inner = layer.inner(name)
        if inner is not None:
            return _configured(inner, key[1:] if layer.kind == "Bidirectional" else key)
    return layer


def _freeze(plans: Mapping[str, LayerPlan]) -> None:
    """Parameters that the original does not train are not trained here."""
    for plan in plans.values():
        own = dict(plan.module.named_parameters())
        for spec in plan.parameters:
            if not spec.trained:
                for name in plan.place(spec.key, np.zeros(spec.shape, np.float32)):
                    if name in own:
                        own[name].requires_grad_(False)


def _optimizer(
    network: torch.nn.Module, trained: list[Trained], file: SavedFile, conf: NetworkConf, *, updater: bool
) -> tuple[SavedOptimizer | None, list[str]]:
    state = file.updater_state if updater else None
    made, notes = saved_optimizer(network, trained, state, iteration=conf.iteration, epoch=conf.epoch)
    if made is not None and any(_is_scheduled(array.updater) for array in trained):
        rate = made.groups[0]["lr"]
        notes.append(f"left out: the schedule of the learning rate, which is {rate:g} as in the last step")
    if state is None and updater:
        notes.append("the file has no state of the optimizer")
    clipped = {str(layer.fields.get("gradientNormalization")) for layer in conf.layers} - {"None"}
    notes += [f"left out: the layers' {name}; fit has clip options of its own" for name in sorted(clipped)]
    return made, notes


def _loss(conf: NetworkConf) -> torch.nn.Module | list[torch.nn.Module] | None:
    by_name = {layer.name: layer for layer in conf.layers}
    names = conf.outputs if conf.graph else tuple(by_name)[-1:]
    losses = [loss_of(by_name[name]) if name in by_name else None for name in names]
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses) or not known:
        return None
    return known[0] if len(known) == 1 else known


def _is_scheduled(updater: Mapping[str, Any] | None) -> bool:
    return updater is not None and isinstance(updater.get("learningRateSchedule"), Mapping)


def _notes(file: SavedFile, conf: NetworkConf, dtype: torch.dtype) -> list[str]:
    notes = []
    own = file.parameters.dtype.name
    if file.parameters.size and own != str(dtype).removeprefix("torch."):
        notes.append(f"the file's numbers are {own}, the network's {str(dtype).removeprefix('torch.')}")
    if conf.backprop.get("backpropType") == "TruncatedBPTT":
        notes.append(
            "left out: truncated backpropagation through time; gradients go through all steps of a row"
        )
    if file.ignored:
        names = ", ".join(file.ignored[:5]) + (", ..." if len(file.ignored) > 5 else "")
        notes.append(f"not read: {names!r:.200}; entries that Java has serialised are never read")
    return notes


def _row(layer: LayerConf, plan: LayerPlan, arrays: Mapping[str, NDArray[Any]]) -> LayerRow:
    return LayerRow(
        name=layer.name,
        source=layer.source,
        module=type(plan.module).__name__,
        parameters=sum(array.size for array in arrays.values()),
        shapes={key: array.shape for key, array in arrays.items()},
        notes=plan.notes,
    )


def _require_length(conf: NetworkConf, received: int) -> None:
    """Compare the layers' sizes with the numbers that are there, before the layers take memory."""
    at, ends = 0, None
    for layer in conf.layers:
        at += sum(spec.length for spec in parameter_specs(layer))
        if at > received and ends is None:
            ends = layer
    if at != received:
        where = (
            "goes on after the last layer"
            if ends is None
            else f"ends within layer {ends.name!r:.80} ({ends.kind})"
        )
        text = f"coefficients.bin: expected {at} parameters of the layers, received {received}: it {where}"
        raise DamagedError(
            text, hint="configuration and parameters are not of one network: save it again there"
        )
