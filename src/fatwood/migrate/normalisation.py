"""Batch normalisation and local response normalisation.

The flat vector has scale, shift, mean and variance; files since 1.0.0-beta4 may hold the logarithm (base 10) of the standard deviation instead.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fatwood.errors import UserError
from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.dense import named
from fatwood.migrate.fields import Fields
from fatwood.migrate.layouts import images
from fatwood.migrate.parameters import LayerPlan, ParameterSpec, Placement

__all__ = ["BatchNorm", "batch_normalisation", "response_normalisation"]


class BatchNorm(_BatchNorm):
    """torch's batch normalisation for vectors and for images, since a layer of the original takes both."""

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002  torch's name
        if input.ndim not in (2, 4):
            problem = (
                f"input of a batch normalisation: expected 2 or 4 axes, received shape {tuple(input.shape)}"
            )
            raise UserError(problem)


def batch_normalisation(conf: LayerConf) -> LayerPlan:
    """``BatchNormalization``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    fields = Fields(conf)
    features = fields.whole("nOut", least=1)
    module = BatchNorm(
        features, eps=fields.number("eps", 1e-5), momentum=round(1 - fields.number("decay", 0.9), 12)
    )
    locked = fields.flag("lockGammaBeta", default=False)
    specs, placements = [], dict[str, Placement]()
    if locked:
        with torch.no_grad():
            module.weight.fill_(fields.number("gamma", 1.0)).requires_grad_(False)
            module.bias.fill_(fields.number("beta", 0.0)).requires_grad_(False)
    else:
        specs = [ParameterSpec("gamma", (features,)), ParameterSpec("beta", (features,))]
        placements |= {"gamma": named("weight"), "beta": named("bias")}
    logarithm = fields.flag("useLogStd", default=False)
    spread = "log10stdev" if logarithm else "var"
    specs += [ParameterSpec(key, (features,), trained=False) for key in ("mean", spread)]
    placements["mean"] = named("running_mean")
    placements[spread] = (
        (lambda array: {"running_var": 10.0 ** (2 * array)}) if logarithm else named("running_var")
    )
    note = "torch's running variance is the unbiased one of a minibatch, the original's the biased one"
    return images(conf, LayerPlan(module, tuple(specs), placements, (note,)))


def response_normalisation(conf: LayerConf) -> LayerPlan:
    """``LocalResponseNormalization``; torch divides alpha by the number of channels in a window, so it is multiplied here.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    fields = Fields(conf)
    size = 2 * (int(fields.number("n", 5.0)) // 2) + 1
    alpha = fields.number("alpha", 1e-4) * size
    module = nn.LocalResponseNorm(size, alpha, fields.number("beta", 0.75), fields.number("k", 2.0))
    return images(conf, LayerPlan(module))
