"""Make a program of a network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from fatwood.errors import OptionError, UserError
from fatwood.program.network import ExportedNetwork
from fatwood.program.operators import name_of
from fatwood.program.values import encode

__all__ = ["Program", "trace"]

_STATE = (InputKind.PARAMETER, InputKind.BUFFER)
_HINT = "save without export=..., and load with the class importable or network=..."


@dataclass(frozen=True, kw_only=True)
class Program:
    """A network that was traced."""

    graph: dict[str, Any]
    """As drawn in `fatwood.program`."""
    constants: dict[str, Tensor]
    """Tensors that are not in the state dict."""


def trace(network: nn.Module, example: Any) -> Program:
    """Trace a network in evaluation mode, for any number of rows.

    Args:
        network: Its mode is as it was afterwards.
        example: What it is called with: a tensor ``(B, ...)``, a tuple of them by position, or a dict by name. One row is enough.

    Raises:
        OptionError: The example is something else.
        UserError: `torch.export` cannot trace the network, or it has operators that a file cannot name.
    """
    if isinstance(network, ExportedNetwork):
        graph, constants = network.exported_program()
        return Program(graph=graph, constants=constants)
    arguments, keywords = _called(example)
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        return _program(_exported(network, arguments, keywords))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _called(example: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    keywords = dict(example) if isinstance(example, Mapping) else {}
    arguments = () if keywords else (example,) if isinstance(example, Tensor) else example
    tensors = [*arguments, *keywords.values()] if isinstance(arguments, Sequence) else []
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in tensors):
        text = f"save: export: expected a tensor (B, ...), a tuple of them or a dict of them by name, received {example!r:.200}"
        raise OptionError(text, hint="export=features of two rows, as the network is called with them")
    if len({len(tensor) for tensor in tensors}) > 1:
        text = f"save: export: expected as many rows in each tensor, received {[len(tensor) for tensor in tensors]}"
        raise OptionError(text)
    if len(tensors[0]) == 0:
        text = "save: export: expected at least one row, received none"
        raise OptionError(text)
    return tuple(_rows(tensor) for tensor in arguments), {name: _rows(t) for name, t in keywords.items()}


def _rows(tensor: Tensor) -> Tensor:
    """Several of them: torch.export takes a size of 1 for a constant."""
    tensor = tensor.detach()
    return tensor if len(tensor) > 2 else torch.cat([tensor] * 3)


def _exported(
    network: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]
) -> ExportedProgram:
    batch = {0: Dim("batch", min=1)}
    shapes: Any = tuple(batch for _ in arguments) if arguments else dict.fromkeys(keywords, batch)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about itself
            program: ExportedProgram = export(
                network, arguments, keywords, dynamic_shapes=shapes, strict=False
            )
            decomposed: ExportedProgram = program.run_decompositions(
                {}
            )  # without operators that change their arguments
            return decomposed
    except Exception as error:
        text = f"save: export: torch.export cannot trace the network: {type(error).__name__}: {error}"
        raise UserError(text, hint=_HINT) from error


def _program(exported: ExportedProgram) -> Program:
    signature = exported.graph_signature
    changed = [spec.target for spec in signature.output_specs if spec.kind != OutputKind.USER_OUTPUT]
    if changed:
        text = f"save: export: expected a network that changes nothing in evaluation mode, received one that changes {changed}"
        raise UserError(text, hint=_HINT)
    sources: dict[str, dict[str, str]] = {"state": {}, "constants": {}}
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    parameters: list[str] = []
    for spec in signature.input_specs:
        name = spec.arg.name
        target = str(spec.target)
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(name)
        elif spec.kind in _STATE and target in exported.state_dict:
            sources["state"][name] = target
            if spec.kind == InputKind.PARAMETER:
                parameters.append(target)
        else:
            sources["constants"][name] = target
            constants[target] = _constant(exported.constants.get(target), target)
    # `in_spec` describes ((by position...), {by name...})
    by_position, by_name = pytree.tree_unflatten(inputs, exported.call_spec.in_spec)
    called = [*by_position, *({"name": value, "keyword": key} for key, value in by_name.items())]
    nodes, output = _nodes(exported)
    graph = {"inputs": called, **sources, "parameters": parameters, "nodes": nodes, "output": output}
    return Program(graph=graph, constants=constants)


def _constant(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    text = (
        f"save: export: expected tensors as constants of the network, received {name}: {type(value).__name__}"
    )
    raise UserError(text, hint=_HINT)


def _nodes(exported: ExportedProgram) -> tuple[list[Any], Any]:
    """What the output needs; checks of sizes are left out."""
    *before, last = exported.graph.nodes
    needed = {*last.all_input_nodes}
    nodes: list[Any] = []
    for node in reversed(before):
        if node.op == "placeholder" or node not in needed:
            continue
        needed |= {*node.all_input_nodes}
        operator = name_of(node.target)
        if operator is None:
            text = f"save: export: expected operators that a file can name, received {node.target} as {node.name}"
            raise UserError(text, hint=_HINT)
        arguments = [_encoded(argument, node.name) for argument in node.args]
        keywords = {key: _encoded(value, node.name) for key, value in node.kwargs.items()}
        nodes.append([node.name, operator, arguments, keywords])
    values = pytree.tree_unflatten(list(last.args[0]), exported.call_spec.out_spec)
    return nodes[::-1], _encoded(values, "its output")


def _encoded(value: Any, where: str) -> Any:
    try:
        return encode(value, lambda item: item.name if isinstance(item, Node) else None)
    except TypeError as error:
        text = f"save: export: {where}: {error}"
        raise UserError(text, hint=_HINT) from error
