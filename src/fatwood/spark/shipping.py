"""How a user's network, loss and optimizer reach the executors: cloudpickle over Spark's own channel.

Code that lies in the user's own scripts and modules travels by value, so nothing of it has to be installed on the
executors; installed packages travel by name. Only this direction is pickled: what comes back is tensors and JSON.
"""

from __future__ import annotations

import functools
import io
import os
import pickle  # what cloudpickle writes, it reads
import sys
import sysconfig
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle
import torch

from fatwood.errors import FatwoodError, ShippingError

__all__ = ["installed_folders", "is_within", "ship", "unship"]

_OUR_PACKAGES = ("fatwood", "pyspark", "py4j")
_MAX_DEPTH = 30


def ship(parts: Mapping[str, Any], *, apart: Callable[[Any], Any] | None = None) -> bytes:
    """Pickle a dict of named parts.

    Args:
        parts: For example ``{"network": net, "loss": loss}``; the names are for the error message.
        apart: Asked for every object: None, or what :func:`unship` is to ask `given` for in its place.

    Raises:
        ShippingError: Something does not pickle; the message names the place, for example ``network.encoder.lock``.
    """
    with _user_modules_by_value():
        try:
            return _dumps(dict(parts), apart)
        except Exception as error:
            for name, value in parts.items():
                reason = _reason(value)
                if reason is not None:
                    place, reason = _culprit(value, name, reason, ())
                    text = f"{place}: cannot be sent to the executors: {type(reason).__name__}: {reason}"
                    hint = (
                        "locks, sessions, connections and open files stay on the driver: make them "
                        "where they are first used, or leave them out in the class's __getstate__"
                    )
                    raise ShippingError(text, hint=hint) from error
            text = f"{', '.join(parts)}: cannot be sent to the executors: {type(error).__name__}: {error}"
            raise ShippingError(text) from error


def unship(shipped: bytes, *, given: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """The parts that :func:`ship` pickled, on an executor.

    Args:
        shipped: From :func:`ship`, on the driver.
        given: The objects that were set apart, by what stood for them.

    Raises:
        ShippingError: They cannot be rebuilt here.
    """
    try:
        if given is None:
            return dict(cloudpickle.loads(shipped))
        return dict(_Unpickler(shipped, given).load())
    except FatwoodError:
        raise
    except Exception as error:
        text = f"network, loss, optimizer or strategy cannot be rebuilt on an executor: {type(error).__name__}: {error}"
        hint = "packages that they use must be installed on the executors, in the driver's versions"
        raise ShippingError(text, hint=hint) from error


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Like cloudpickle's, but modules by value may import each other."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType) and obj.__name__ in cloudpickle.list_registry_pickle_by_value():
            return _empty_module, (obj.__name__,), _content(obj), None, None, _fill_module
        return super().reducer_override(obj)


class _ApartPickler(_Pickler):
    """Leaves out what goes another way."""

    def __init__(self, file: io.BytesIO, apart: Callable[[Any], Any]) -> None:
        super().__init__(file)
        self._apart = apart

    def persistent_id(self, obj: Any) -> Any:
        return self._apart(obj)


class _Unpickler(pickle.Unpickler):
    """Asks for what came another way."""

    def __init__(self, shipped: bytes, given: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(shipped))
        self._given = given

    def persistent_load(self, pid: Any) -> Any:
        return self._given(pid)


class _PartPickler(_Pickler):
    """Leaves out what a part refers back to, so that a part fails for a reason of its own or not at all."""

    def __init__(self, file: io.BytesIO, above: Container[int]) -> None:
        super().__init__(file)
        self._above = above

    def persistent_id(self, obj: Any) -> int | None:
        return id(obj) if id(obj) in self._above else None


def _dumps(value: Any, apart: Callable[[Any], Any] | None = None) -> bytes:
    with io.BytesIO() as file:
        (_Pickler(file) if apart is None else _ApartPickler(file, apart)).dump(value)
        return file.getvalue()


def _content(module: ModuleType) -> dict[str, Any]:
    machinery = ("__builtins__", "__cached__", "__loader__", "__spec__")
    return {name: value for name, value in vars(module).items() if name not in machinery}


def _empty_module(name: str) -> ModuleType:
    return ModuleType(name)


def _fill_module(module: ModuleType, content: dict[str, Any]) -> None:
    vars(module).update(content)


def _reason(value: Any, above: Container[int] = ()) -> Exception | None:
    try:
        _PartPickler(io.BytesIO(), above).dump(value)
    except Exception as error:
        return error
    return None


def _culprit(value: Any, place: str, reason: Exception, above: tuple[int, ...]) -> tuple[str, Exception]:
    """Follow the first part that does not pickle down to where its own parts all do."""
    above = (*above, id(value))
    if len(above) < _MAX_DEPTH:
        for name, part in _parts(value):
            part_reason = _reason(part, above)
            if part_reason is not None:
                return _culprit(part, place + name, part_reason, above)
    return place, reason


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, as far as the user can change it, with what to write behind the value's place."""
    if isinstance(value, dict):
        yield from ((f"[{name!r}]", part) for name, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    elif isinstance(value, MethodType):
        yield from [(".__self__", value.__self__), (".__func__", value.__func__)]
    elif isinstance(value, staticmethod | classmethod):
        yield "", value.__func__
    elif isinstance(value, property):
        yield "", value.fget
    elif isinstance(value, FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, ModuleType):
        yield from ((f".{name}", part) for name, part in _content(value).items())
    elif isinstance(value, type):
        own = {k: v for k, v in vars(value).items() if k not in ("__dict__", "__weakref__")}
        yield from ((f".{name}", part) for name, part in own.items())
        yield from ((f" (base class {base.__name__})", base) for base in value.__bases__)
    elif isinstance(value, torch.nn.Module):
        own = {k: v for k, v in vars(value).items() if k not in ("_modules", "_parameters", "_buffers")}
        named = {**value._modules, **value._parameters, **value._buffers, **own}
        yield from ((f".{name}", part) for name, part in named.items())
        yield "", type(value)
    elif hasattr(value, "__dict__") and _is_users_class(type(value)):
        yield from ((f".{name}", part) for name, part in vars(value).items())
        yield "", type(value)


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" (variable {name!r} of the enclosing function)", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in sorted(_names(function.__code__) & function.__globals__.keys()):
        yield f" (global {name!r} of {function.__module__})", function.__globals__[name]
    yield from ((f" (default {i})", part) for i, part in enumerate(function.__defaults__ or ()))


def _names(code: CodeType) -> set[str]:
    """The names of globals and attributes that code uses, functions within it included."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _is_users_class(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    return cls.__module__ == "__main__" or _is_users(cls.__module__, module, installed_folders())


@contextmanager
def _user_modules_by_value() -> Iterator[None]:
    registered = []
    installed = installed_folders()
    for name, module in list(sys.modules.items()):
        if _is_users(name, module, installed) and name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _is_users(name: str, module: Any, installed: tuple[str, ...]) -> bool:
    path = getattr(module, "__file__", None)
    if not isinstance(module, ModuleType) or module.__name__ != name or not path or not path.endswith(".py"):
        return False  # C extensions cannot travel by value
    if name == "__main__" or name.split(".", maxsplit=1)[0] in _OUR_PACKAGES:
        return False  # cloudpickle sends __main__ by value anyway
    return not is_within(path, installed)


def installed_folders() -> tuple[str, ...]:
    """The folders of installed packages and of the standard library, as they are named and as they are, for `is_within`."""
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))
    return tuple(
        {os.path.join(name, "") for folder in folders for name in (folder, os.path.realpath(folder))}
    )


def is_within(path: str, folders: tuple[str, ...]) -> bool:
    """Whether a file, as it is named or as it is, lies in one of the folders, which end in a separator."""
    return os.path.abspath(path).startswith(folders) or os.path.realpath(path).startswith(folders)
