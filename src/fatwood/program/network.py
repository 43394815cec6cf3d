"""A network that runs a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fatwood.errors import UserError
from fatwood.program.operators import operator_at
from fatwood.program.values import decode

__all__ = ["ExportedNetwork"]

_MOST_LEVELS = 100


class ExportedNetwork(nn.Module):
    """A network without its class: parameters under their names, and the operators that were traced in evaluation mode.

    It computes what the network computed in evaluation mode, whatever mode it is in: without dropout, and with the batch
    statistics that were saved. Its parameters have gradients.

    Args:
        graph: Of `fatwood.program.trace`; it may come from a stranger's file.
        state_dict: Of the network that was traced.
        constants: Its other tensors.

    Raises:
        UserError: It is no program, or has operators that are not known here.
    """

    def __init__(
        self, graph: Mapping[str, Any], state_dict: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        # no name here may be one of the network's own
        self._exported_graph, self._exported_constants = dict(graph), dict(constants)
        try:
            _check(graph, state_dict, constants)
            self._exported_last_uses = _last_uses(graph)
            parameters = {_memory(state_dict[n]): nn.Parameter(state_dict[n]) for n in graph["parameters"]}
            for name, tensor in state_dict.items():
                _place(self, name, parameters.get(_memory(tensor), tensor))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            text = f"cannot rebuild the network from its operators: {type(error).__name__}: {error}"
            raise UserError(text, hint="pass network=... built by your own code") from error

    def exported_program(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The graph and the constants."""
        return self._exported_graph, self._exported_constants

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """What the network returned in evaluation mode."""
        graph = self._exported_graph
        values = self._given(arguments, keywords)
        device = next((v.device for v in values.values() if isinstance(v, Tensor)), torch.device("cpu"))
        state: dict[str, Tensor] = {}
        state |= self.named_parameters(remove_duplicate=False)
        state |= self.named_buffers(remove_duplicate=False)
        values |= {value: state[name] for value, name in graph["state"].items()}
        constants = self._exported_constants
        values |= {value: constants[name].to(device) for value, name in graph["constants"].items()}
        for (name, operator, given, named), ended in zip(
            graph["nodes"], self._exported_last_uses, strict=True
        ):
            function: Any = operator_at(operator)
            positional = [decode(argument, values, device) for argument in given]
            by_name = {key: decode(value, values, device) for key, value in named.items()}
            values[name] = function(*positional, **by_name)
            for done in ended:
                del values[done]
        return decode(graph["output"], values, device)

    def _given(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
        by_position = [name for name in self._exported_graph["inputs"] if isinstance(name, str)]
        by_name = {
            entry["keyword"]: entry["name"]
            for entry in self._exported_graph["inputs"]
            if not isinstance(entry, str)
        }
        missing = by_position[len(arguments) :]
        if len(arguments) > len(by_position) or set(keywords) != {*missing, *by_name}:
            message = (
                f"expected {len(by_position)} inputs by position and {sorted(by_name)} by name, as it was exported, "
                f"received {len(arguments)} and {sorted(keywords)}"
            )
            raise TypeError(message)
        found = dict(zip(by_position, arguments, strict=False))
        return found | {by_name.get(key, key): value for key, value in keywords.items()}


def _check(
    graph: Mapping[str, Any], state_dict: Mapping[str, Tensor], constants: Mapping[str, Tensor]
) -> None:
    for name, operator, arguments, keywords in graph["nodes"]:
        if not isinstance(operator, str) or operator_at(operator) is None:
            message = (
                f"{name!r:.100}: the operator {operator!r:.100} is not known here, or not one a file may name"
            )
            raise ValueError(message)
        if not (isinstance(name, str) and isinstance(arguments, list) and isinstance(keywords, dict)):
            message = f"{name!r:.100}: expected a list and a dict of arguments"
            raise TypeError(message)
    names = [entry if isinstance(entry, str) else entry["name"] for entry in graph["inputs"]]
    names += [*graph["state"], *graph["constants"], *(node[0] for node in graph["nodes"])]
    twice = [name for name, count in Counter(names).items() if count > 1]
    unknown = {*graph["state"].values()} - {*state_dict} | {*graph["constants"].values()} - {*constants}
    if twice or unknown or set(graph) != {"inputs", "state", "parameters", "constants", "nodes", "output"}:
        message = f"expected every value once and every tensor in the file, received {twice[:3]} twice, {sorted(unknown)[:3]} unknown"
        raise ValueError(message)


def _last_uses(graph: Mapping[str, Any]) -> list[list[str]]:
    """By node, the values that nothing needs after it, so that their memory is free again."""
    seen = _names(graph["output"])
    computed = {node[0] for node in graph["nodes"]}
    found: list[list[str]] = []
    for name, _, arguments, keywords in reversed(graph["nodes"]):
        used = (_names(arguments) | _names(list(keywords.values())) | {name}) & computed
        found.append(sorted(used - seen))
        seen |= used
    return found[::-1]


def _names(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_names, value))
    if isinstance(value, Mapping):
        ((kind, content),) = value.items()
        return {content} if kind == "v" else _names(content)
    return set()


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one."""
    return tensor.data_ptr() if tensor.numel() else id(tensor), tensor.shape, tensor.stride(), tensor.dtype


def _place(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a tensor under a name with dots, as the network had it."""
    *path, last = name.split(".")
    if len(path) > _MOST_LEVELS:
        message = f"{name!r:.100}: expected at most {_MOST_LEVELS} levels"
        raise ValueError(message)
    owner = network
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(last, tensor)
    else:
        owner.register_buffer(last, tensor)
