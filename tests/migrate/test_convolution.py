"""Convolutions, pooling and the layers that change sizes, against formulas in NumPy; any strides, paddings, dilations."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.migrate import formulas
from tests.migrate.builders import close, filled, layer, numbers, output

from fatwood.errors import UserError
from fatwood.migrate.layers import layer_module

_PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
_MODES = st.sampled_from(["Truncate", "Strict", "Same"])


@settings(max_examples=60, deadline=None)
@given(
    kernel=_PAIR,
    stride=_PAIR,
    dilation=_PAIR,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    extra=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    mode=_MODES,
    bias=st.booleans(),
    last=st.booleans(),
)
def test_a_convolution_of_images_is_its_formula(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    extra: tuple[int, int],
    mode: str,
    *,
    bias: bool,
    last: bool,
) -> None:
    conf = layer(
        "ConvolutionLayer",
        "TanH",
        nIn=2,
        nOut=3,
        kernelSize=list(kernel),
        stride=list(stride),
        dilation=list(dilation),
        padding=list(padding),
        convolutionMode=mode,
        hasBias=bias,
        cnn2dDataFormat="NHWC" if last else "NCHW",
    )
    module, own = filled(conf)
    high, wide = ((k - 1) * d + 1 + e for k, d, e in zip(kernel, dilation, extra, strict=True))
    x = numbers(2, 2, high, wide)
    around: Any = "same" if mode == "Same" else padding
    expected = np.tanh(formulas.convolve(x, own["W"], own.get("b"), stride, around, dilation))
    if last:
        x, expected = np.moveaxis(x, 1, 3), np.moveaxis(expected, 1, 3)
    close(output(module, x), expected)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    extra=st.integers(0, 5),
    mode=st.sampled_from(["Truncate", "Same", "Causal"]),
    pair=st.booleans(),
)
def test_a_convolution_of_sequences_is_its_formula(
    kernel: int, stride: int, dilation: int, padding: int, extra: int, mode: str, *, pair: bool
) -> None:
    # Before 1.0.0-beta7 the JSON has two numbers for the only axis.
    other = {"kernelSize": 1, "stride": 1, "dilation": 1, "padding": 0}
    own_fields = {"kernelSize": kernel, "stride": stride, "dilation": dilation, "padding": padding}
    fields = {key: [value, other[key]] if pair else [value] for key, value in own_fields.items()}
    module, own = filled(layer("Convolution1DLayer", nIn=2, nOut=3, convolutionMode=mode, **fields))
    x = numbers(2, 2, (kernel - 1) * dilation + 1 + extra)
    around: Any = {"Same": "same", "Causal": "causal"}.get(mode, (padding,))
    close(output(module, x), formulas.convolve(x, own["W"], own["b"], (stride,), around, (dilation,)))


def test_the_bias_of_a_convolution_lies_before_its_weight_whose_rows_come_first() -> None:
    plan = layer_module(layer("ConvolutionLayer", nIn=2, nOut=3, kernelSize=[4, 5]))
    assert [(spec.key, spec.shape, spec.order) for spec in plan.parameters] == [
        ("b", (3,), "f"),
        ("W", (3, 2, 4, 5), "c"),
    ]


def test_an_even_kernel_in_the_mode_same_warns_of_nothing() -> None:
    module, own = filled(layer("ConvolutionLayer", nIn=1, nOut=1, kernelSize=[2, 4], convolutionMode="Same"))
    x = numbers(1, 1, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(output(module, x), formulas.convolve(x, own["W"], own["b"], (1, 1), "same", (1, 1)))


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_depthwise_and_separable_convolutions(stride: tuple[int, int]) -> None:
    sizes = {
        "nIn": 2,
        "kernelSize": [2, 3],
        "stride": list(stride),
        "convolutionMode": "Same",
        "depthMultiplier": 3,
    }
    x = numbers(2, 2, 5, 6)

    def channels(weights: list[list[formulas.Array]]) -> formulas.Array:
        parts = [
            formulas.convolve(x[:, c : c + 1], kernel[None, None], None, stride, "same")
            for c, kernels in enumerate(weights)
            for kernel in kernels
        ]
        return np.concatenate(parts, axis=1)

    module, own = filled(layer("DepthwiseConvolution2D", nOut=6, **sizes))
    assert own["W"].shape == (2, 3, 2, 3)  # kernel, channels, multipliers
    expected = channels([[own["W"][:, :, c, m] for m in range(3)] for c in range(2)])
    close(output(module, x), expected + own["b"].reshape(1, -1, 1, 1))

    module, own = filled(layer("SeparableConvolution2D", nOut=4, **sizes))
    assert (own["W"].shape, own["pW"].shape) == ((3, 2, 2, 3), (4, 6, 1, 1))
    between = channels([[own["W"][m, c] for m in range(3)] for c in range(2)])
    close(output(module, x), formulas.convolve(between, own["pW"], own["b"]))


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["MAX", "AVG", "PNORM"]),
    kernel=_PAIR,
    stride=_PAIR,
    dilation=_PAIR,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    extra=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    mode=_MODES,
    count=st.booleans(),
)
def test_pooling_of_images_is_its_formula(
    kind: str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    extra: tuple[int, int],
    mode: str,
    *,
    count: bool,
) -> None:
    # A window that has nothing but padding has no value.
    padding = tuple(min(p, (k - 1) * d) for p, k, d in zip(padding, kernel, dilation, strict=True))  # type: ignore[assignment]
    fields = {"kernelSize": kernel, "stride": stride, "dilation": dilation, "padding": padding}
    module, _ = filled(
        layer(
            "SubsamplingLayer",
            poolingType=kind,
            pnorm=3,
            convolutionMode=mode,
            avgPoolIncludePadInDivisor=count,
            **{key: list(value) for key, value in fields.items()},
        )
    )
    high, wide = (2 * (k - 1) * d + 1 + e for k, d, e in zip(kernel, dilation, extra, strict=True))
    x = numbers(2, 2, high, wide)
    around: Any = "same" if mode == "Same" else padding
    expected = formulas.pool(x, kind, kernel, stride, around, dilation, count_padding=count, power=3)
    close(output(module, x), expected)


@pytest.mark.parametrize("kind", ["MAX", "AVG", "PNORM"])
@pytest.mark.parametrize("mode", ["Truncate", "Same"])
@pytest.mark.parametrize("kernel", [[2], [2, 1]])
def test_pooling_of_sequences_is_its_formula(kind: str, mode: str, kernel: list[int]) -> None:
    fields = {"kernelSize": kernel, "stride": [2] * len(kernel), "padding": [1] * len(kernel)}
    conf = layer("Subsampling1DLayer", poolingType=kind, pnorm=2, convolutionMode=mode, **fields)
    module, _ = filled(conf)
    x = numbers(2, 3, 7)
    around: Any = "same" if mode == "Same" else (1,)
    close(output(module, x), formulas.pool(x, kind, (2,), (2,), around, (1,)))


def test_torchs_own_layers_are_used_where_they_are_exact() -> None:
    kinds = {
        torch.nn.Conv2d: layer("ConvolutionLayer", nIn=1, nOut=1, kernelSize=[3, 3], convolutionMode="Same"),
        torch.nn.Conv1d: layer("Convolution1DLayer", nIn=1, nOut=1, kernelSize=[3]),
        torch.nn.MaxPool2d: layer("SubsamplingLayer", poolingType="MAX", kernelSize=[2, 2], stride=[2, 2]),
        torch.nn.AvgPool1d: layer("Subsampling1DLayer", poolingType="AVG", kernelSize=[2], padding=[1]),
        torch.nn.ZeroPad2d: layer("ZeroPaddingLayer", padding=[1, 2, 3, 4]),
    }
    assert {kind: type(layer_module(conf).module) for kind, conf in kinds.items()} == {k: k for k in kinds}


def test_upsampling_repeats_steps_and_pixels() -> None:
    image, _ = filled(layer("Upsampling2D", size=[2, 3]))
    x = numbers(2, 2, 3, 4)
    close(output(image, x), formulas.upsample(x, (2, 3)))
    both, _ = filled(layer("Upsampling2D", size=2))
    close(output(both, x), formulas.upsample(x, (2, 2)))
    sequence, _ = filled(layer("Upsampling1D", size=[3]))
    close(output(sequence, x[0]), formulas.upsample(x[0], (3,)))


def test_padding_and_cropping_of_each_side() -> None:
    x = numbers(2, 2, 5, 6)
    padded, _ = filled(layer("ZeroPaddingLayer", padding=[1, 2, 3, 4]))
    close(output(padded, x), formulas.padded(x, [(1, 2), (3, 4)]))
    old, _ = filled(layer("ZeroPaddingLayer", padding=[1, 2]))
    close(output(old, x), formulas.padded(x, [(1, 1), (2, 2)]))
    cropped, _ = filled(layer("Cropping2D", cropping=[1, 2, 3, 0]))
    close(output(cropped, x), x[:, :, 1:3, 3:])
    long, _ = filled(layer("ZeroPadding1DLayer", padding=[1, 2]))
    close(output(long, x[0]), formulas.padded(x[0], [(1, 2)]))
    short, _ = filled(layer("Cropping1D", cropping=[1, 2]))
    close(output(short, x[0]), x[0][:, :, 1:4])


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ZeroPaddingLayer", {"padding": [1, 2, 3, 4]}),
        ("Cropping2D", {"cropping": [1, 0, 1, 1]}),
        ("Upsampling2D", {"size": [2, 3]}),
        ("SubsamplingLayer", {"poolingType": "MAX", "kernelSize": [2, 3], "stride": [1, 1]}),
        ("LocalResponseNormalization", {"n": 3.0, "alpha": 0.5}),
    ],
)
def test_images_with_the_channels_last_are_the_same_but_for_the_layout(
    kind: str, fields: dict[str, Any]
) -> None:
    x = numbers(2, 3, 4, 5)
    first, _ = filled(layer(kind, **fields))
    last, _ = filled(layer(kind, dataFormat="NHWC", **fields))
    close(output(last, np.moveaxis(x, 1, 3)), np.moveaxis(output(first, x), 1, 3))


@pytest.mark.parametrize("kind", ["MAX", "AVG", "SUM", "PNORM"])
def test_global_pooling_of_sequences_and_images(kind: str) -> None:
    module, _ = filled(layer("GlobalPoolingLayer", poolingType=kind, pnorm=3))
    for shape in [(2, 3, 4), (2, 3, 4, 5)]:
        x = numbers(*shape)
        close(output(module, x), formulas.global_pool(x, kind, power=3))


def test_global_pooling_keeps_the_axes_where_they_are_not_collapsed() -> None:
    module, _ = filled(layer("GlobalPoolingLayer", poolingType="AVG", collapseDimensions=False))
    x = numbers(2, 3, 4, 5)
    close(output(module, x), formulas.global_pool(x, "AVG")[:, :, None, None])


def test_global_pooling_over_given_axes() -> None:
    module, _ = filled(layer("GlobalPoolingLayer", poolingType="MAX", poolingDimensions=[1]))
    x = numbers(2, 3, 4)
    close(output(module, x), x.max(1))


def test_a_layout_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="one of NCHW, NHWC, NCW, NWC as dataFormat, received CHWN"):
        layer_module(layer("Cropping2D", cropping=[0, 0, 0, 0], dataFormat="CHWN"))
