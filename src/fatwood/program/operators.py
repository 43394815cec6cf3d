"""The operators that a program may name: those of ATen that compute tensors from tensors, and arithmetic on sizes.

None of them reads a file, runs code, or changes its arguments.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["name_of", "operator_at"]

_ATEN = frozenset(
    """
    abs acos acosh add addbmm addcdiv addcmul addmm addmv addr adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d alias all alpha_dropout amax amin aminmax any arange argmax
    argmin argsort asin asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bilinear bitwise_and
    bitwise_not bitwise_or bitwise_xor bmm broadcast_tensors broadcast_to bucketize cat cdist ceil celu channel_shuffle chunk
    clamp clamp_max clamp_min clone column_stack concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d convolution copysign cos cosh cosine_similarity cross cummax cummin cumprod cumsum
    detach diag_embed diagonal diff digamma dist div dot dropout einsum elu embedding embedding_bag empty empty_like eq erf erfc
    erfinv exp exp2 expand expand_as expm1 eye feature_dropout flatten flip floor floor_divide fmax fmin fmod frac full full_like
    gather ge gelu glu grid_sampler group_norm gru gt hardshrink hardsigmoid hardswish hardtanh hypot im2col index index_add
    index_copy index_fill index_select instance_norm isclose isfinite isinf isnan layer_norm le leaky_relu lerp lgamma lift_fresh
    lift_fresh_copy linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logaddexp2
    logical_and logical_not logical_or logical_xor logit logsumexp lstm lt masked_fill masked_scatter matmul max max_pool1d
    max_pool2d max_pool2d_with_indices max_pool3d maximum mean median meshgrid min minimum mish mm moveaxis movedim mul mv
    nan_to_num nanmean nansum narrow native_group_norm native_layer_norm ne neg new_empty new_full new_ones new_zeros norm
    numpy_T one_hot ones ones_like outer pad pairwise_distance permute pixel_shuffle pixel_unshuffle polar pow prelu prod
    quantile reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder repeat repeat_interleave
    replication_pad1d replication_pad2d replication_pad3d reshape rms_norm rnn_relu rnn_tanh roll rot90 round rrelu rsqrt rsub
    scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce select select_scatter selu sgn sigmoid sign
    silu sin sinc sinh slice slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt square squeeze stack std
    std_mean sub sum swapaxes swapdims sym_numel sym_size t take take_along_dim tan tanh tensor_split threshold tile to topk
    transpose trapezoid tril triu trunc type_as unbind unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean vdot view
    view_as where xlogy zeros zeros_like
    _adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy _unsafe_view
    _weight_norm
    """.split()  # noqa: SIM905
)
_ON_SIZES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        name: getattr(operator, name)
        for name in (
            "add",
            "sub",
            "mul",
            "floordiv",
            "mod",
            "neg",
            "truediv",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
        )
    }
)
_MOST_SIZE = 2**63


def name_of(target: Any) -> str | None:
    """How a program names an operator; None where it may not.

    Args:
        target: Of a node of an exported graph.
    """
    if isinstance(target, torch._ops.OpOverload):
        return str(target) if operator_at(str(target)) is not None else None
    if target is operator.getitem:
        return "size.getitem"
    for name, function in _ON_SIZES.items():
        if target is function:
            return f"size.{name}"
    return None


@lru_cache(maxsize=4096)
def operator_at(name: str) -> Callable[..., Any] | None:
    """The operator of a name; None where there is none, or a program may not name it.

    Args:
        name: ``aten.<operator>.<overload>``, or ``size.<operator>`` on sizes.
    """
    space, _, rest = name.partition(".")
    if space == "size":
        return _item if rest == "getitem" else _on_sizes(rest)
    packet, _, overload = rest.partition(".")
    if space != "aten" or packet not in _ATEN or not overload.isidentifier():
        return None
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload) or found._schema.is_mutable:
        return None
    return found


def _on_sizes(name: str) -> Callable[..., Any] | None:
    function = _ON_SIZES.get(name)
    if function is None:
        return None

    def compute(*sizes: Any) -> Any:
        for size in sizes:
            if (
                not isinstance(size, int | float | torch.SymInt | torch.SymFloat)
                or not -_MOST_SIZE < size < _MOST_SIZE
            ):
                message = f"expected sizes, received {size!r:.80}"
                raise TypeError(message)
        return function(*sizes)

    return compute


def _item(values: Any, index: Any) -> Any:
    if not isinstance(values, tuple | list) or not isinstance(index, int):
        message = (
            f"expected several tensors and a position, received {type(values).__name__} and {index!r:.80}"
        )
        raise TypeError(message)
    return values[index]
