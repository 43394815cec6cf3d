"""Layers around another layer: both directions, the last step, masks from the data, frozen parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.context import Context, Contextual, flipped, mask_for, run
from fatwood.migrate.fields import Fields, inner
from fatwood.migrate.layouts import FeaturesFirst
from fatwood.migrate.parameters import LayerPlan
from fatwood.migrate.recurrent import graves_bidirectional

__all__ = [
    "Bidirectional",
    "LastStep",
    "MaskZero",
    "MaskedSteps",
    "bidirectional",
    "frozen",
    "last_step",
    "last_time_step",
    "mask_steps",
    "mask_zero",
    "time_distributed",
    "two_directions",
]

Make = Callable[[LayerConf], LayerPlan]


class Bidirectional(Contextual):
    """Two layers over a sequence, one of them in reverse.

    Args:
        ahead: From the first step to the last.
        back: From the last step to the first.
        mode: ``CONCAT``, ``ADD``, ``MUL`` or ``AVERAGE`` of their outputs.
        features_first: Whether sequences are ``[rows, features, steps]``.
    """

    def __init__(self, ahead: nn.Module, back: nn.Module, mode: str, *, features_first: bool = True) -> None:
        super().__init__()
        self.ahead = ahead
        self.back = back
        self.mode = mode
        self.features_first = features_first

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Both outputs, joined.

        Args:
            x: The sequences.
            context: Of the network's call.
        """
        steps = 2 if self.features_first else 1
        one = run(self.ahead, x, context=context)
        two = run(self.back, x.flip(steps), context=flipped(context))
        two = two if two.ndim == 2 else two.flip(steps)
        if self.mode == "CONCAT":
            return torch.cat([one, two], 1 if self.features_first or one.ndim == 2 else 2)
        if self.mode == "MUL":
            return one * two
        return (one + two) * (0.5 if self.mode == "AVERAGE" else 1.0)

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"{self.mode}, features_first={self.features_first}"


def two_directions(ahead: LayerPlan, back: LayerPlan, mode: str, *, features_first: bool) -> LayerPlan:
    """A plan of both directions, whose keys differ.

    Args:
        ahead: From the first step to the last.
        back: From the last step to the first.
        mode: As in `Bidirectional`.
        features_first: Likewise.
    """
    one, two = ahead.renamed("ahead."), back.renamed("back.")
    return LayerPlan(
        Bidirectional(ahead.module, back.module, mode, features_first=features_first),
        one.parameters + two.parameters,
        {**one.placements, **two.placements},
        tuple(dict.fromkeys(one.notes + two.notes)),
    )


def bidirectional(conf: LayerConf, make: Make) -> LayerPlan:
    """``Bidirectional``, and ``GravesBidirectionalLSTM``, which is its older form.

    Args:
        conf: Of the layer.
        make: Makes the plan of a layer inside.

    Raises:
        UserError: An option that is not known here.
    """
    if conf.kind == "GravesBidirectionalLSTM":
        return graves_bidirectional(
            conf, lambda one, two: two_directions(one, two, "ADD", features_first=True)
        )
    one, two = inner(conf, "fwd"), inner(conf, "bwd")
    ahead = make(one).renamed("", lambda key: "f" + key)
    back = make(two).renamed("", lambda key: "b" + key)
    mode = Fields(conf).choice("mode", ("CONCAT", "ADD", "MUL", "AVERAGE"))
    first = not _steps_first(one)
    return two_directions(ahead, back, mode, features_first=first)


def _steps_first(conf: LayerConf) -> bool:
    """Whether a recurrent layer, or the one that it is around, takes ``NWC``."""
    while conf.fields.get("underlying") is not None:
        conf = inner(conf, "underlying")
    return Fields(conf).channels_last("rnnDataFormat")


def last_step(outputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The last real step of each sequence.

    Args:
        outputs: ``[rows, features, steps]``.
        mask: Of the steps.

    Returns:
        ``[rows, features]``; of a sequence without real steps the first one.
    """
    if mask is None:
        return outputs[:, :, -1]
    place = torch.arange(mask.shape[1], device=mask.device)
    last = (place * (mask != 0)).argmax(1)
    return outputs[torch.arange(outputs.shape[0], device=outputs.device), :, last]


class LastStep(Contextual):
    """The last real step of a layer's output.

    Args:
        layer: Gives sequences.
        features_first: Whether they are ``[rows, features, steps]``.
    """

    def __init__(self, layer: nn.Module, *, features_first: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.features_first = features_first

    def mask_after(self, context: Context) -> torch.Tensor | None:  # noqa: ARG002
        """None: there are no steps any more.

        Args:
            context: That it was called with.
        """
        return None

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """``[rows, features]``.

        Args:
            x: The sequences.
            context: Of the network's call.
        """
        outputs = run(self.layer, x, context=context)
        outputs = outputs if self.features_first else outputs.transpose(1, 2)
        return last_step(outputs, mask_for(context, outputs.shape[0], outputs.shape[2]))


def last_time_step(conf: LayerConf, make: Make) -> LayerPlan:
    """``LastTimeStep``.

    Args:
        conf: Of the layer.
        make: Makes the plan of the layer inside.

    Raises:
        UserError: An option that is not known here.
    """
    first = not _steps_first(conf)
    return make(inner(conf, "underlying")).within(
        lambda layer: LastStep(layer, features_first=first), "layer"
    )


class MaskZero(Contextual):
    """A layer with the mask of the steps that have another number than one that stands for "none".

    Args:
        layer: That takes the mask.
        value: A step with nothing but this number is not real.
        features_first: Whether sequences are ``[rows, features, steps]``.
    """

    def __init__(self, layer: nn.Module, value: float = 0.0, *, features_first: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.value = value
        self.features_first = features_first

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """The layer's output.

        Args:
            x: The sequences.
            context: Of the network's call.
        """
        mask = (x != self.value).any(1 if self.features_first else 2)
        context = Context(x.shape[0]) if context is None else context
        return run(self.layer, x, context=replace(context, mask=mask))


def mask_zero(conf: LayerConf, make: Make) -> LayerPlan:
    """``MaskZeroLayer``.

    Args:
        conf: Of the layer.
        make: Makes the plan of the layer inside.

    Raises:
        UserError: An option that is not known here.
    """
    value, first = Fields(conf).number("maskingValue", 0.0), not _steps_first(conf)
    return make(inner(conf, "underlying")).within(
        lambda layer: MaskZero(layer, value, features_first=first), "layer"
    )


class MaskedSteps(Contextual):
    """Zeros at the steps that are not real."""

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """The sequences.

        Args:
            x: ``[rows, features, steps]``; anything else stays as it is.
            context: Of the network's call.
        """
        mask = mask_for(context, x.shape[0], x.shape[2]) if x.ndim == 3 else None
        return x if mask is None else x * mask[:, None].to(x.dtype)


def mask_steps(conf: LayerConf) -> LayerPlan:  # noqa: ARG001  every layer's maker takes one
    """``MaskLayer``.

    Args:
        conf: Of the layer.
    """
    return LayerPlan(MaskedSteps())


def time_distributed(conf: LayerConf, make: Make) -> LayerPlan:
    """``TimeDistributed``: a layer of vectors at every step.

    Args:
        conf: Of the layer.
        make: Makes the plan of the layer inside.

    Raises:
        UserError: An option that is not known here.
    """
    plan = make(inner(conf, "underlying"))
    return plan if Fields(conf).channels_last("rnnDataFormat") else plan.within(FeaturesFirst, "layer")


def frozen(conf: LayerConf, make: Make) -> LayerPlan:
    """``FrozenLayer`` and ``FrozenLayerWithBackprop``: the layer inside, whose parameters do not train.

    Args:
        conf: Of the layer.
        make: Makes the plan of the layer inside.

    Raises:
        UserError: An option that is not known here.
    """
    plan = make(inner(conf, "layer" if conf.fields.get("layer") is not None else "underlying"))
    plan.module.requires_grad_(False)
    specs = tuple(replace(spec, trained=False) for spec in plan.parameters)
    note = "in training, dropout and batch statistics of a frozen layer stay at work here; the original rests them"
    return replace(plan, parameters=specs, notes=(*plan.notes, note))
