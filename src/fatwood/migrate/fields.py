"""Typed access to the JSON of a layer or vertex; every refusal names its layer and its class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from fatwood.errors import UserError
from fatwood.migrate.configuration import LayerConf

__all__ = ["Fields", "inner", "refused", "simple_name"]

_MOST = 1 << 31


class _Conf(Protocol):  # LayerConf and VertexConf have it
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Any]: ...
    @property
    def source(self) -> str: ...


def simple_name(value: Any) -> str:
    """The simple name of the class of a JSON object: of ``{"@class": "a.b.LossMSE"}`` it is ``LossMSE``.

    Args:
        value: A JSON object with ``"@class"`` or ``"kind"``; "" comes of anything else.
    """
    if not isinstance(value, Mapping):
        return ""
    name = value.get("@class") or value.get("kind") or ""
    return str(name).rpartition(".")[2].rpartition("$")[2]


def refused(conf: _Conf, expected: str, received: Any) -> UserError:
    """The error that names a layer and its class.

    Args:
        conf: Of the layer or vertex.
        expected: What can be migrated.
        received: What the file has.
    """
    return UserError(
        f"layer {conf.name!r} ({conf.source or conf.kind}): expected {expected}, received {str(received)[:120]}",
        hint="build this part with torch.nn by hand, or take it out of the network before it is saved",
    )


def inner(conf: LayerConf, key: str) -> LayerConf:
    """A layer inside another.

    Args:
        conf: Of the outer layer.
        key: Of its fields, such as ``underlying``.

    Raises:
        UserError: There is none.
    """
    found = conf.inner(key)
    if found is None:
        raise refused(conf, f"a layer as {key}", conf.fields.get(key))
    return found


class Fields:
    """The fields of a layer or vertex by name and type.

    Args:
        conf: Of the layer or vertex.
    """

    def __init__(self, conf: _Conf) -> None:
        self.conf = conf

    def get(self, name: str) -> Any:
        """A field as it is; None where it is missing.

        Args:
            name: Of the field.
        """
        return self.conf.fields.get(name)

    def whole(self, name: str, default: int | None = None, *, least: int = 0) -> int:
        """A whole number.

        Args:
            name: Of the field.
            default: Where it is missing; without one it must be there.
            least: The smallest that is allowed.

        Raises:
            UserError: It is something else.
        """
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _MOST:
            raise refused(self.conf, f"a whole number of at least {least} as {name}", value)
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number.

        Args:
            name: Of the field.
            default: Where it is missing or NaN, which the original writes for "not set".

        Raises:
            UserError: It is something else.
        """
        value = self.get(name)
        if value is None or value == "NaN" or (isinstance(value, float) and math.isnan(value)):
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise refused(self.conf, f"a number as {name}", value)
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or False.

        Args:
            name: Of the field.
            default: Where it is missing.

        Raises:
            UserError: It is something else.
        """
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise refused(self.conf, f"true or false as {name}", value)
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """One of some words.

        Args:
            name: Of the field.
            choices: The words.
            default: Where it is missing; without one it must be there.

        Raises:
            UserError: It is something else.
        """
        value = self.get(name)
        value = default if value is None else value
        if value not in choices:
            raise refused(self.conf, f"one of {', '.join(choices)} as {name}", value)
        return str(value)

    def sizes(
        self, name: str, count: int, default: tuple[int, ...] | None = None, *, least: int = 0
    ) -> tuple[int, ...]:
        """Some whole numbers: one for each axis, or for each side of each axis.

        Args:
            name: Of the field; it may be one number for all, and have more of them than needed for one axis.
            count: How many.
            default: Where it is missing; without one it must be there.
            least: The smallest that is allowed.

        Raises:
            UserError: It is something else.
        """
        value = self.get(name)
        if value is None and default is not None:
            return default
        numbers = [value] * count if isinstance(value, int) else value
        if isinstance(numbers, list) and len(numbers) == 1:
            numbers = numbers * count
        if isinstance(numbers, list) and count == 1:
            numbers = numbers[:1]
        good = (
            isinstance(numbers, list)
            and len(numbers) == count
            and all(
                isinstance(one, int) and not isinstance(one, bool) and least <= one < _MOST for one in numbers
            )
        )
        if not good:
            raise refused(self.conf, f"{count} whole numbers of at least {least} as {name}", value)
        return tuple(numbers)

    def channels_last(self, *names: str) -> bool:
        """Whether the data's layout has the channels at the end: ``NHWC`` or ``NWC``.

        Args:
            names: Of the fields that may say it.

        Raises:
            UserError: A layout that is not known.
        """
        for name in names:
            value = self.get(name)
            if value is not None:
                return self.choice(name, ("NCHW", "NHWC", "NCW", "NWC")) in ("NHWC", "NWC")
        return False
