"""What the command line says of a network and its rows, as arguments of :func:`fatwood.planning.plan`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fatwood.errors import OptionError, UserCodeError
from fatwood.train import AllReduce, DiLoCo, GradientSharing, ParameterAveraging, Strategy

__all__ = ["OPTIMIZERS", "STRATEGIES", "arguments", "shape"]

STRATEGIES: Mapping[str, type[Strategy]] = {
    "allreduce": AllReduce,
    "sharing": GradientSharing,
    "averaging": ParameterAveraging,
    "diloco": DiLoCo,
}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
}


def arguments(
    network: str,
    *,
    batch_size: int,
    features_shape: str | None,
    ids: int | None,
    classes: int | None,
    label_shape: str | None,
    optimizer: str,
) -> dict[str, Any]:
    """Network, loss, optimizer and example rows.

    Args:
        network: A model file's path or URI, or ``module:function``, which returns the network, or a dict of arguments.
        batch_size: Random rows that are made.
        features_shape: Of a row, as ``1x28x28``.
        ids: Features are whole numbers below this one; None for normal random numbers.
        classes: Labels are whole numbers below this one, and the loss is cross-entropy.
        label_shape: Labels are random numbers of this shape, and the loss is the mean squared error.
        optimizer: One of :data:`OPTIMIZERS`.

    Raises:
        OptionError: Something is missing or cannot be read.
        UserCodeError: The function raised.
    """
    found = _called(network) if re.fullmatch(r"[\w.]+:\w+", network) else _loaded(network)
    given = dict(found) if isinstance(found, Mapping) else {"network": found}
    given.setdefault("optimizer", OPTIMIZERS[optimizer])
    if "features" not in given:
        if features_shape is None:
            text = "--features-shape: expected the shape of a row, such as 1x28x28, received none"
            raise OptionError(text, hint="or name a function that returns a dict with features and label")
        size = (4 * batch_size, *shape(features_shape, "--features-shape"))
        given["features"] = torch.randn(size) if ids is None else torch.randint(0, ids, size)
    if "label" not in given:
        given["label"] = _labels(4 * batch_size, classes, label_shape)
    given.setdefault("loss", torch.nn.MSELoss() if classes is None else torch.nn.CrossEntropyLoss())
    return given


def _labels(rows: int, classes: int | None, label_shape: str | None) -> torch.Tensor:
    if (classes is None) == (label_shape is None):
        received = "none" if classes is None else "both"
        text = f"labels: expected one of --classes and --label-shape, received {received}"
        raise OptionError(text)
    if label_shape is not None:
        return torch.randn(rows, *shape(label_shape, "--label-shape"))
    return torch.randint(0, classes or 1, (rows,))


def shape(text: str, option: str) -> tuple[int, ...]:
    """The sizes of ``1x28x28``.

    Raises:
        OptionError: It is no shape.
    """
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", text):
        message = f"{option}: expected sizes such as 784 or 1x28x28, received {text!r}"
        raise OptionError(message)
    return tuple(int(part) for part in text.split("x"))


def _loaded(uri: str) -> torch.nn.Module:
    from fatwood.model import SparkModel

    return SparkModel.load(uri, run=False).network


def _called(name: str) -> Any:
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python script.py` has its folder there
    try:
        made = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        text = (
            f"{name}: expected a function that can be imported here, received {type(error).__name__}: {error}"
        )
        raise OptionError(text) from error
    finally:
        sys.path.pop(0)
    try:
        return made()
    except Exception as error:
        text = f"{name}() raised {type(error).__name__}: {error}"
        raise UserCodeError(text) from error
