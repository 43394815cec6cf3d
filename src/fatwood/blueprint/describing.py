"""What a blueprint says of a network."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fatwood.blueprint.building import CONTAINERS, FUNCTIONS, SCALARS, build, class_at, is_pairs

__all__ = ["describe"]

_MODULE_ATTRIBUTES = frozenset(dir(nn.Module()))
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
            rebuilt = build(blueprint, filled=False)
        return blueprint if _facts(rebuilt) == _facts(module) else None
    except Exception:  # whatever a stranger's module does when looked at: it cannot be described
        return None


def _describe_node(module: nn.Module) -> dict[str, Any]:
    cls = type(module)
    if cls in CONTAINERS:
        children = [[name, _describe_node(child)] for name, child in module.named_children()]
        return {"class": _path_of(cls), "children": children}
    return {"class": _path_of(cls), "arguments": _arguments(module)}


def _path_of(cls: type[nn.Module]) -> str:
    """``module:qualified name``, checked to lead back to the class in any process that can import it."""
    if vars(nn).get(cls.__name__) is cls:
        return f"torch.nn:{cls.__name__}"
    path = f"{cls.__module__}:{cls.__qualname__}"
    if cls.__module__ in ("__main__", "__mp_main__") or class_at(path) is not cls:
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
    if type(value) in SCALARS and (type(value) is not float or math.isfinite(value)):
        return value
    if type(value) is list:
        return [_encode(item) for item in value]
    if type(value) in (tuple, torch.Size):
        return {"tuple": [_encode(item) for item in value]}
    if type(value) is dict:
        pairs = [[_encode(key), _encode(item)] for key, item in value.items()]
        if not is_pairs(pairs):
            raise _Undescribable(value)
        return {"dict": pairs}
    if isinstance(value, nn.Module):
        return {"module": _describe_node(value)}
    if inspect.isclass(value) and issubclass(value, nn.Module):
        return {"type": _path_of(value)}
    for name, function in FUNCTIONS.items():
        if function is value:
            return {"function": name}
    raise _Undescribable(type(value).__name__)


def _facts(module: nn.Module) -> list[Any]:
    """All that must be equal between a network and its rebuilt copy."""
    facts: list[Any] = [repr(module)]
    seen: dict[int, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        own = {
            key: value for key, value in vars(part).items() if type(value) in SCALARS and key != "training"
        }
        hooks = len(part._forward_hooks), len(part._forward_pre_hooks)
        facts.append(
            (name, seen.setdefault(id(part), name), sorted(own.items()), hooks, "forward" in vars(part))
        )
    for name, parameter in module.named_parameters(remove_duplicate=False):
        facts.append((name, seen.setdefault(id(parameter), name), parameter.requires_grad))
    facts.extend((name, value.shape, value.dtype) for name, value in module.state_dict().items())
    return facts
