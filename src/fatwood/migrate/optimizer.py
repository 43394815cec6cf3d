"""The optimizer of a saved network, and the state it had, as one of PyTorch.

The original keeps the state of all parameters in one vector, in **blocks**: as long as neighbours in the flat vector of parameters have updaters
with equal options they are one block, and a block has the first number of all its parameters, then the second of all::

    parameters   W0 b0 W1 | mean var | W2 b2              no state for mean and var, so two blocks of Adam
    state        m(W0 b0 W1) v(W0 b0 W1) m(W2 b2) v(W2 b2)

Source: ``BaseMultiLayerUpdater``, ``UpdaterBlock``. In versions 0.8 and before updaters with several numbers lie otherwise, and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.errors import DamagedError, OptionError
from fatwood.migrate.configuration import CLASS, kind_of
from fatwood.migrate.updaters import STATES, Updater, number, updater_of

__all__ = ["SavedOptimizer", "Trained", "saved_optimizer"]


@dataclass(frozen=True)
class Trained:
    """One array of the flat vector, with what trains it."""

    name: str
    """Of layer and parameter, for messages."""
    shape: tuple[int, ...]
    order: str
    updater: Mapping[str, Any] | None
    """Its JSON; None for what no optimizer changes."""
    regularization: Sequence[Mapping[str, Any]]
    place: Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]
    """From an array to the network's tensors, by their names in the network."""
    old: bool = False
    """Whether a file of 0.8 or before says so."""

    @property
    def length(self) -> int:
        """Of the array."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SavedOptimizer:
    """Makes the optimizer of a saved network, its state included; for ``SparkModel(optimizer=...)``.

    Called with the network's trainable parameters, in its order.

    Args:
        kind: The class.
        groups: Options by group.
        group_of: For each trainable parameter, its group.
        state: For each trainable parameter what the optimizer keeps; None without.
    """

    kind: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    groups: tuple[Mapping[str, Any], ...]
    group_of: tuple[int, ...]
    state: tuple[Mapping[str, torch.Tensor], ...] | None = field(default=None, repr=False)

    def __call__(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer of the parameters.

        Args:
            parameters: All that are trained, in the network's order.

        Raises:
            OptionError: They are not as many as those of the saved network.
        """
        given = list(parameters)
        if len(given) != len(self.group_of):
            text = f"optimizer: expected {len(self.group_of)} parameters of the network that was read, received {len(given)}"
            raise OptionError(
                text, hint="pass all trainable parameters of MigratedNetwork.network, unchanged"
            )
        members = [[i for i, own in enumerate(self.group_of) if own == g] for g in range(len(self.groups))]
        groups = [
            {**options, "params": [given[i] for i in own]}
            for options, own in zip(self.groups, members, strict=True)
        ]
        optimizer = self.kind(groups)
        if self.state is not None:
            packed = optimizer.state_dict()
            order = [i for own in members for i in own]
            packed["state"] = {
                n: {name: value.clone() for name, value in self.state[i].items()} for n, i in enumerate(order)
            }
            optimizer.load_state_dict(packed)
        return optimizer

    def to_json(self) -> dict[str, Any]:
        """Class, options of the groups, and whether there is a state, as JSON values."""
        groups = [dict(group) for group in self.groups]
        name = getattr(self.kind, "__name__", str(self.kind))
        return {"class": name, "groups": groups, "state": self.state is not None}


def saved_optimizer(
    network: torch.nn.Module,
    arrays: Sequence[Trained],
    state: NDArray[Any] | None,
    *,
    iteration: int,
    epoch: int,
) -> tuple[SavedOptimizer | None, list[str]]:
    """The optimizer that trained a network.

    Args:
        network: The one that was read.
        arrays: All of the flat vector, in its order.
        state: The flat state, or None.
        iteration: Steps that were done.
        epoch: Epochs that were done.

    Returns:
        The optimizer, or None where there is none like it; and notes on what is left out.

    Raises:
        DamagedError: The state has another length than the parameters' updaters need.
    """
    notes: list[str] = []
    options: dict[str, Updater] = {}
    decays: dict[str, float] = {}
    kinds: dict[str, Updater] = {}
    for array in arrays:
        if array.updater is None:
            continue
        updater = updater_of(array.updater, iteration, epoch)
        if isinstance(updater, str):
            return None, [f"no optimizer: {array.name}: {updater}"]
        kinds.setdefault(kind_of(str(array.updater.get(CLASS))), updater)
        decay = _weight_decay(array, iteration, epoch, notes)
        for name in array.place(np.zeros(array.shape, np.float32)):
            options[name], decays[name] = updater, decay
    if len({updater.optimizer for updater in kinds.values()}) != 1:
        reason = f"the layers have several kinds, {', '.join(kinds)}" if kinds else "no layer has one"
        return None, [f"no optimizer: {reason}"]
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    without = [name for name in names if name not in options]
    if without:
        return None, [f"no optimizer: the file names none for {without[0]}"]
    groups: list[dict[str, Any]] = []
    group_of = []
    for name in names:
        group = {**options[name].options, "weight_decay": decays[name]}
        if group not in groups:
            groups.append(group)
        group_of.append(groups.index(group))
    tensors = None if state is None else _state(network, names, arrays, options, state, iteration, notes)
    kind = next(iter(kinds.values())).optimizer
    return SavedOptimizer(kind, tuple(groups), tuple(group_of), tensors), list(dict.fromkeys(notes))


def _weight_decay(array: Trained, iteration: int, epoch: int, notes: list[str]) -> float:
    """The sum of L2 terms, which PyTorch's optimizers add to the gradient as the original does; the rest is noted."""
    total = 0.0
    for term in array.regularization:
        kind = kind_of(str(term.get(CLASS)))
        value = number(term.get("l2"), iteration, epoch) if kind == "L2Regularization" else None
        if value is None or value < 0:
            notes.append(f"left out: {kind} of {array.name.rpartition('.')[0]}")
        else:
            total += value
    return total


def _state(
    network: torch.nn.Module,
    names: Sequence[str],
    arrays: Sequence[Trained],
    options: Mapping[str, Updater],
    state: NDArray[Any],
    iteration: int,
    notes: list[str],
) -> tuple[Mapping[str, torch.Tensor], ...] | None:
    blocks = _blocks(arrays)
    expected = sum(_states(block) * sum(array.length for array in block) for block in blocks)
    if expected != state.size:
        text = f"updaterState.bin: expected {expected} numbers for the updaters of the layers, received {state.size}"
        raise DamagedError(text, hint="read the network without them: from_dl4j(..., updater=False)")
    if any(array.old and _states([array]) > 1 for array in arrays):
        notes.append("left out: the optimizer's state, whose order in versions 0.8 and before is not known")
        return None
    shapes = dict(network.named_parameters())
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    at = 0
    for block in blocks:
        for k in range(_states(block)):
            for array in block:
                piece = state[at : at + array.length].astype(np.float64)
                at += array.length
                shaped = piece.reshape(array.shape, order="F" if array.order == "f" else "C")
                for name, value in array.place(shaped).items():
                    updater = options[name]
                    if name in found and k < len(updater.states):
                        numbers = torch.from_numpy(np.array(value * updater.scale))
                        found[name][updater.states[k]] = numbers.to(shapes[name].dtype)
    for name in names:
        if options[name].counts and found[name]:
            found[name]["step"] = torch.tensor(float(iteration))
    return tuple(found[name] for name in names)


def _blocks(arrays: Sequence[Trained]) -> list[list[Trained]]:
    """Neighbours with equal updaters; those that nothing changes are none, and part the others."""
    blocks: list[list[Trained]] = []
    before: Mapping[str, Any] | None = None
    for array in arrays:
        if array.updater is not None:
            if array.updater == before:
                blocks[-1].append(array)
            else:
                blocks.append([array])
        before = array.updater
    return blocks


def _states(block: Sequence[Trained]) -> int:
    updater = block[0].updater
    return 0 if updater is None else STATES[kind_of(str(updater.get(CLASS)))]
