"""How to rebuild a network without pickle: its class path and its constructor's arguments, as JSON.

The convention is scikit-learn's: **a constructor argument is stored on the module under its own name**. With
it, ``Net(hidden=64)`` becomes::

    {"class": "mypackage.nets:Net", "arguments": {"hidden": 64}}

``nn.Sequential``, ``nn.ModuleList`` and ``nn.ModuleDict`` are described by their children instead, a list of
``[name, blueprint]`` under ``"children"``. At the top, ``"frozen"`` lists the parameters that do not train.
An argument is a JSON scalar or list, or an object with one key that says what it is:

    ============  ==============================================================
    ``tuple``     a list of values
    ``dict``      a list of [key, value]; a list because order counts
    ``module``    the blueprint of a module
    ``type``      the class path of a module
    ``function``  one of a few activation functions of torch, by name
    ============  ==============================================================

A blueprint comes from a file, so it can only construct subclasses of ``torch.nn.Module``: whatever its class
path names is checked before it is called. The module in which a class lives is imported, as ``import`` would.
"""

from __future__ import annotations

import importlib
import inspect
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fatwood.errors import UserError

__all__ = ["build", "describe"]

_CONTAINERS: tuple[type[nn.Module], ...] = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SCALARS = (bool, int, float, str, type(None))
_MODULE_ATTRIBUTES = frozenset(dir(nn.Module()))

# The only functions a blueprint can name.
_FUNCTIONS: Mapping[str, Any] = MappingProxyType(
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

_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_LAYER = {
    "d_model": "self_attn.embed_dim",
    "nhead": "self_attn.num_heads",
    "dim_feedforward": "linear1.out_features",
    "dropout": "dropout.p",
    "layer_norm_eps": "norm1.eps",
    "batch_first": "self_attn.batch_first",
    "bias": "linear1.bias",
}
# Layers of torch.nn that keep an argument elsewhere: argument -> path of the attribute, "" to leave it out.
_ELSEWHERE: Mapping[type[nn.Module], Mapping[str, str]] = MappingProxyType(
    {
        nn.Identity: {},
        nn.Hardtanh: {"min_value": "", "max_value": ""},
        nn.RNN: {name: name for name in (*_RECURRENT, "nonlinearity")},
        nn.GRU: {name: name for name in _RECURRENT},
        nn.LSTM: {name: name for name in (*_RECURRENT, "proj_size")},
        nn.MultiheadAttention: {"bias": "in_proj_bias", "add_bias_kv": "bias_k"},
        nn.TransformerEncoderLayer: _LAYER,
        nn.TransformerDecoderLayer: _LAYER,
        nn.TransformerEncoder: {"encoder_layer": "layers.0"},
        nn.TransformerDecoder: {"decoder_layer": "layers.0"},
        nn.Transformer: {
            "num_encoder_layers": "encoder.num_layers",
            "num_decoder_layers": "decoder.num_layers",
            "dim_feedforward": "encoder.layers.0.linear1.out_features",
            "dropout": "encoder.layers.0.dropout.p",
            "activation": "encoder.layers.0.activation",
            "custom_encoder": "",
            "custom_decoder": "",
            "layer_norm_eps": "encoder.norm.eps",
            "norm_first": "encoder.layers.0.norm_first",
            "bias": "encoder.layers.0.linear1.bias",
        },
    }
)


class _Undescribable(Exception):  # never leaves this module
    """Something about a module that a blueprint cannot say."""


def describe(module: nn.Module) -> dict[str, Any] | None:
    """Describe how to rebuild a network, or say that it cannot be known.

    The description is tried out: the network is rebuilt on the CPU and both are compared by printed structure, plain
    attributes, hooks, and by names, shapes, types, sharing and trainability of their tensors. The values of
    the tensors and the training mode are not part of a blueprint. The constructor of the network's class runs once; torch's
    and Python's random states are left as they were.

    Args:
        module: The network.

    Returns:
        A JSON object for :func:`build`, or None when anything is doubtful: a class of ``__main__`` or of a
        function, an argument that is no attribute, ``*args``, a layer changed after construction.

    Example:
        >>> describe(nn.Linear(3, 2, bias=False))
        {'class': 'torch.nn:Linear', 'arguments': {'in_features': 3, 'out_features': 2, 'bias': False}}
    """
    try:
        blueprint = _describe_node(module)
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        if frozen:
            blueprint["frozen"] = frozen
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rebuilt = build(blueprint)
        return blueprint if _facts(rebuilt) == _facts(module) else None
    except Exception:  # whatever a stranger's module does when looked at: it cannot be described
        return None


def build(blueprint: Mapping[str, Any]) -> nn.Module:
    """Rebuild a network on the CPU, with float32 as the default type and with untrained parameters.

    Args:
        blueprint: What :func:`describe` returned. It may come from a stranger's file: nothing but subclasses
            of ``torch.nn.Module`` is called.

    Returns:
        The network, in training mode.

    Raises:
        UserError: A class that cannot be imported, is no network, or does not take the arguments.
    """
    where = "blueprint"
    with _neutral():
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


def _describe_node(module: nn.Module) -> dict[str, Any]:
    cls = type(module)
    if cls in _CONTAINERS:
        children = [[name, _describe_node(child)] for name, child in module.named_children()]
        return {"class": _path_of(cls), "children": children}
    return {"class": _path_of(cls), "arguments": _arguments(module)}


def _path_of(cls: type[nn.Module]) -> str:
    """``module:qualified name``, checked to lead back to the class in any process that can import it."""
    if vars(nn).get(cls.__name__) is cls:
        return f"torch.nn:{cls.__name__}"
    path = f"{cls.__module__}:{cls.__qualname__}"
    if cls.__module__ in ("__main__", "__mp_main__") or _class_at(path) is not cls:
        raise _Undescribable(path)
    return path


def _arguments(module: nn.Module) -> dict[str, Any]:
    """The JSON constructor arguments of a module that keeps to the convention."""
    cls = type(module)
    if cls.__init__ is nn.Module.__init__:
        return {}
    elsewhere = _ELSEWHERE.get(cls, {})
    from_torch = cls.__module__.startswith("torch.nn.")
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(cls).parameters
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    if {parameter.kind for parameter in parameters.values()} - named:
        if cls not in _ELSEWHERE:
            raise _Undescribable(cls.__name__)
        parameters = {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in elsewhere}
    arguments = {}
    for name, parameter in parameters.items():
        path = elsewhere.get(name, name)
        if name in ("device", "dtype") or not path or (from_torch and name.startswith("_")):
            continue
        value = _attribute(module, path)
        # torch never changes a default, but adds arguments: leaving defaults out lets other versions read the file.
        if not (from_torch and type(value) is type(parameter.default) and value == parameter.default):
            arguments[name] = _encode(value)
    return arguments


def _attribute(module: nn.Module, path: str) -> Any:
    """The attribute that holds an argument; a parameter that is there or not stands for True or False."""
    *parents, name = path.split(".")
    owner: Any = module
    for parent in parents:
        owner = getattr(owner, parent)
    if name in _MODULE_ATTRIBUTES:  # such as `training`: torch's own meaning, not the argument's value
        raise _Undescribable(path)
    value = getattr(owner, name)
    if isinstance(value, nn.Parameter) or (value is None and name in owner._parameters):
        return value is not None
    return value


def _encode(value: Any) -> Any:
    if type(value) in _SCALARS and (type(value) is not float or math.isfinite(value)):
        return value
    if type(value) is list:
        return [_encode(item) for item in value]
    if type(value) in (tuple, torch.Size):
        return {"tuple": [_encode(item) for item in value]}
    if type(value) is dict:
        pairs = [[_encode(key), _encode(item)] for key, item in value.items()]
        if not _is_pairs(pairs):
            raise _Undescribable(value)
        return {"dict": pairs}
    if isinstance(value, nn.Module):
        return {"module": _describe_node(value)}
    if inspect.isclass(value) and issubclass(value, nn.Module):
        return {"type": _path_of(value)}
    for name, function in _FUNCTIONS.items():
        if function is value:
            return {"function": name}
    raise _Undescribable(type(value).__name__)


def _facts(module: nn.Module) -> list[Any]:
    """All that must be equal between a network and its rebuilt copy."""
    facts: list[Any] = [repr(module)]
    seen: dict[int, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        own = {
            key: value for key, value in vars(part).items() if type(value) in _SCALARS and key != "training"
        }
        hooks = len(part._forward_hooks), len(part._forward_pre_hooks)
        facts.append(
            (name, seen.setdefault(id(part), name), sorted(own.items()), hooks, "forward" in vars(part))
        )
    for name, parameter in module.named_parameters(remove_duplicate=False):
        facts.append((name, seen.setdefault(id(parameter), name), parameter.requires_grad))
    facts.extend((name, value.shape, value.dtype) for name, value in module.state_dict().items())
    return facts


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
    cls = _class_at(node["class"], where)
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
    if cls not in _CONTAINERS or not isinstance(children, list):
        names = ", ".join(container.__name__ for container in _CONTAINERS)
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
    if type(value) in _SCALARS:
        return value
    if isinstance(value, list):
        return [_decode(item, where) for item in value]
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "tuple" and isinstance(content, list):
            return tuple(_decode(item, where) for item in content)
        if kind == "dict" and _is_pairs(content):
            return {key: _decode(item, where) for key, item in content}
        if kind == "module":
            return _build_node(content, where)
        if kind == "type":
            return _class_at(content, where)
        if kind == "function" and isinstance(content, str) and content in _FUNCTIONS:
            return _FUNCTIONS[content]
    raise _unbuildable(where, f"expected a value of a known kind, received {value!r:.80}")


def _is_pairs(content: Any) -> bool:
    """Whether it is a list of [scalar, anything]."""
    return isinstance(content, list) and all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in _SCALARS for pair in content
    )


def _class_at(path: Any, where: str = "blueprint") -> type[nn.Module]:
    """Import the network class at a path; anything that is no network class is refused, not called."""
    module_name, colon, names = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not (colon and all(part.isidentifier() for part in (*module_name.split("."), *names.split(".")))):
        raise _unbuildable(where, f"expected a class path as 'package.module:Class', received {path!r:.80}")
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
