"""How minibatches get to the device that a worker computes on, and outputs back."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from fatwood.data import Batch, mapped
from fatwood.train.device import Place

__all__ = ["brought", "device_facts", "moved", "release"]

_PARTS: Final[Sequence[str]] = ("features", "label", "weight", "feature_mask", "label_mask")


def moved(batch: Batch, device: torch.device | None, parts: Sequence[str] = _PARTS) -> Batch:
    """A minibatch there; row ids stay arrays.

    Args:
        batch: Anywhere.
        device: None leaves it where it is.
        parts: Which of it.
    """
    if device is None:
        return batch

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)  # waits where the memory is not page-locked

    return replace(batch, **{name: mapped(there, getattr(batch, name)) for name in parts})


def release(device: torch.device | None) -> None:
    """Give memory of a GPU back that nothing in this process holds any more; others may share the GPU.

    Args:
        device: None for the CPU.
    """
    if device is not None and device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def brought(found: Any) -> Any:
    """What a network returned, with its tensors in the host's memory; also in tuples, lists and dicts."""
    if isinstance(found, torch.Tensor):
        return found.cpu()
    if isinstance(found, Mapping):
        return {name: brought(part) for name, part in found.items()}
    if isinstance(found, tuple | list):
        return (
            type(found)(map(brought, found)) if type(found) in (tuple, list) else tuple(map(brought, found))
        )
    return found


def device_facts(place: Place, precision: str) -> dict[str, Any] | None:
    """What statistics tell of a GPU, as JSON values; None for the CPU.

    Args:
        place: Of the worker.
        precision: Of forward and loss.
    """
    device = place.device
    if device is None or device.type != "cuda":
        return None
    return {
        "device": str(device),
        "name": torch.cuda.get_device_name(device),
        "address": place.address,
        "cudnn": _cudnn_version(),
        "tf32": {"matmul": _tf32(torch.backends.cuda.matmul), "cudnn": _tf32(torch.backends.cudnn)},
        "autocast": None if precision == "float32" else precision,
    }


def _tf32(part: Any) -> bool:
    try:
        return bool(part.allow_tf32)
    except RuntimeError:  # somebody has used PyTorch's newer names for it, and it refuses the older one
        return bool(getattr(part, "conv", part).fp32_precision == "tf32")


def _cudnn_version() -> int | None:
    cudnn: Any = torch.backends.cudnn
    return cudnn.version() if cudnn.enabled else None
