"""How a worker turns minibatches into optimizer steps: schedule, clipping, accumulation, precision, compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from fatwood.errors import OptionError
from fatwood.train.checks import require_number, require_whole

__all__ = ["OptimizerFactory", "Parameters", "Precision", "Recipe", "SchedulerFactory", "made_optimizer"]

OptimizerFactory = Callable[[Any], torch.optim.Optimizer]
"""Makes an optimizer of :class:`Parameters`."""
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]
"""Makes a ``torch.optim.lr_scheduler`` of an optimizer."""
Precision = Literal["float32", "bfloat16", "float16"]


class Parameters(list[torch.nn.Parameter]):
    """A network's trainable parameters, as an optimizer takes them; for groups, the network is there, too.

    Example::

        def optimizer(parameters):
            net = parameters.network
            return torch.optim.SGD([{"params": net.body.parameters(), "lr": 0.01}, {"params": net.head.parameters()}], lr=0.1)

    Args:
        network: Its parameters with ``requires_grad``.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__(p for p in network.parameters() if p.requires_grad)
        self.network = network
        """The network itself."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The same on all workers."""

    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None = None
    schedule: Literal["step", "epoch"] = "step"
    """When the scheduler steps: with every optimizer step, counted alike on all workers, or at an epoch's end."""
    accumulate: int = 1
    """Minibatches whose gradients make one optimizer step."""
    clip_norm: float | None = None
    """The largest 2-norm of all gradients together, at an optimizer step."""
    clip_value: float | None = None
    """The largest absolute value of a gradient's element, at an optimizer step."""
    precision: Precision = "float32"
    """Of forward and loss, through ``torch.autocast``; parameters, gradients and messages stay float32."""
    compile: bool | Mapping[str, Any] = False
    """Whether ``torch.compile`` compiles the network on the workers, or with which arguments."""

    def __post_init__(self) -> None:
        require_whole("accumulate", self.accumulate)
        for name in ("clip_norm", "clip_value"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), above=0)
        for name, choices in (("precision", get_args(Precision)), ("schedule", ("step", "epoch"))):
            if getattr(self, name) not in choices:
                text = f"{name}: expected one of {', '.join(map(repr, choices))}, received {getattr(self, name)!r}"
                raise OptionError(text)
        if not isinstance(self.compile, bool | Mapping):
            text = f"compile: expected True, False or arguments of torch.compile, received {self.compile!r}"
            raise OptionError(text, hint='for example compile={"mode": "reduce-overhead"}')

    def require_fit(self, network: torch.nn.Module) -> None:
        """Refuse an optimizer or scheduler that cannot be made for a network.

        Raises:
            OptionError: The factory failed, returned something else, or left out a trainable parameter.
        """
        made = made_optimizer(self.optimizer, network)
        if self.scheduler is not None:
            self._require_scheduler(made)

    def _require_scheduler(self, optimizer: torch.optim.Optimizer) -> None:
        hint = "pass a factory: functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10)"
        if not callable(self.scheduler):
            text = f"scheduler: expected a function from an optimizer to a scheduler, received {self.scheduler!r}"
            raise OptionError(text, hint=hint)
        try:
            made = self.scheduler(optimizer)
        except Exception as error:
            text = f"scheduler: {type(error).__name__}: {error}"
            raise OptionError(text, hint=hint) from error
        if not hasattr(made, "step") or not hasattr(made, "state_dict"):
            text = f"scheduler: expected the function to return a scheduler of torch, received {type(made).__name__}"
            raise OptionError(text, hint=hint)
        by_metric = isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if by_metric and self.schedule != "epoch":
            text = "scheduler: expected schedule='epoch' with ReduceLROnPlateau, which looks at the epoch's loss, received 'step'"
            raise OptionError(text)


def made_optimizer(factory: OptimizerFactory, network: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimizer of all trainable parameters.

    Raises:
        OptionError: The factory failed, returned something else, or left out a trainable parameter.
    """
    hint = "pass a factory: functools.partial(torch.optim.Adam, lr=1e-3)"
    if isinstance(factory, torch.optim.Optimizer) or not callable(factory):
        text = f"optimizer: expected a function from parameters to an optimizer, received {type(factory).__name__}"
        raise OptionError(text, hint=hint)
    try:
        made = factory(Parameters(network))
    except Exception as error:
        text = f"optimizer: {type(error).__name__}: {error}"
        raise OptionError(text, hint=hint) from error
    if not isinstance(made, torch.optim.Optimizer):
        text = f"optimizer: expected the function to return a torch.optim.Optimizer, received {type(made).__name__}"
        raise OptionError(text, hint=hint)
    _require_same_parameters(made, network)
    return made


def _require_same_parameters(optimizer: torch.optim.Optimizer, network: torch.nn.Module) -> None:
    named = {id(p): name for name, p in network.named_parameters() if p.requires_grad}
    held = {id(p) for p in in_order(optimizer)}
    if missing := [name for key, name in named.items() if key not in held]:
        text = f"optimizer: expected every trainable parameter in one of its groups, received none with {missing[0]!r}"
        raise OptionError(text, hint="freeze it with requires_grad_(False), or add a group")
    if held - named.keys():
        text = "optimizer: expected parameters of the network, received others among its groups"
        raise OptionError(text, hint="take them from the network that is given: parameters.network")


def in_order(optimizer: torch.optim.Optimizer) -> Iterable[torch.nn.Parameter]:
    """An optimizer's parameters, group by group."""
    return (p for group in optimizer.param_groups for p in group["params"])
