"""Build a network whose parameters are about to be replaced: their memory is reserved but not filled, and it is limited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Budget", "Frugal"]

_FACTORIES: frozenset[Any] = frozenset(
    {
        torch.arange,
        torch.empty,
        torch.empty_strided,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.logspace,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.randperm,
        torch.range,
        torch.tril_indices,
        torch.triu_indices,
        torch.zeros,
    }
)
_FILLS: frozenset[Any] = frozenset(
    {
        Tensor.cauchy_,
        Tensor.exponential_,
        Tensor.fill_,
        Tensor.log_normal_,
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.zero_,
    }
)


_NOT_ON_META = frozenset({"generator", "out", "pin_memory"})


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a network may take while it is built."""

    tensor_bytes: int
    """Of all tensors that its constructors make."""
    calls: int
    """Of functions of torch."""


class Frugal(TorchFunctionMode):
    """While it is entered, torch does not fill parameters with numbers, and makes no more tensors than the budget allows.

    Parameters have no defined values then, as those of ``torch.empty``; buffers and other tensors have theirs.

    Args:
        budget: None for no limit.
    """

    def __init__(self, budget: Budget | None) -> None:
        super().__init__()
        self._budget = budget
        self._bytes = self._calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what torch would do, or less."""
        del types
        given = dict(kwargs or {})
        filled = args[0] if args else given.get("tensor")
        # what a function of torch.nn.init calls in turn is not seen here
        fills = func in _FILLS or getattr(func, "__module__", None) == nn.init.__name__
        if fills and isinstance(filled, nn.Parameter):
            return filled
        if self._budget is not None:
            self._calls += 1
            if func in _FACTORIES:
                sized = {key: value for key, value in given.items() if key not in _NOT_ON_META}
                self._bytes += _bytes_of(func(*args, **{**sized, "device": "meta"}))
            self._require(self._budget)
        return func(*args, **given)

    def _require(self, budget: Budget) -> None:
        if self._bytes > budget.tensor_bytes or self._calls > budget.calls:
            text = (
                f"expected a network of at most {budget.tensor_bytes} bytes and {budget.calls} calls of torch, as its saved "
                f"tensors let expect, received one of at least {self._bytes} bytes and {self._calls} calls"
            )
            raise MemoryError(text)


def _bytes_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
