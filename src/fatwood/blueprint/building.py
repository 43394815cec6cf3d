"""A network from a blueprint; nothing in it is believed, and nothing but subclasses of ``torch.nn.Module`` is called."""

from __future__ import annotations

import importlib
import inspect
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fatwood.blueprint.frugal import Budget, Frugal
from fatwood.errors import UserError

__all__ = ["CONTAINERS", "FUNCTIONS", "SCALARS", "build", "class_at", "is_pairs"]

CONTAINERS: tuple[type[nn.Module], ...] = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
SCALARS = (bool, int, float, str, type(None))

# The only functions a blueprint can name.
FUNCTIONS: Mapping[str, Any] = MappingProxyType(
    {
        f"torch.nn.functional:{name}": getattr(F, name)
        for name in (
            "relu",
            "gelu",
            "elu",
            "selu",
            "silu",
            "mish",
            "leaky_relu",
            "softplus",
            "softmax",
            "log_softmax",
        )
    }
    | {f"torch:{name}": getattr(torch, name) for name in ("relu", "tanh", "sigmoid")}
)


def build(blueprint: Mapping[str, Any], *, filled: bool = True, budget: Budget | None = None) -> nn.Module:
    """Rebuild a network on the CPU, with float32 as the default type and with untrained parameters.

    Args:
        blueprint: What :func:`describe` returned. It may come from a stranger's file: nothing but subclasses
            of ``torch.nn.Module`` is called.
        filled: Whether parameters get first values; without, their memory is not touched before they are given others.
        budget: What the network may take; only with ``filled=False``. None for no limit.

    Returns:
        The network, in training mode.

    Raises:
        UserError: A class that cannot be imported, is no network, or does not take the arguments; too large a network.
    """
    where = "blueprint"
    with _neutral(), nullcontext() if filled else Frugal(budget):
        try:
            module = _build_node(blueprint, where, optional="frozen")
            for name in blueprint.get("frozen", []):
                module.get_parameter(name).requires_grad_(False)
        except (AttributeError, TypeError) as error:
            raise _unbuildable(
                where, f"expected names of parameters as 'frozen', received {error}"
            ) from error
        except RecursionError as error:
            raise _unbuildable(where, "expected a network, received blueprints nested without end") from error
    return module


@contextmanager
def _neutral() -> Iterator[None]:
    """Build the same whatever the process's defaults are, and leave its random states alone."""
    dtype, state = torch.get_default_dtype(), random.getstate()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(state)


def _build_node(node: Any, where: str, optional: str = "") -> nn.Module:
    """Build one node; `where` is its place for messages, `optional` a key that may be there besides."""
    keys = set(node) - {optional} if isinstance(node, Mapping) else set()
    if keys not in ({"class", "arguments"}, {"class", "children"}):
        raise _unbuildable(where, f"expected 'class' with 'arguments' or 'children', received {node!r:.80}")
    cls = class_at(node["class"], where)
    if "children" in keys:
        return _build_container(cls, node["children"], where)
    if not isinstance(node["arguments"], Mapping):
        raise _unbuildable(
            where, f"expected a JSON object as 'arguments', received {node['arguments']!r:.80}"
        )
    arguments = {
        name: _decode(value, f"{where}['arguments'][{name!r}]") for name, value in node["arguments"].items()
    }
    try:
        return cls(**arguments)
    except Exception as error:
        problem = f"the constructor of {node['class']} raised {type(error).__name__}: {error}"
        raise _unbuildable(where, problem) from error


def _build_container(cls: type[nn.Module], children: Any, where: str) -> nn.Module:
    if cls not in CONTAINERS or not isinstance(children, list):
        names = ", ".join(container.__name__ for container in CONTAINERS)
        raise _unbuildable(where, f"expected a list of 'children' of one of {names}, received {cls.__name__}")
    container = cls()
    for child in children:
        if not (isinstance(child, list) and len(child) == 2 and isinstance(child[0], str)):
            raise _unbuildable(where, f"expected [name, blueprint] in 'children', received {child!r:.80}")
        name, node = child
        module = _build_node(node, f"{where}[{name!r}]")
        try:
            container.add_module(name, module)
        except KeyError as error:
            raise _unbuildable(where, f"expected a name for a child, received {name!r}: {error}") from error
    return container


def _decode(value: Any, where: str) -> Any:
    if type(value) in SCALARS:
        return value
    if isinstance(value, list):
        return [_decode(item, where) for item in value]
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "tuple" and isinstance(content, list):
            return tuple(_decode(item, where) for item in content)
        if kind == "dict" and is_pairs(content):
            return {key: _decode(item, where) for key, item in content}
        if kind == "module":
            return _build_node(content, where)
        if kind == "type":
            return class_at(content, where)
        if kind == "function" and isinstance(content, str) and content in FUNCTIONS:
            return FUNCTIONS[content]
    raise _unbuildable(where, f"expected a value of a known kind, received {value!r:.80}")


def is_pairs(content: Any) -> bool:
    """Whether it is a list of [scalar, anything]."""
    return isinstance(content, list) and all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in SCALARS for pair in content
    )


def class_at(path: Any, where: str = "blueprint") -> type[nn.Module]:
    """Import the network class at a path; anything that is no network class is refused, not called."""
    module_name, colon, names = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not (colon and all(part.isidentifier() for part in (*module_name.split("."), *names.split(".")))):
        raise _unbuildable(where, f"expected a class path as 'package.module:Class', received {path!r:.80}")
    if (
        module_name.partition(".")[0] in sys.stdlib_module_names
    ):  # some of them do things when they are imported
        raise _unbuildable(
            where, f"{path}: expected a subclass of torch.nn.Module, received a name of Python's own library"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise _unbuildable(
            where, f"{path}: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    for name in names.split("."):
        # Looked up without getattr: no property and no module-level __getattr__ runs for a file's sake.
        found = vars(found).get(name) if inspect.ismodule(found) or inspect.isclass(found) else None
    if inspect.isclass(found) and issubclass(found, nn.Module):
        return found
    received = "nothing of that name" if found is None else f"a {type(found).__name__}"
    raise _unbuildable(where, f"{path}: expected a subclass of torch.nn.Module, received {received}")


def _unbuildable(where: str, problem: str) -> UserError:
    hint = (
        "make the network's class importable here, with the code it was saved with (install its package, or "
        "put it on PYTHONPATH); or pass network=... built by your own code; or read the weights alone with "
        "fatwood.checkpoint.read_model and give them to load_state_dict"
    )
    return UserError(f"cannot rebuild the network: {where}: {problem}", hint=hint)
