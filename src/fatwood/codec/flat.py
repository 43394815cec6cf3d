"""A network's parameters, gradients and buffers as flat vectors.

Shapes: ``n`` trainable parameters (numbers, not tensors), ``m`` numbers in float buffers.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fatwood.codec.vectors import Vector, as_tensor, host, put
from fatwood.errors import NotFiniteError, OptionError

__all__ = ["FlatBuffers", "FlatParameters", "digest64", "require_finite", "trainable_parameters"]


def digest64(array: NDArray[Any]) -> int:
    """A 64-bit digest (BLAKE2b) of an array's bytes: equal bits, equal number.

    Args:
        array: Any dtype and shape; only the bytes count, so ``0.0`` and ``-0.0`` differ.
    """
    octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return int.from_bytes(hashlib.blake2b(octets.data, digest_size=8).digest(), "little")


def require_finite(vector: Vector) -> None:
    """Check an update or gradient in one pass; an encoder does so by itself.

    Args:
        vector: (n,)

    Raises:
        NotFiniteError: It has a NaN or an infinity.
    """
    values = as_tensor(vector)
    if bool(torch.isfinite(values.sum())):
        return
    bad = torch.nonzero(~torch.isfinite(values))  # none when only the sum was too large
    if len(bad):
        position = int(bad[0])
        raise NotFiniteError(position, values.numel(), float(values[position]))


def trainable_parameters(
    module: nn.Module, device: torch.device | None = None
) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters of a network with their names, a shared one once.

    Args:
        module: The network.
        device: Where they have to be; None for the CPU.

    Raises:
        OptionError: There is none, or one that is not float32 on the device, or not initialised yet.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        msg = "network: expected at least one parameter with requires_grad=True, received none"
        raise OptionError(msg, hint="unfreeze a layer with layer.requires_grad_(True)")
    for name, parameter in named:
        _check_parameter(name, parameter, device or torch.device("cpu"))
    return named


class FlatParameters:
    """The trainable parameters of a network in one vector that *is* their memory.

    After construction every trainable parameter's data is a view of `vector`: an optimizer step changes the vector,
    a change of the vector changes the network, and nothing is ever gathered or scattered. The order is that of
    ``named_parameters()``, a shared parameter once. Frozen parameters are left alone.

    It holds until the network's tensors are replaced (``module.to(...)``, ``load_state_dict(..., assign=True)``,
    another `FlatParameters`) or parameters are frozen or unfrozen.

    Args:
        module: The network; its parameters' data is replaced by views.
        device: Where it is, to work on tensors there; None for a network on the CPU, to work on arrays.

    Raises:
        OptionError: No trainable parameter, or one that is not float32 on the device, or not initialised yet.
    """

    def __init__(self, module: nn.Module, device: torch.device | None = None) -> None:
        named = trainable_parameters(module, device)
        self.names: tuple[str, ...] = tuple(name for name, _ in named)
        self.size: int = sum(p.numel() for _, p in named)
        self.device = device
        self.vector: torch.Tensor = torch.empty(self.size, device=device)  # (n,) float32
        self._parameters = [p for _, p in named]
        self._gradient = torch.zeros(self.size, device=device)
        for parameter, view in zip(self._parameters, self._views(self.vector), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.values: Vector = self._worked_on(self.vector)
        """(n,) the same memory as what updates and messages are made of: an array, or a tensor where a device is named."""

    @property
    def array(self) -> NDArray[np.float32]:
        """(n,) the same memory as an array; only of a network in the host's memory."""
        return self.vector.numpy()

    def gradient(self) -> Vector:
        """The gradients as one vector (n,); a parameter without one counts as zeros.

        The buffer is reused: the next call, or `set_gradient`, changes what this one returned.
        """
        for parameter, view in zip(self._parameters, self._views(self._gradient), strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad.detach().to_dense())
        return self._worked_on(self._gradient)

    def set_gradient(self, flat: Vector) -> None:
        """Gives every trainable parameter its part of a flat gradient.

        Args:
            flat: (n,) copied.

        Raises:
            ValueError: Another shape.
        """
        _check_flat(flat, self.size)
        put(self._worked_on(self._gradient), flat)
        for parameter, view in zip(self._parameters, self._views(self._gradient), strict=True):
            parameter.grad = view

    def digest(self) -> int:
        """A 64-bit digest of the parameters' bits, see `digest64`."""
        return digest64(host(self.values))

    def locate(self, position: int) -> str:
        """Which parameter and element a position of the vector is, in words.

        >>> FlatParameters(nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3))).locate(13)
        '1.weight[1, 0, 1, 1]'

        Raises:
            ValueError: The position is not in ``range(n)``.
        """
        start = 0
        for name, parameter in zip(self.names, self._parameters, strict=True):
            if start <= position < start + parameter.numel():
                element = np.unravel_index(position - start, tuple(parameter.shape))
                return f"{name}[{', '.join(str(int(i)) for i in element)}]" if element else name
            start += parameter.numel()
        msg = f"position: expected a number in range({self.size}), received {position}"
        raise ValueError(msg)

    def _worked_on(self, tensor: torch.Tensor) -> Vector:
        return tensor.numpy() if self.device is None else tensor

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Parts of a vector (n,) in the parameters' shapes."""
        parts = torch.split(flat, [p.numel() for p in self._parameters])
        return [part.view(p.shape) for part, p in zip(parts, self._parameters, strict=True)]


class FlatBuffers:
    """The float buffers that a network saves (batch-norm statistics and the like) as one vector.

    Buffers with ``persistent=False`` are a network's own scratch space, and integer buffers (counters) have no
    mean; both are left alone. float64 buffers are rounded to float32 by the way through the vector.

    Args:
        module: The network; its buffers are looked up by name at each call, since forward may replace them.
    """

    def __init__(self, module: nn.Module) -> None:
        saved = module.state_dict().keys()
        self._module = module
        self.names: tuple[str, ...] = tuple(
            name for name, b in module.named_buffers() if name in saved and b.is_floating_point()
        )
        self.size: int = sum(b.numel() for b in self._buffers())

    def read(self) -> NDArray[np.float32]:
        """A copy (m,) of all values, in the order of `names`."""
        parts = [b.detach().to("cpu", torch.float32).reshape(-1).numpy() for b in self._buffers()]
        return np.concatenate([np.empty(0, np.float32), *parts])

    def write(self, flat: NDArray[np.float32]) -> None:
        """Copies a vector back into the buffers.

        Args:
            flat: (m,) in the order of `names`.

        Raises:
            ValueError: Another shape.
        """
        _check_flat(flat, self.size)
        buffers = self._buffers()
        parts = torch.split(torch.from_numpy(np.array(flat, np.float32)), [b.numel() for b in buffers])
        with torch.no_grad():
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view(buffer.shape))

    def _buffers(self) -> list[torch.Tensor]:
        return [self._module.get_buffer(name) for name in self.names]


def _check_parameter(name: str, parameter: nn.Parameter, device: torch.device) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        msg = f"network, parameter {name!r}: expected known values, received a lazy parameter without a shape"
        raise OptionError(msg, hint="run one batch through the network before fitting it")
    if parameter.dtype != torch.float32 or parameter.device != device:
        msg = f"network, parameter {name!r}: expected float32 on {device}, received {parameter.dtype} on {parameter.device}"
        raise OptionError(
            msg, hint="pass network.float().cpu(), or freeze the parameter with requires_grad_(False)"
        )


def _check_flat(flat: Vector, size: int) -> None:
    if flat.shape != (size,):
        msg = f"flat vector: expected shape ({size},), received {tuple(flat.shape)}"
        raise ValueError(msg)
