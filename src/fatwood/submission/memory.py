"""How much memory an executor and a driver need, and into which of Spark's settings it goes.

::

    an executor's container = heap (spark.executor.memory) + overhead (spark.executor.memoryOverhead)
    overhead                = the JVM's own, max(384, heap / 10) + Python workers x memory of a worker + what is left

All numbers are MiB, since Spark reads a setting such as ``2048m`` exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fatwood.errors import OptionError

__all__ = ["ASSUMED_PARAMETERS", "DriverMemory", "ExecutorMemory", "parse_mib", "worker_mib"]

ASSUMED_PARAMETERS = 20_000_000
"""Of a network whose size was not told."""

_WORKER_MIB = 1024
"""PyTorch (285 MB), minibatches, their activations, Arrow batches."""
_CUDA_MIB = 2048
"""An assumption: what a process with CUDA's libraries and context holds of the host's memory."""
_WORKER_VECTORS = 14
"""In float32 vectors as long as the parameters: network, gradients, Adam's two; the four of the strategy with the most; two
while a mean is applied, docs/training.md; and, packed to be sent, the parameters, Adam's two and the residual."""
_LEAST_HEAP_MIB = 1024
_HEAP_PER_WORKER_MIB = 512
_JVM_MIB = 384
_DRIVER_MIB = 1024
_DRIVER_HEAP_VECTORS = 2
"""The network travels as a broadcast: its blocks, and the copy that is made of them."""
_DRIVER_PYTHON_VECTORS = 6
"""The user's network, the pickled job, trained parameters, and a worker's state of three while it is looked at."""
_CONNECTION_MIB = 8
"""States and checkpoints come in pieces that are written to files: a worker costs the driver its buffers."""

_UNITS = {"m": 1, "g": 1 << 10, "t": 1 << 20}


def parse_mib(text: str, option: str) -> int:
    """MiB of a size as Spark writes it: ``512m``, ``4g``, ``1t``.

    Args:
        text: What the user wrote; upper case and a following ``b`` or ``ib`` are read as well.
        option: Whose value it is, for the error.

    Raises:
        OptionError: It is no size, has no unit, or is 0.
    """
    found = re.fullmatch(r"(\d{1,9})([mgt])(i?b)?", text.strip().lower())
    if found is None or int(found.group(1)) == 0:
        message = f"{option}: expected a size such as 512m or 4g, received {text!r}"
        raise OptionError(message)
    return int(found.group(1)) * _UNITS[found.group(2)]


def worker_mib(parameters: int, *, cuda: bool) -> int:
    """What a Python worker needs beside its executor's JVM, in MiB.

    Args:
        parameters: Of the network.
        cuda: Whether it trains on a GPU.
    """
    return _WORKER_MIB + _vectors_mib(_WORKER_VECTORS, parameters) + (_CUDA_MIB if cuda else 0)


@dataclass(frozen=True, kw_only=True)
class ExecutorMemory:
    """The parts of one executor's memory, in MiB."""

    heap: int
    """The JVM's: rows on their way, shuffled blocks, the broadcast."""
    jvm: int
    """The JVM's own, outside its heap."""
    python: int
    """All Python workers together."""
    spare: int
    """What nobody asked for; the kernel keeps the workers' spilled rows in it."""

    @property
    def overhead(self) -> int:
        """All that is not heap."""
        return self.jvm + self.python + self.spare

    @property
    def total(self) -> int:
        """Of the container, or of the machine's share."""
        return self.heap + self.overhead

    @classmethod
    def of(cls, workers: int, worker: int, total: int | None = None) -> ExecutorMemory:
        """Divide an executor's memory.

        Args:
            workers: Python workers of the executor, at least 1.
            worker: What each needs.
            total: What there is; None for as much as is needed.

        Raises:
            OptionError: It does not fit; the message says the figures.
        """
        python = workers * worker
        heap = _LEAST_HEAP_MIB + workers * _HEAP_PER_WORKER_MIB
        if total is None:
            return cls(heap=heap, jvm=_jvm_mib(heap), python=python, spare=0)
        least = _LEAST_HEAP_MIB + _jvm_mib(_LEAST_HEAP_MIB) + python
        if total < least:
            message = (
                f"--executor-memory-total: expected at least {least} MiB, received {total} MiB: the JVM's heap of "
                f"{_LEAST_HEAP_MIB} and its overhead of {_jvm_mib(_LEAST_HEAP_MIB)}, and {workers} x {worker} for Python workers"
            )
            fewer = "lower --workers-per-executor, or " if workers > 1 else ""
            raise OptionError(
                message, hint=f"give more memory, {fewer}measure a worker's need and say --memory-per-worker"
            )
        rest = total - python
        heap = min(heap, rest - _JVM_MIB, rest * 10 // 11)
        jvm = _jvm_mib(heap)
        return cls(heap=heap, jvm=jvm, python=python, spare=rest - heap - jvm)


@dataclass(frozen=True, kw_only=True)
class DriverMemory:
    """The parts of the driver's memory, in MiB."""

    heap: int
    """The JVM's."""
    jvm: int
    """The JVM's own, outside its heap."""
    python: int
    """The script, the coordinator, and what it writes and reads of checkpoints."""

    @property
    def overhead(self) -> int:
        """All that is not heap."""
        return self.jvm + self.python

    @classmethod
    def of(cls, parameters: int, workers: int) -> DriverMemory:
        """What a driver needs.

        Args:
            parameters: Of the network.
            workers: That send it their states.
        """
        heap = _DRIVER_MIB + _vectors_mib(_DRIVER_HEAP_VECTORS, parameters)
        python = _DRIVER_MIB + _vectors_mib(_DRIVER_PYTHON_VECTORS, parameters) + workers * _CONNECTION_MIB
        return cls(heap=heap, jvm=_jvm_mib(heap), python=python)


def _jvm_mib(heap: int) -> int:
    return max(_JVM_MIB, -(-heap // 10))


def _vectors_mib(count: int, parameters: int) -> int:
    return -(-count * 4 * parameters // (1 << 20))
