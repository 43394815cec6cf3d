"""How networks reach the tasks of inference: large ones as one file on each host, which its Python workers map together.

Python workers are processes of their own; were the weights in the pickle, each would have a copy. So the tensors are taken out of
the pickle and put into one file, named by its content. Spark brings files to every executor, and keeps them until the
application, or the session of Spark Connect, ends: what was sent once is not sent again.
"""

from __future__ import annotations

import atexit
import hashlib
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pyspark import SparkFiles

from fatwood.errors import ClusterError
from fatwood.spark.connect import is_connect
from fatwood.spark.shipping import ship, unship

__all__ = ["LEAST_BYTES", "Delivered", "Handed", "deliver", "hand_to_tasks", "rebuilt"]

LEAST_BYTES = 1 << 20
"""Of all tensors together, from which on they are worth a file."""

_ALIGNMENT = 64
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


@dataclass(frozen=True)
class Delivered:
    """Parts on their way to the tasks; small, and picklable."""

    shipped: bytes
    """From :func:`fatwood.spark.shipping.ship`."""
    file: str | None = None
    """The name of the file of tensors, for ``SparkFiles.get``; None where they are in the pickle."""
    size: int = 0
    """Of the file, in bytes."""


@dataclass(frozen=True)
class _Place:
    """A tensor in the file."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_parameter: bool
    requires_grad: bool


class _Tensors:
    """Tensors that are taken out of a pickle, in the order in which it comes to them."""

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}
        self._kept: list[torch.Tensor] = []  # so that no id is given to another object
        self.size = 0

    def take(self, value: object) -> _Place | None:
        """Where a tensor is; None for anything else, and for tensors that go by value."""
        if not isinstance(value, torch.Tensor) or not _is_plain(value):
            return None
        if id(value) not in self._places:
            start = -(-self.size // _ALIGNMENT) * _ALIGNMENT
            is_parameter = isinstance(value, torch.nn.Parameter)
            shape, strides = tuple(value.shape), value.stride()
            place = _Place(start, value.dtype, shape, strides, is_parameter, value.requires_grad)
            self._places[id(value)] = place
            self._kept.append(value)
            self.size = start + value.numel() * value.element_size()
        return self._places[id(value)]

    def name(self) -> str:
        """Of the file, by its content."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return f"weights-{digest.hexdigest()}"

    def blocks(self) -> Any:
        """The content of the file."""
        end = 0
        for tensor in self._kept:
            start = self._places[id(tensor)].start
            if start > end:
                yield bytes(start - end)
            block = _bytes_of(tensor)
            yield block.data
            end = start + len(block)


def deliver(spark: Any, parts: Mapping[str, Any], *, least_bytes: int = LEAST_BYTES) -> Delivered:
    """Send parts to the executors of a session, and their tensors once for each content.

    Args:
        spark: A classic session, or one of Spark Connect.
        parts: As :func:`fatwood.spark.shipping.ship` takes them.
        least_bytes: Of tensors, from which on they go into a file.

    Raises:
        ShippingError: Something does not pickle.
    """
    tensors = _Tensors()
    shipped = ship(parts, apart=tensors.take)
    if tensors.size < least_bytes:
        return Delivered(ship(parts))
    name = tensors.name()
    with _LOCK:
        sent = _SENT.setdefault(_session_id(spark), set())
        if name not in sent:
            _send(spark, tensors, name)
            sent.add(name)
    return Delivered(shipped, name, tensors.size)


def rebuilt(delivered: Delivered, path: str | Path | None = None) -> dict[str, Any]:
    """The parts, in a task. Their tensors are mapped: they may be written to, and then the pages written are copied.

    Args:
        delivered: From :func:`deliver`.
        path: Of the file; where Spark has put it by default.

    Raises:
        ShippingError: They cannot be rebuilt here.
        ClusterError: The file has not come, or is not whole.
    """
    if delivered.file is None:
        return unship(delivered.shipped)
    path = Path(path or SparkFiles.get(delivered.file))
    found = path.stat().st_size if path.exists() else None
    if found != delivered.size:
        received = "none" if found is None else f"{found} bytes"
        text = f"weights: expected a file of {delivered.size} bytes at {path}, received {received}"
        raise ClusterError(text, hint="look for full disks, and for files that were removed, on this host")
    mapped = _Mapped(path, delivered.size)
    return unship(delivered.shipped, given=mapped.tensor)


class _Mapped:
    """The tensors of a file; one that several places share is one."""

    def __init__(self, path: Path, size: int) -> None:
        with path.open("rb") as file:
            flags, access = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
            self._bytes = mmap.mmap(file.fileno(), size, flags=flags, prot=access)
        self._found: dict[int, torch.Tensor] = {}

    def tensor(self, place: _Place) -> torch.Tensor:
        if place.start not in self._found:
            count = int(np.prod(place.shape))
            # a tensor of the mapping's memory, which it keeps
            flat = torch.frombuffer(self._bytes, dtype=place.dtype, count=count, offset=place.start)
            tensor = flat.as_strided(place.shape, place.strides)
            if place.is_parameter:
                tensor = torch.nn.Parameter(tensor, requires_grad=place.requires_grad)
            else:
                tensor.requires_grad_(place.requires_grad)
            self._found[place.start] = tensor
        return self._found[place.start]


class Handed(Protocol[_T_co]):
    """A value that functions which run in tasks may use."""

    @property
    def value(self) -> _T_co:
        """It, on the driver and in tasks."""

    def destroy(self) -> None:
        """Free what it takes on driver and executors; no task can use it any more."""


@dataclass(frozen=True)
class _Held(Generic[_T]):
    """What stands for a broadcast in Spark Connect, which has none: it travels with the function."""

    value: _T

    def destroy(self) -> None:
        pass


def hand_to_tasks(spark: Any, value: _T) -> Handed[_T]:
    """A broadcast, or what stands for one.

    Args:
        spark: A classic session, or one of Spark Connect.
        value: Anything that pickles; of Connect, well below the 128 MiB of a function.
    """
    if is_connect(spark):
        return _Held(value)
    handed: Handed[_T] = spark.sparkContext.broadcast(value)
    return handed


_LOCK = threading.Lock()
_SENT: dict[str, set[str]] = {}
"""Names of files by session or application."""


@lru_cache(maxsize=1)
def _folder() -> Path:
    """For the driver's copies, which Spark reads whenever an executor starts; removed with the process."""
    path = Path(tempfile.mkdtemp(prefix="fatwood-weights-"))
    atexit.register(_remove, path, os.getpid())
    return path


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # and not one that was forked
        shutil.rmtree(path, ignore_errors=True)


def _send(spark: Any, tensors: _Tensors, name: str) -> None:
    path = _folder() / name
    path.parent.mkdir(mode=0o700, exist_ok=True)  # long-running hosts clean their temporary folders
    with path.open("wb") as file:
        for block in tensors.blocks():
            file.write(block)
    if is_connect(spark):
        spark.addArtifacts(str(path), file=True)
        path.unlink()
    else:
        spark.sparkContext.addFile(str(path))


def _session_id(spark: Any) -> str:
    return str(spark.session_id if is_connect(spark) else spark.sparkContext.applicationId)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether bytes, type, shape and strides say all of a tensor."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_leaf
        and not (tensor.is_quantized or tensor.is_complex() or tensor.is_neg())
        and not vars(tensor)
        and not tensor._backward_hooks
        and tensor.numel() > 0
        and _in_order(tensor).is_contiguous()
    )


def _in_order(tensor: torch.Tensor) -> torch.Tensor:
    """With its dimensions from the widest stride to the narrowest."""
    strides = tensor.stride()
    return tensor.detach().permute(sorted(range(tensor.dim()), key=lambda i: -strides[i]))


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A view of a plain tensor's memory."""
    flat: NDArray[np.uint8] = _in_order(tensor).reshape(-1).view(torch.uint8).numpy()
    return flat
