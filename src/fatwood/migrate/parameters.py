"""A layer as a PyTorch module, with the way its arrays go from the original's layout into it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fatwood.errors import UserError

__all__ = ["LayerPlan", "ParameterSpec", "Placement", "row"]

Placement: TypeAlias = "Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]"
"""From one array of the original to the module's tensors that it fills, by name."""


@dataclass(frozen=True)
class ParameterSpec:
    """One array of a layer in the flat vector."""

    key: str
    """The original's name, such as ``W``, ``RW``, ``b``, ``gamma``."""
    shape: tuple[int, ...]
    """As the original sees it, such as inputs by outputs."""
    order: Literal["f", "c"] = "f"
    """Of its elements in the vector: columns first ("f") or rows first ("c")."""
    trained: bool = True
    """False for statistics (mean and variance) and for frozen layers."""

    @property
    def length(self) -> int:
        """How many elements it has."""
        length = 1
        for size in self.shape:
            length *= size
        return length


@dataclass(frozen=True)
class LayerPlan:
    """A layer's module and what fills it."""

    module: nn.Module
    parameters: tuple[ParameterSpec, ...] = ()
    """In the order of the flat vector."""
    placements: Mapping[str, Placement] = field(default_factory=dict)
    """By key."""
    notes: tuple[str, ...] = ()
    """What differs from the original when it is trained further."""

    def place(self, key: str, array: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Where the numbers of one array go: also those of an optimizer's state, which have the array's layout.

        Args:
            key: Of a spec in `parameters`.
            array: Of its shape; a bias may be a row vector.

        Returns:
            Arrays by the names of the module's tensors, in their shapes.

        Raises:
            UserError: The array has another size.
        """
        spec = next(spec for spec in self.parameters if spec.key == key)
        array = np.asarray(array)
        if array.size != spec.length or (array.shape != spec.shape and array.squeeze().ndim > 1):
            problem = f"parameter {key}: expected an array of shape {spec.shape}, received {array.shape}"
            raise UserError(problem)
        return self.placements[key](array.reshape(spec.shape))

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put the original's arrays into the module, in the type that the module has.

        Args:
            arrays: By key, in the original's shapes.

        Raises:
            UserError: An array is missing, or has another size.
        """
        tensors = self.module.state_dict(keep_vars=True)
        with torch.no_grad():
            for spec in self.parameters:
                if spec.key not in arrays:
                    problem = (
                        f"parameters of a layer: expected {spec.key}, received {', '.join(arrays) or 'none'}"
                    )
                    raise UserError(problem)
                for name, value in self.place(spec.key, arrays[spec.key]).items():
                    tensors[name].copy_(torch.from_numpy(np.array(value)))

    def renamed(self, prefix: str, rename: Callable[[str], str] = str) -> LayerPlan:
        """The same parameters, as those of a module of which this one is a part.

        Args:
            prefix: The part's name in the module, with a dot.
            rename: From this plan's keys to those of the whole.
        """

        def prefixed(placement: Placement) -> Placement:
            return lambda array: {prefix + name: value for name, value in placement(array).items()}

        return replace(
            self,
            parameters=tuple(replace(spec, key=rename(spec.key)) for spec in self.parameters),
            placements={rename(key): prefixed(value) for key, value in self.placements.items()},
        )

    def within(self, wrap: Callable[[nn.Module], nn.Module], attribute: str) -> LayerPlan:
        """The plan of a module around this one's.

        Args:
            wrap: Makes it.
            attribute: Under which it holds the module.
        """
        return replace(self.renamed(f"{attribute}."), module=wrap(self.module))


def row(parts: Sequence[tuple[str, nn.Module | LayerPlan | None]]) -> LayerPlan:
    """The plan of some parts one after another.

    Args:
        parts: Names and modules or plans; None stands for nothing.

    Returns:
        The plan of an ``nn.Sequential``; of the part itself where there is one, of an ``nn.Identity`` where there is none.
    """
    plans = [
        (name, part if isinstance(part, LayerPlan) else LayerPlan(part))
        for name, part in parts
        if part is not None
    ]
    if len(plans) == 1:
        return plans[0][1]
    inner = [plan.renamed(f"{name}.") for name, plan in plans]
    modules = OrderedDict((name, plan.module) for name, plan in plans)
    return LayerPlan(
        module=nn.Sequential(modules) if plans else nn.Identity(),
        parameters=tuple(spec for plan in inner for spec in plan.parameters),
        placements={key: value for plan in inner for key, value in plan.placements.items()},
        notes=tuple(note for plan in inner for note in plan.notes),
    )
