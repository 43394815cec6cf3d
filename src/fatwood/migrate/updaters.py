"""What the original calls updaters, as optimizers of PyTorch: their options, and what they keep for each parameter.

With g the gradient, t the steps done so far plus 1, and lr, b1, b2, d, e as configured, the original subtracts from a parameter:

============  ===========================================================================  ============================================
updater       update                                                                       ``torch.optim``
============  ===========================================================================  ============================================
``Sgd``       lr g                                                                         ``SGD``, the same
``Nesterovs`` -(m v' - lr g) with v' = m v - lr g, m the momentum                          ``SGD(nesterov=True)``, the same: its
                                                                                           buffer is -v / lr
``Adam``      lr sqrt(1 - b2^t) / (1 - b1^t) m' / (sqrt(v') + e)                           ``Adam``; it adds e after v' was
                                                                                           divided by 1 - b2^t, which matters where v'
                                                                                           is as small as e^2
``AMSGrad``   as Adam, with the greatest v' so far                                         ``Adam(amsgrad=True)``; as Adam
``AdaMax``    lr / (1 - b1^t) m' / (max(b2 u, abs(g)) + 1e-32)                             ``Adamax``; e is 1e-32
``RmsProp``   lr g / (sqrt(G') + e) with G' = d G + (1 - d) g^2                            ``RMSprop``, the same
``AdaGrad``   lr g / (sqrt(G') + e) with G' = G + g^2                                      ``Adagrad``, the same
``AdaDelta``  g sqrt(D + e) / sqrt(G' + e)                                                 ``Adadelta(lr=1)``, the same
============  ===========================================================================  ============================================

``Nadam`` has no equal in PyTorch, whose ``NAdam`` has a schedule of the momentum, and ``NoOp`` with weights is gradient descent with a rate of 1.
Formulas of the original: ``libnd4j/include/ops/declarable/helpers/cpu/updater*.cpp``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fatwood.migrate.configuration import CLASS, kind_of

__all__ = ["STATES", "Updater", "number", "updater_of"]

STATES: Mapping[str, int] = {
    "Sgd": 0,
    "NoOp": 0,
    "Nesterovs": 1,
    "RmsProp": 1,
    "AdaGrad": 1,
    "Adam": 2,
    "AdaMax": 2,
    "AdaDelta": 2,
    "Nadam": 2,
    "AMSGrad": 3,
}
"""Numbers that an updater keeps for each parameter, by its class."""


@dataclass(frozen=True)
class Updater:
    """An optimizer of PyTorch with options, and the names of what it keeps."""

    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    """Of a parameter group."""
    states: tuple[str, ...] = ()
    """In the order in which the original has them."""
    scale: float = 1.0
    """What the original's numbers are multiplied with."""
    counts: bool = False
    """Whether it keeps the number of steps beside them."""


def updater_of(state: Mapping[str, Any], iteration: int, epoch: int) -> Updater | str:
    """What an updater's JSON is in PyTorch.

    Args:
        state: Such as ``{"@class": "org.nd4j.linalg.learning.config.Adam", "learningRate": 0.001, ...}``.
        iteration: Steps that were done: schedules have their value of then.
        epoch: Likewise.

    Returns:
        The updater, or why there is none.
    """
    kind = kind_of(str(state.get(CLASS)))
    make = _KINDS.get(kind)
    if make is None:
        return f"the updater {kind} has no equal in torch.optim"
    rate = number(state.get("learningRateSchedule"), iteration, epoch)
    if rate is None:
        rate = number(state.get("learningRate"), iteration, epoch)
    if rate is None and kind != "AdaDelta":
        return f"the learning rate of {kind} is not a number or schedule that is read"
    found: dict[str, float] = {"lr": 1.0 if rate is None else rate}
    for name in ("beta1", "beta2", "epsilon", "rmsDecay", "rho", "momentum"):
        value = number(state.get(name), iteration, epoch)
        if value is not None:
            found[name] = value
    scheduled = number(state.get("momentumISchedule"), iteration, epoch)
    if scheduled is not None:
        found["momentum"] = scheduled
    try:
        return make(found)
    except KeyError as error:
        return f"{kind} has no number {error.args[0]!r}"


def _sgd(given: Mapping[str, float]) -> Updater:
    return Updater(torch.optim.SGD, {"lr": given["lr"], "momentum": 0.0, "nesterov": False})


def _nesterovs(given: Mapping[str, float]) -> Updater:
    momentum = given["momentum"]
    options = {"lr": given["lr"], "momentum": momentum, "nesterov": momentum > 0}
    scale = -1.0 / given["lr"] if given["lr"] else 0.0
    return Updater(torch.optim.SGD, options, ("momentum_buffer",), scale)


def _adam(given: Mapping[str, float]) -> Updater:
    options = {
        "lr": given["lr"],
        "betas": (given["beta1"], given["beta2"]),
        "eps": given["epsilon"],
        "amsgrad": False,
    }
    return Updater(torch.optim.Adam, options, ("exp_avg", "exp_avg_sq"), counts=True)


def _amsgrad(given: Mapping[str, float]) -> Updater:
    adam = _adam(given)
    names = (*adam.states, "max_exp_avg_sq")
    return Updater(torch.optim.Adam, {**adam.options, "amsgrad": True}, names, counts=True)


def _adamax(given: Mapping[str, float]) -> Updater:
    options = {"lr": given["lr"], "betas": (given["beta1"], given["beta2"]), "eps": 1e-32}
    return Updater(torch.optim.Adamax, options, ("exp_avg", "exp_inf"), counts=True)


def _rms_prop(given: Mapping[str, float]) -> Updater:
    options = {"lr": given["lr"], "alpha": given["rmsDecay"], "eps": given["epsilon"]}
    return Updater(torch.optim.RMSprop, options, ("square_avg",), counts=True)


def _ada_grad(given: Mapping[str, float]) -> Updater:
    return Updater(torch.optim.Adagrad, {"lr": given["lr"], "eps": given["epsilon"]}, ("sum",), counts=True)


def _ada_delta(given: Mapping[str, float]) -> Updater:
    options = {"lr": 1.0, "rho": given["rho"], "eps": given["epsilon"]}
    return Updater(torch.optim.Adadelta, options, ("square_avg", "acc_delta"), counts=True)


_KINDS: Mapping[str, Callable[[Mapping[str, float]], Updater]] = {
    "Sgd": _sgd,
    "Nesterovs": _nesterovs,
    "Adam": _adam,
    "AMSGrad": _amsgrad,
    "AdaMax": _adamax,
    "RmsProp": _rms_prop,
    "AdaGrad": _ada_grad,
    "AdaDelta": _ada_delta,
}


def number(value: Any, iteration: int, epoch: int) -> float | None:
    """A number of the JSON, or the value that a schedule has; None where it is neither, or not finite.

    Args:
        value: A number, or a schedule of the original such as ``ExponentialSchedule``.
        iteration: Steps that were done.
        epoch: Epochs that were done.
    """
    if isinstance(value, Mapping):
        try:
            value = _scheduled(value, iteration if value.get("scheduleType") == "ITERATION" else epoch)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _scheduled(schedule: Mapping[str, Any], i: int) -> Any:
    kind = kind_of(str(schedule.get(CLASS)))
    if kind == "FixedSchedule":
        return schedule["value"]
    if kind == "MapSchedule":
        values = {int(key): value for key, value in schedule["values"].items()}
        return values[max(key for key in values if key <= i)]
    first = schedule["initialValue"]
    if kind == "ExponentialSchedule":
        return first * schedule["gamma"] ** i
    if kind == "StepSchedule":
        return first * schedule["decayRate"] ** (i // schedule["step"])
    if kind == "InverseSchedule":
        return first / (1 + schedule["gamma"] * i) ** schedule["power"]
    if kind == "PolySchedule":
        return first * (1 + i / schedule["maxIter"]) ** schedule["power"] if i < schedule["maxIter"] else 0.0
    raise KeyError(kind)
