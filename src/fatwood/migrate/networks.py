"""A whole network: layers in a row, or a graph of vertices.

Each layer and vertex is a module under the name that it has in the original, so printing the network shows its configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from fatwood.errors import UserError
from fatwood.migrate.configuration import NetworkConf
from fatwood.migrate.context import Context, mask_after, run
from fatwood.migrate.fields import refused
from fatwood.migrate.parameters import LayerPlan
from fatwood.migrate.vertices import vertex_module

__all__ = ["Graph", "Stack", "build_network"]


def build_network(conf: NetworkConf, plans: Mapping[str, LayerPlan]) -> Stack | Graph:
    """The network of a configuration.

    Args:
        conf: Of the network.
        plans: Of its layers, by name; the network consists of their modules.

    Raises:
        UserError: A vertex that is not known here, or one that takes what is not there.
    """
    if not conf.graph:
        names = _module_names([layer.name for layer in conf.layers])
        return Stack(nn.ModuleDict({names[layer.name]: plans[layer.name].module for layer in conf.layers}))
    names = _module_names([vertex.name for vertex in conf.vertices], conf.inputs)
    modules, wiring = nn.ModuleDict(), {}
    for vertex in conf.vertices:
        own = names[vertex.name]
        modules[own] = vertex_module(vertex) if vertex.layer is None else plans[vertex.layer.name].module
        wiring[own] = [names.get(source, source) for source in vertex.inputs]
        if vertex.layer is not None and len(vertex.inputs) != 1:
            raise refused(vertex, "one input of a layer", len(vertex.inputs))
    return Graph(modules, wiring, conf.inputs, [names.get(name, name) for name in conf.outputs])


def _module_names(names: Iterable[str], avoid: Iterable[str] = ()) -> dict[str, str]:
    """Each name itself, or one like it where torch does not allow it (a dot, a method of a container)."""
    taken: dict[str, str] = {}
    for name in names:
        good = name.replace(".", "_") or "_"
        while hasattr(nn.ModuleDict, good) or good in (*taken.values(), *avoid, "training"):
            good += "_"
        taken[name] = good
    return taken


class Stack(nn.Module):
    """Layers in a row, as a ``MultiLayerNetwork`` has them.

    Args:
        layers: By name, in their order.
    """

    def __init__(self, layers: nn.ModuleDict) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The output of the last layer, behind its activation.

        Args:
            x: In the original's shape, such as ``[rows, features, steps]``.
            mask: ``[rows, steps]``, 1 where a step is real; None where all are.

        Raises:
            UserError: The mask does not fit.
        """
        context = Context(x.shape[0], mask)
        for layer in self.layers.values():
            x = run(layer, x, context=context)
            context = replace(context, mask=mask_after(layer, context))
        return x


class Graph(nn.Module):
    """Vertices and where each has its inputs from, as a ``ComputationGraph`` has them.

    Args:
        vertices: By name; each after those that it has its inputs from.
        wiring: For each vertex the names of vertices and inputs that it takes, in their order.
        inputs: Names of the graph's inputs, in the order of ``forward``'s arguments.
        outputs: Names of the vertices whose outputs are returned.

    Raises:
        UserError: A name that is not known where it is needed.
    """

    def __init__(
        self,
        vertices: nn.ModuleDict,
        wiring: Mapping[str, Sequence[str]],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.vertices = vertices
        self.wiring = {name: list(names) for name, names in wiring.items()}
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        known = set(self.inputs)
        for name in vertices:
            _check_known(f"inputs of vertex {name!r}", self.wiring.get(name) or ["nothing"], known)
            known.add(name)
        _check_known("outputs of a graph", self.outputs, known)

    def forward(
        self, *inputs: torch.Tensor, mask: torch.Tensor | Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The outputs, each behind its activation; a tuple where there are several.

        Args:
            inputs: In the order of the configuration and in the original's shapes.
            mask: ``[rows, steps]`` of every sequence, or masks by the inputs' names; 1 where a step is real.

        Raises:
            UserError: Not as many inputs as the graph has, or a mask that does not fit.
        """
        if len(inputs) != len(self.inputs):
            problem = f"inputs of a graph: expected {len(self.inputs)} ({', '.join(self.inputs)}), received {len(inputs)}"
            raise UserError(problem)
        found = dict(zip(self.inputs, inputs, strict=True))
        if isinstance(mask, torch.Tensor):
            mask = {name: mask for name, x in found.items() if x.ndim == 3} or dict.fromkeys(found, mask)
        masks: dict[str, torch.Tensor | None] = {**(mask or {})}
        context = Context(inputs[0].shape[0], None, dict(found), dict(mask or {}))
        for name, vertex in self.vertices.items():
            sources = self.wiring[name]
            before = next((masks[source] for source in sources if masks.get(source) is not None), None)
            own = replace(context, mask=before)
            found[name] = run(vertex, *(found[source] for source in sources), context=own)
            masks[name] = mask_after(vertex, own)
        outputs = tuple(found[name] for name in self.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def extra_repr(self) -> str:
        """Inputs, outputs and who takes what."""
        wires = "\n".join(f"{name} <- {', '.join(sources)}" for name, sources in self.wiring.items())
        return f"inputs: {', '.join(self.inputs)}\noutputs: {', '.join(self.outputs)}\n{wires}"


def _check_known(where: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            problem = f"{where}: expected one of {', '.join(sorted(known))}, received {name}"
            raise UserError(problem)
