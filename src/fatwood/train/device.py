"""Where a worker computes: the choice between CPU and GPU.

::

    asked       Spark gave GPUs           Spark gave none, and it
                                          gives GPUs to tasks / knows of none
    "cpu"       CPU                       CPU
    "cuda"      the first of them         error / GPU number (worker mod GPUs)
    "auto"      as "cuda"; CPU where that is not possible, with a line in the log where Spark gave a GPU

``BACKEND_PRIORITY_CPU`` (0) and ``BACKEND_PRIORITY_GPU`` (100) in the worker's environment change what ``"auto"`` tries first, as in
Deeplearning4j. What is asked for by name is there or an error.

Spark's address is what its discovery script printed: ``nvidia-smi``'s index of a GPU, or its UUID. PyTorch counts the GPUs that
``CUDA_VISIBLE_DEVICES`` leaves, in its order. So an address is looked for among the names in that variable first, and taken as a
position among the visible GPUs otherwise. Both count in the order of the PCI bus: ``CUDA_DEVICE_ORDER`` is set so unless it is set.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch

from fatwood.errors import OptionError

__all__ = [
    "Asked",
    "Cuda",
    "DeviceOrder",
    "Place",
    "checked_device",
    "choose_device",
    "find_cuda",
    "taken_device",
]

Asked: TypeAlias = Literal["auto", "cpu", "cuda"]

_LOG = logging.getLogger("fatwood.device")
_PRIORITIES: Final = {"BACKEND_PRIORITY_CPU": 0, "BACKEND_PRIORITY_GPU": 100}
_BUILD_HINT: Final = "install a build of PyTorch for CUDA there, or pass device='cpu' or 'auto'"
_DRIVER_HINT: Final = "look at nvidia-smi on that machine; or pass device='cpu' or 'auto'"
_SPARK_HINT: Final = (
    "set spark.task.resource.gpu.amount to 1, or to a fraction where tasks are to share a GPU; "
    "or pass device='cpu'"
)


@dataclass(frozen=True, kw_only=True)
class DeviceOrder:
    """What a task is told of where it computes."""

    asked: Asked = "auto"
    scheduled: bool = False
    """Whether Spark knows of its executors' GPUs, so that one which it did not give belongs to somebody else."""


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """What PyTorch can use in a process."""

    count: int = 0
    """Visible GPUs."""
    uuids: tuple[str, ...] = ()
    """Theirs, where PyTorch knows them."""
    problem: str | None = None
    """Why there is none that it can use."""
    hint: str = _DRIVER_HINT
    """What to do about the problem."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker computes, and why."""

    device: torch.device | None
    """A GPU; None for the CPU."""
    address: str | None = None
    """By which Spark gave it."""
    remark: str | None = None
    """What is worth a line in the log."""


def checked_device(asked: object) -> Asked:
    """What the user asked for, if it is one of the three words.

    Raises:
        OptionError: It is not.
    """
    if asked not in get_args(Asked):
        text = f"device: expected 'auto', 'cpu' or 'cuda', received {asked!r}"
        raise OptionError(text, hint="which GPU a task gets is up to Spark: spark.task.resource.gpu.amount")
    return asked  # type: ignore[return-value]


def choose_device(
    order: DeviceOrder,
    environment: Mapping[str, str],
    cuda: Cuda,
    addresses: Sequence[str] = (),
    number: int = 0,
) -> Place:
    """Choose, by what is known; asks nothing of the machine.

    Args:
        order: What the task was told.
        environment: Of the process.
        cuda: What PyTorch can use there.
        addresses: Of the GPUs that Spark gave the task.
        number: Of the worker or partition; deals out GPUs that Spark knows nothing of.

    Raises:
        OptionError: A GPU was asked for, and there is none for this task; or a priority is no number.
    """
    if order.asked == "cpu":
        return Place(device=None)
    if order.asked == "auto" and not _prefers_gpu(environment):
        return Place(device=None)
    try:
        return _gpu(order, environment, cuda, addresses, number)
    except OptionError as error:
        if order.asked == "cuda":
            raise
        remark = f"computing on the CPU: {error.message}" if addresses else None
        return Place(device=None, remark=remark)


def _prefers_gpu(environment: Mapping[str, str]) -> bool:
    """Whether the GPU is tried first."""
    values = {}
    for name, default in _PRIORITIES.items():
        given = environment.get(name, "").strip()
        try:
            values[name] = int(given) if given else default
        except ValueError:
            text = f"{name}: expected a whole number in the environment, received {given!r}"
            raise OptionError(text) from None
    return values["BACKEND_PRIORITY_GPU"] >= values["BACKEND_PRIORITY_CPU"]


def _gpu(
    order: DeviceOrder,
    environment: Mapping[str, str],
    cuda: Cuda,
    addresses: Sequence[str],
    number: int,
) -> Place:
    given = f"to which Spark gave GPU {', '.join(addresses)}, " if addresses else ""
    if cuda.problem is not None:
        text = f"device: expected a GPU that PyTorch can use on host {platform.node()}, {given}received none: {cuda.problem}"
        raise OptionError(text, hint=cuda.hint)
    if not addresses:
        if order.scheduled:
            text = "device: expected a GPU from Spark, whose executors have some, received none for this task"
            raise OptionError(text, hint=_SPARK_HINT)
        return Place(device=torch.device("cuda", number % cuda.count))
    index = _index_of(addresses[0], _visible(environment), cuda)
    remark = None
    if len(addresses) > 1:
        remark = f"Spark gave {len(addresses)} GPUs to one task ({', '.join(addresses)}); it computes on the first, {addresses[0]}"
    return Place(device=torch.device("cuda", index), address=addresses[0], remark=remark)


def _visible(environment: Mapping[str, str]) -> list[str]:
    return [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]


def _index_of(address: str, visible: Sequence[str], cuda: Cuda) -> int:
    """PyTorch's number of a GPU."""
    for names in (visible, cuda.uuids):
        if address in names and names.index(address) < cuda.count:
            return names.index(address)
    if address.isdecimal() and int(address) < cuda.count:
        return int(address)
    among = f"CUDA_VISIBLE_DEVICES={','.join(visible)}" if visible else "CUDA_VISIBLE_DEVICES is not set"
    text = (
        f"device: expected Spark's address of a GPU to be one of the {cuda.count} that PyTorch sees on host "
        f"{platform.node()} ({among}), received {address!r}"
    )
    raise OptionError(
        text, hint="the discovery script must print the GPUs as nvidia-smi counts them, or their UUIDs"
    )


def find_cuda() -> Cuda:
    """What PyTorch can use in this process; begins to use CUDA in it, and counts GPUs as Spark does."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if torch.version.cuda is None and torch.version.hip is None:
        return Cuda(problem=f"PyTorch {torch.__version__} is built for the CPU", hint=_BUILD_HINT)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # no driver, or one too old; the text says which
        return Cuda(problem=str(error).strip().partition("\n")[0])
    count = torch.cuda.device_count()
    if not count:
        return Cuda(problem="PyTorch sees no GPU")
    return Cuda(count=count, uuids=tuple(_uuid(index) for index in range(count)))


def _uuid(index: int) -> str:
    """As nvidia-smi spells it; empty where PyTorch does not know it."""
    found = getattr(torch.cuda.get_device_properties(index), "uuid", "")
    return f"GPU-{found}" if found else ""


def taken_device(order: DeviceOrder, addresses: Sequence[str], number: int) -> Place:
    """Choose for this process, and say in its log what was not expected.

    Args:
        order: What the task was told.
        addresses: Of the GPUs that Spark gave the task.
        number: Of the worker or partition.

    Raises:
        OptionError: As :func:`choose_device`.
    """
    ask = order.asked == "cuda" or (order.asked == "auto" and _prefers_gpu(os.environ))
    place = choose_device(order, os.environ, find_cuda() if ask else Cuda(), addresses, number)
    if place.remark is not None:
        _LOG.warning("%s", place.remark)
    return place
