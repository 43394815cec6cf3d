"""How a user's network, loss and optimizer reach the executors: cloudpickle over Spark's own channel.

Code that lies in the user's own scripts and modules travels by value, so nothing of it has to be installed on the
executors; installed packages travel by name. Only this direction is pickled: what comes back is tensors and JSON.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import torch

from fatwood.errors import ShippingError

__all__ = ["ship"]


def ship(parts: Mapping[str, Any]) -> bytes:
    """Pickle a dict of named parts.

    Args:
        parts: For example ``{"network": net, "loss": loss}``; the names are for the error message.

    Raises:
        ShippingError: Something does not pickle; the message names the attribute, for example ``network.encoder.lock``.
    """
    with _user_modules_by_value():
        try:
            return bytes(cloudpickle.dumps(dict(parts)))
        except Exception as error:
            for name, value in parts.items():
                reason = _reason(value)
                if reason is not None:
                    place, reason = _culprit(value, name, reason, depth=0)
                    text = f"{place}: cannot be sent to the executors: {type(reason).__name__}: {reason}"
                    hint = "make it when it is first used, or leave it out in the class's __getstate__"
                    raise ShippingError(text, hint=hint) from error
            raise


def _reason(value: Any) -> Exception | None:
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        return error
    return None


def _culprit(value: Any, place: str, reason: Exception, depth: int) -> tuple[str, Exception]:
    """Follow the first attribute that does not pickle down to where its own attributes all do."""
    if depth < 20:
        for name, part in _parts(value):
            part_reason = _reason(part)
            if part_reason is not None:
                return _culprit(part, place + name, part_reason, depth + 1)
    return place, reason


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.nn.Module):
        own = {k: v for k, v in vars(value).items() if k not in ("_modules", "_parameters", "_buffers")}
        for name, part in {**own, **value._modules, **value._parameters, **value._buffers}.items():
            yield f".{name}", part
    elif isinstance(value, dict):
        for name, part in value.items():
            yield f"[{name!r}]", part
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield f"[{i}]", part
    elif callable(value) and getattr(value, "__closure__", None):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__, strict=True):
            yield f" (variable {name!r} of the enclosing function)", cell.cell_contents
    elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        for name, part in vars(value).items():
            yield f".{name}", part


@contextmanager
def _user_modules_by_value() -> Iterator[None]:
    registered = []
    for name, module in list(sys.modules.items()):
        if _is_users(name, module) and name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _is_users(name: str, module: Any) -> bool:
    path = getattr(module, "__file__", None)
    if not isinstance(module, ModuleType) or module.__name__ != name or not path or not path.endswith(".py"):
        return False  # C extensions cannot travel by value
    if name == "__main__" or name.split(".", maxsplit=1)[0] in ("fatwood", "pyspark", "py4j"):
        return False  # cloudpickle sends __main__ by value anyway
    file = Path(path).resolve()
    return not any(file.is_relative_to(root) for root in _installed_roots())


def _installed_roots() -> list[Path]:
    paths = sysconfig.get_paths()
    roots = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots.update(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))
    return [Path(root).resolve() for root in roots]
