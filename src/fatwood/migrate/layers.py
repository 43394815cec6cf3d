"""Which layer of the original becomes which module.

A layer's module takes and gives the shapes of the original: vectors ``[rows, features]``, sequences ``[rows, features, steps]``, images
``[rows, channels, height, width]``; where its configuration says ``NWC`` or ``NHWC``, the features come last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import nn

from fatwood.errors import UserError
from fatwood.migrate import (
    convolution,
    dense,
    embedding,
    normalisation,
    pooling,
    recurrent,
    resizing,
    wrappers,
)
from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.fields import refused
from fatwood.migrate.parameters import LayerPlan, ParameterSpec, row
from fatwood.migrate.preprocessors import preprocessor_module

__all__ = ["LayerPlan", "ParameterSpec", "layer_module", "parameter_specs"]

_LAYERS: Mapping[str, Callable[[LayerConf], LayerPlan]] = MappingProxyType(
    {
        "ActivationLayer": dense.activation,
        "BatchNormalization": normalisation.batch_normalisation,
        "CnnLossLayer": dense.loss_layer,
        "Convolution1D": convolution.convolution,
        "Convolution1DLayer": convolution.convolution,
        "Convolution2D": convolution.convolution,
        "ConvolutionLayer": convolution.convolution,
        "Cropping1D": resizing.cropping,
        "Cropping2D": resizing.cropping,
        "DenseLayer": dense.dense,
        "DepthwiseConvolution2D": convolution.depthwise,
        "DropoutLayer": dense.dropout,
        "ElementWiseMultiplicationLayer": dense.element_wise,
        "EmbeddingLayer": embedding.embedding,
        "EmbeddingSequenceLayer": embedding.embedding,
        "GlobalPoolingLayer": pooling.global_pooling,
        "GravesLSTM": recurrent.graves_lstm,
        "LSTM": recurrent.lstm,
        "LocalResponseNormalization": normalisation.response_normalisation,
        "LossLayer": dense.loss_layer,
        "MaskLayer": wrappers.mask_steps,
        "OutputLayer": dense.dense,
        "PReLULayer": dense.parametric_relu,
        "Pooling1D": pooling.subsampling,
        "Pooling2D": pooling.subsampling,
        "RepeatVector": dense.repeat_vector,
        "RnnLossLayer": dense.loss_layer,
        "RnnOutputLayer": dense.per_step_output,
        "SeparableConvolution2D": convolution.separable,
        "SimpleRnn": recurrent.simple_rnn,
        "Subsampling1DLayer": pooling.subsampling,
        "SubsamplingLayer": pooling.subsampling,
        "Upsampling1D": resizing.upsampling,
        "Upsampling2D": resizing.upsampling,
        "ZeroPadding1DLayer": resizing.zero_padding,
        "ZeroPaddingLayer": resizing.zero_padding,
    }
)
_WRAPPERS: Mapping[str, Callable[[LayerConf, wrappers.Make], LayerPlan]] = MappingProxyType(
    {
        "Bidirectional": wrappers.bidirectional,
        "FrozenLayer": wrappers.frozen,
        "FrozenLayerWithBackprop": wrappers.frozen,
        "GravesBidirectionalLSTM": wrappers.bidirectional,
        "LastTimeStep": wrappers.last_time_step,
        "MaskZeroLayer": wrappers.mask_zero,
        "TimeDistributed": wrappers.time_distributed,
    }
)
_DEEPEST = 8


def layer_module(conf: LayerConf) -> LayerPlan:
    """The module of a layer, not yet filled, behind the preprocessor that stands before it.

    Args:
        conf: Of the layer.

    Returns:
        The module with random parameters, and how the original's arrays go into it.

    Raises:
        UserError: A layer or an option that is not known here; the message has the layer's name and class.
    """
    plan = _plan(conf, 0)
    if conf.input_preprocessor is None:
        return plan
    before = preprocessor_module(conf.name, conf.input_preprocessor)
    if not isinstance(plan.module, nn.Sequential):
        return row([("preprocessor", before), ("layer", plan)])
    named = [("preprocessor", before), *plan.module.named_children()]
    module = nn.Sequential()
    for name, part in named:
        module.add_module(name, part)
    return replace(plan, module=module)


def parameter_specs(conf: LayerConf) -> tuple[ParameterSpec, ...]:
    """What a layer has in the flat vector, found without memory for its numbers.

    Args:
        conf: Of the layer.

    Returns:
        As of the plan that `layer_module` returns.

    Raises:
        UserError: A layer or an option that is not known here, or a size that no tensor can have.
    """
    try:
        with torch.device("meta"):
            return _plan(conf, 0).parameters
    except (RuntimeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise refused(conf, "sizes of tensors", error) from error


def _plan(conf: LayerConf, depth: int) -> LayerPlan:
    if depth > _DEEPEST:
        raise refused(conf, f"at most {_DEEPEST} layers around each other", depth)
    if conf.kind in _WRAPPERS:
        return _WRAPPERS[conf.kind](conf, lambda inner: _plan(inner, depth + 1))
    if conf.kind not in _LAYERS:
        raise refused(conf, "a layer that can be migrated", conf.kind)
    return _LAYERS[conf.kind](conf)
