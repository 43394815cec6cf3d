"""Losses, optimizers and strategies as JSON, as far as JSON can say them; never pickle.

What can be said::

    number, text, true, null, list   as in JSON; NaN and infinities the way Python's json writes them
    {"tuple": [...]}, {"dict": {...}}
    {"fatwood": name, "fields": {...}}      a strategy, a threshold, a description of a column, ...
    {"loss": name, "arguments": {...}, "weights": {...}}   a loss of torch.nn; weights are those of classes
    {"module": blueprint}                   a loss of the user's, without parameters
    {"torch": "optim:Adam"}                 a class of torch.optim or of its schedulers, a loss of torch.nn.functional
    {"class": "package.module:Class"}       an importable subclass of Optimizer or of LRScheduler
    {"partial": ..., "keywords": {...}}     functools.partial of one of the two

Functions and classes of a program cannot be said, as reading them would run whatever a file names.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, cast

import torch
from torch.nn import functional as F
from torch.optim import lr_scheduler

from fatwood import blueprint
from fatwood.codec import (
    AdaptiveThreshold,
    DensityWarmup,
    FixedThreshold,
    ResidualClipping,
    TargetSparsityThreshold,
)
from fatwood.data.inputs import DenseColumn, ImageColumn, SequenceColumn
from fatwood.data.preprocessing import Transform
from fatwood.errors import UserError
from fatwood.snapshots import Checkpoints
from fatwood.train import (
    AllReduce,
    DiLoCo,
    EarlyStopping,
    GradientSharing,
    LookAhead,
    Losses,
    ParameterAveraging,
)

__all__ = ["Unsayable", "read_part", "say_part"]

_OURS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            AdaptiveThreshold,
            AllReduce,
            Checkpoints,
            DenseColumn,
            DensityWarmup,
            DiLoCo,
            EarlyStopping,
            FixedThreshold,
            GradientSharing,
            ImageColumn,
            LookAhead,
            Losses,
            ParameterAveraging,
            ResidualClipping,
            SequenceColumn,
            TargetSparsityThreshold,
        )
    }
)
_BASES: Final = (torch.optim.Optimizer, lr_scheduler.LRScheduler)
_LOSSES: Final = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "multi_margin_loss",
    "nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
)
_TORCH: Final[Mapping[str, Any]] = MappingProxyType(
    {f"nn.functional:{name}": getattr(F, name) for name in _LOSSES}
    | {
        f"{module}:{name}": thing
        for module, names in (("optim", torch.optim), ("optim.lr_scheduler", lr_scheduler))
        for name, thing in vars(names).items()
        if inspect.isclass(thing) and issubclass(thing, _BASES) and thing not in _BASES
    }
)
_NN_LOSSES: Final[Mapping[str, Any]] = MappingProxyType(
    {
        name: thing
        for name, thing in vars(torch.nn).items()
        if inspect.isclass(thing) and thing.__module__ == "torch.nn.modules.loss"
    }
)
_OLD_ARGUMENTS: Final = frozenset({"size_average", "reduce"})
_SCALARS: Final = (bool, int, float, str, type(None))
_DTYPES: Final = MappingProxyType({"float32": torch.float32, "float64": torch.float64, "int64": torch.int64})
_MOST_WEIGHTS: Final = 100_000


class Unsayable(Exception):
    """A part that JSON cannot say."""


def say_part(value: Any) -> Any:
    """A part as JSON.

    Raises:
        Unsayable: It cannot be said.
    """
    if type(value) in _SCALARS:
        return value
    if type(value) is list:
        return [say_part(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [say_part(item) for item in value]}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise Unsayable(value)
        return {"dict": {name: say_part(item) for name, item in value.items()}}
    if isinstance(value, Transform):
        return {"transform": value.to_json()}
    if type(value) is _OURS.get(type(value).__name__):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}
        return {"fatwood": type(value).__name__, "fields": say_part(fields)["dict"]}
    if isinstance(value, torch.nn.Module):
        return _say_module(value)
    if type(value) is partial and not value.args:
        return {"partial": _say_callable(value.func), "keywords": say_part(value.keywords)["dict"]}
    return _say_callable(value)


def read_part(said: Any) -> Any:
    """The inverse of `say_part`.

    Raises:
        UserError: It is nothing that `say_part` says, or its class cannot be imported or made.
    """
    if type(said) in _SCALARS:
        return said
    if isinstance(said, list):
        return [read_part(item) for item in said]
    match said:
        case {"tuple": list(items)}:
            return tuple(read_part(item) for item in items)
        case {"dict": dict(items)}:
            return {name: read_part(item) for name, item in items.items()}
        case {"transform": state}:
            return Transform.from_json(state)
        case {"fatwood": str(name), "fields": dict(fields)} if name in _OURS:
            given = {key: read_part(item) for key, item in fields.items()}
            try:
                return _OURS[name](**given)
            except TypeError as error:
                raise _unreadable(said, str(error)) from error
        case {"loss": str(name), "arguments": dict(arguments), "weights": dict(weights)}:
            return _read_loss(said, name, arguments, weights)
        case {"module": dict(described)}:
            return blueprint.build(described)
        case {"partial": called, "keywords": dict(keywords)}:
            return partial(_read_callable(called), **{key: read_part(item) for key, item in keywords.items()})
    return _read_callable(said)


def _say_module(module: torch.nn.Module) -> dict[str, Any]:
    kind = type(module)
    if _NN_LOSSES.get(kind.__name__) is kind and next(module.parameters(), None) is None:
        weights = {name: _say_weights(tensor) for name, tensor in module.named_buffers()}
        names = set(inspect.signature(kind).parameters) - _OLD_ARGUMENTS - set(module._buffers)
        arguments = {name: getattr(module, name) for name in sorted(names)}
        return {"loss": kind.__name__, "arguments": say_part(arguments)["dict"], "weights": weights}
    described = blueprint.describe(module)
    if described is None or module.state_dict():  # its values would be lost
        raise Unsayable(module)
    return {"module": described}


def _say_weights(tensor: torch.Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or tensor.numel() > _MOST_WEIGHTS:
        raise Unsayable(tensor)
    return {"dtype": dtype, "values": tensor.tolist()}


def _read_loss(said: Any, name: str, arguments: dict[str, Any], weights: dict[str, Any]) -> torch.nn.Module:
    try:
        tensors = {
            key: torch.tensor(state["values"], dtype=_DTYPES[state["dtype"]])
            for key, state in weights.items()
        }
        given = {key: read_part(value) for key, value in arguments.items()}
        return cast("torch.nn.Module", _NN_LOSSES[name](**given, **tensors))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(said, f"{type(error).__name__}: {error}") from error


def _say_callable(value: Any) -> dict[str, str]:
    for name, thing in _TORCH.items():
        if thing is value:
            return {"torch": name}
    if inspect.isclass(value) and issubclass(value, _BASES):
        path = f"{value.__module__}:{value.__qualname__}"
        if value.__module__ not in ("__main__", "__mp_main__") and "<locals>" not in path:
            return {"class": path}
    raise Unsayable(value)


def _read_callable(said: Any) -> Any:
    match said:
        case {"torch": str(name)} if name in _TORCH:
            return _TORCH[name]
        case {"class": str(path)}:
            module, _, names = path.partition(":")
            try:
                found: Any = importlib.import_module(module)
            except Exception as error:
                raise _unreadable(path, f"{type(error).__name__}: {error}") from error
            for name in names.split("."):  # without getattr: nothing of the file's choice runs
                found = vars(found).get(name) if inspect.ismodule(found) or inspect.isclass(found) else None
            if inspect.isclass(found) and issubclass(found, _BASES):
                return found
            raise _unreadable(path, "no optimizer or scheduler of that name")
    raise _unreadable(said, "nothing that is known")


def _unreadable(said: Any, problem: str) -> UserError:
    text = f"a saved part: expected a loss, an optimizer or an option, received {said!r:.200}: {problem}"
    hint = "read it with the version of fatwood and with the code that wrote it, or give the part with .give(...)"
    return UserError(text, hint=hint)
