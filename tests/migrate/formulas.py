"""The layers of Deeplearning4j as formulas in NumPy, from the original's definitions: no torch, no speed.

Vectors are ``[rows, features]``, sequences ``[rows, features, steps]``, images ``[rows, channels, height, width]``; weights are as the
original sees them: inputs by outputs, recurrent units by four blocks (candidate, forget, output, input), outputs by inputs by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int = -1) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def rational_tanh(x: Array) -> Array:
    y = 2 * x / 3
    return 1.7159 * np.sign(y) * (1 - 1 / (1 + np.abs(y) + y**2 + 1.41645 * y**4))


def selu(x: Array) -> Array:
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return scale * np.where(x > 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1))


ACTIVATIONS: dict[str, Function] = {
    "Cube": lambda x: x**3,
    "ELU": lambda x: np.where(x >= 0, x, np.exp(np.minimum(x, 0)) - 1),
    "GELU": lambda x: x * sigmoid(1.702 * x),
    "HardSigmoid": lambda x: np.minimum(1, np.maximum(0, 0.2 * x + 0.5)),
    "HardTanH": lambda x: np.minimum(1, np.maximum(-1, x)),
    "Identity": lambda x: x,
    "LReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "Mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "RationalTanh": rational_tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "RectifiedTanh": lambda x: np.maximum(0, np.tanh(x)),
    "SELU": selu,
    "Sigmoid": sigmoid,
    "SoftPlus": lambda x: np.log1p(np.exp(x)),
    "SoftSign": lambda x: x / (1 + np.abs(x)),
    "Softmax": softmax,
    "Swish": lambda x: x * sigmoid(x),
    "TanH": np.tanh,
    "ThresholdedReLU": lambda x: np.where(x > 1, x, 0.0),
}


def dense(x: Array, w: Array, b: Array | float = 0.0) -> Array:
    return x @ w + b


def normalised_dense(x: Array, w: Array, b: Array | float, gain: Array) -> Array:
    z = x @ w
    return gain * (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True) + b


def every_step(x: Array, function: Function) -> Array:
    return np.stack([function(x[:, :, t]) for t in range(x.shape[2])], axis=2)


def lookup(numbers: Array, table: Array, b: Array | float = 0.0) -> Array:
    """``[rows, 1]`` to ``[rows, features]``."""
    return np.stack([table[int(number)] for number in numbers[:, 0]]) + b


def lookup_sequence(numbers: Array, table: Array) -> Array:
    """``[rows, steps]`` to ``[rows, features, steps]``."""
    return np.stack([np.stack([table[int(number)] for number in row], axis=1) for row in numbers])


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float = 1e-5) -> Array:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    gamma, beta, mean, var = (one.reshape(shape) for one in (gamma, beta, mean, var))
    return gamma * (x - mean) / np.sqrt(var + eps) + beta


def response_norm(x: Array, n: float = 5, k: float = 2, alpha: float = 1e-4, beta: float = 0.75) -> Array:
    half, channels = int(n) // 2, x.shape[1]
    out = np.empty_like(x)
    for c in range(channels):
        near = x[:, max(0, c - half) : min(channels, c + half + 1)]
        out[:, c] = x[:, c] / (k + alpha * (near**2).sum(1)) ** beta
    return out


def same_amounts(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    outputs = (size + stride - 1) // stride
    needed = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return needed // 2, needed - needed // 2


def padded(x: Array, amounts: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    return np.pad(x, [(0, 0), (0, 0), *amounts], constant_values=value)


def windows(
    x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> dict[tuple[int, ...], Array]:
    """For each place of the output the window ``[rows, channels, ...]``, of inputs without edges."""
    places = [
        range((x.shape[2 + i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1)
        for i in range(len(kernel))
    ]
    found = {}
    for place in product(*places):
        cut = tuple(
            slice(at * stride[i], at * stride[i] + (kernel[i] - 1) * dilation[i] + 1, dilation[i])
            for i, at in enumerate(place)
        )
        found[place] = x[(slice(None), slice(None), *cut)]
    return found


def _amounts(
    x: Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    if padding == "causal":
        return [((kernel[0] - 1) * dilation[0], 0)]
    if padding == "same":
        return [same_amounts(x.shape[2 + i], kernel[i], stride[i], dilation[i]) for i in range(len(kernel))]
    return [(int(amount), int(amount)) for amount in padding]


def convolve(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | str | None = None,
    dilation: Sequence[int] | None = None,
) -> Array:
    """One axis or two: ``w`` is outputs by inputs by kernel."""
    kernel = w.shape[2:]
    stride, dilation = stride or (1,) * len(kernel), dilation or (1,) * len(kernel)
    x = padded(x, _amounts(x, kernel, stride, padding or (0,) * len(kernel), dilation))
    found = windows(x, kernel, stride, dilation)
    shape = tuple(size + 1 for size in max(found))
    out = np.zeros((x.shape[0], w.shape[0], *shape))
    for place, window in found.items():
        for o in range(w.shape[0]):
            out[(slice(None), o, *place)] = (window * w[o]).reshape(x.shape[0], -1).sum(1)
    return out if b is None else out + b.reshape(1, -1, *[1] * len(kernel))


def pool(
    x: Array,
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    *,
    count_padding: bool = True,
    power: int = 2,
) -> Array:
    amounts = _amounts(x, kernel, stride, padding, dilation)
    found = windows(padded(x, amounts, np.nan), kernel, stride, dilation)
    shape = tuple(size + 1 for size in max(found))
    out = np.zeros((*x.shape[:2], *shape))
    for place, window in found.items():
        flat = window.reshape(*x.shape[:2], -1)
        if kind == "MAX":
            value = np.nanmax(flat, axis=2)
        elif kind == "AVG":
            real = flat.shape[2] if count_padding else (~np.isnan(flat)).sum(2)
            value = np.nansum(flat, axis=2) / real
        else:
            value = np.nansum(np.abs(flat) ** power, axis=2) ** (1 / power)
        out[(slice(None), slice(None), *place)] = value
    return out


def upsample(x: Array, factors: Sequence[int]) -> Array:
    shape = tuple(size * factor for size, factor in zip(x.shape[2:], factors, strict=True))
    out = np.empty((*x.shape[:2], *shape))
    for place in np.ndindex(*shape):
        source = tuple(at // factor for at, factor in zip(place, factors, strict=True))
        out[(slice(None), slice(None), *place)] = x[(slice(None), slice(None), *source)]
    return out


def global_pool(x: Array, kind: str, mask: Array | None = None, power: int = 2) -> Array:
    out = np.zeros(x.shape[:2])
    for n, f in np.ndindex(*out.shape):
        values = x[n, f].ravel() if mask is None else x[n, f][mask[n] == 1]
        out[n, f] = {
            "MAX": lambda v: v.max(),
            "AVG": lambda v: v.sum() / len(v),
            "SUM": lambda v: v.sum(),
            "PNORM": lambda v: (np.abs(v) ** power).sum() ** (1 / power),
        }[kind](values)
    return out


def lstm(
    x: Array,
    w: Array,
    rw: Array,
    b: Array,
    activation: Function = np.tanh,
    gate: Function = sigmoid,
    mask: Array | None = None,
) -> Array:
    """With peepholes where ``rw`` has three more columns: forget, output, input gate."""
    units = rw.shape[0]
    peep = rw[:, 4 * units :].T if rw.shape[1] > 4 * units else np.zeros((3, units))
    h, c = np.zeros((x.shape[0], units)), np.zeros((x.shape[0], units))
    out = np.zeros((x.shape[0], units, x.shape[2]))
    for t in range(x.shape[2]):
        z = x[:, :, t] @ w + h @ rw[:, : 4 * units] + b
        candidate = activation(z[:, :units])
        forget = gate(z[:, units : 2 * units] + c * peep[0])
        enter = gate(z[:, 3 * units :] + c * peep[2])
        c = forget * c + enter * candidate
        leave = gate(z[:, 2 * units : 3 * units] + c * peep[1])
        h = leave * activation(c)
        if mask is not None:
            h, c = h * mask[:, t, None], c * mask[:, t, None]
        out[:, :, t] = h
    return out


def simple_rnn(
    x: Array, w: Array, rw: Array, b: Array | float, activation: Function = np.tanh, mask: Array | None = None
) -> Array:
    h = np.zeros((x.shape[0], rw.shape[0]))
    out = np.zeros((x.shape[0], rw.shape[0], x.shape[2]))
    for t in range(x.shape[2]):
        h = activation(x[:, :, t] @ w + h @ rw + b)
        if mask is not None:
            h = h * mask[:, t, None]
        out[:, :, t] = h
    return out


def both_ways(
    x: Array,
    ahead: Callable[[Array, Array | None], Array],
    back: Callable[[Array, Array | None], Array],
    mode: str,
    mask: Array | None = None,
) -> Array:
    one = ahead(x, mask)
    two = back(x[:, :, ::-1], None if mask is None else mask[:, ::-1])[:, :, ::-1]
    return {
        "CONCAT": lambda: np.concatenate([one, two], axis=1),
        "ADD": lambda: one + two,
        "MUL": lambda: one * two,
        "AVERAGE": lambda: (one + two) / 2,
    }[mode]()


def last_step(x: Array, mask: Array | None = None) -> Array:
    if mask is None:
        return x[:, :, -1]
    return np.stack([x[n, :, max(np.flatnonzero(mask[n]), default=0)] for n in range(x.shape[0])])


def steps_to_rows(x: Array) -> Array:
    """As the original: permuted to rows, steps, features, then reshaped with the first axis fastest."""
    rows, features, steps = x.shape
    return np.transpose(x, (0, 2, 1)).reshape((rows * steps, features), order="F")


def rows_to_steps(x: Array, rows: int) -> Array:
    steps = x.reshape((rows, x.shape[0] // rows, x.shape[1]), order="F")
    return np.transpose(steps, (0, 2, 1))


def flatten(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def norm(x: Array) -> Array:
    """The Euclidean norm of each row, ``[rows, 1]``."""
    return np.sqrt((flatten(x) ** 2).sum(1, keepdims=True))
