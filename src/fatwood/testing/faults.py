"""Faults in training workers, each at a rank and a minibatch, once unless told otherwise.

::

    faults = Faults(tmp_path).kill(rank=1, call=10).stop(rank=0, call=20)
    SparkModel(net, loss=faults.wrap(torch.nn.CrossEntropyLoss()), ...).fit(...)

The faults travel with the loss to the executors and happen in the worker's process, so they need a folder that all
workers share: there each leaves a mark before it strikes, and finds it when the worker is back.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fatwood.train import LossFunction, current_rank

__all__ = ["Faults", "LossCall"]


@dataclass(frozen=True)
class _Fault:
    kind: Literal["kill", "stop", "raise"]
    rank: int
    call: int
    error: Exception | None = None
    time: int = 1

    @property
    def mark(self) -> str:
        again = f"-time{self.time}" if self.time > 1 else ""
        return f"{self.kind}-rank{self.rank}-call{self.call}{again}"


@dataclass(frozen=True)
class LossCall:
    """One call of a recorded loss: one minibatch that a worker computed."""

    seconds: float
    """`time.time` when it was called."""
    pid: int
    rank: int
    keys: tuple[int, ...]
    """Which rows, as `record` was told to see it."""


class Faults:
    """Builds a loss that kills, stops, delays or breaks its worker.

    Args:
        folder: On a disk that all workers share; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._faults: list[_Fault] = []
        self._delays: dict[int, float] = {}
        self._key: Callable[[Any, Any], list[int]] | None = None

    def kill(self, *, rank: int, call: int, times: int = 1) -> Faults:
        """End the worker's process with SIGKILL at its `call`-th minibatch, counted from 1 in each process.

        Args:
            rank: Whose.
            call: Which minibatch.
            times: In how many processes of this rank, one after the other.
        """
        self._faults.extend(_Fault("kill", rank, call, time=time) for time in range(1, times + 1))
        return self

    def stop(self, *, rank: int, call: int) -> Faults:
        """Stop the worker's process with SIGSTOP: it hangs."""
        self._faults.append(_Fault("stop", rank, call))
        return self

    def fail(self, error: Exception, *, rank: int, call: int) -> Faults:
        """Raise an error in the loss."""
        self._faults.append(_Fault("raise", rank, call, error))
        return self

    def delay(self, seconds: float, *, rank: int | None = None) -> Faults:
        """Make every minibatch of a rank, or of all, take longer."""
        for each in range(64) if rank is None else (rank,):
            self._delays[each] = seconds
        return self

    def record(self, key: Callable[[Any, Any], list[int]]) -> Faults:
        """Write down every call.

        Args:
            key: From output and label to a number for each row.
        """
        self._key = key
        return self

    def wrap(self, loss: LossFunction) -> LossFunction:
        """The loss with the faults in it."""
        return _FaultyLoss(self._folder, tuple(self._faults), dict(self._delays), self._key, loss)

    @property
    def struck(self) -> set[str]:
        """The faults that happened, as ``kill-rank1-call10``, and ``kill-rank1-call10-time2`` for the second time."""
        return {fault.mark for fault in self._faults if (self._folder / fault.mark).exists()}

    def calls(self) -> Iterator[LossCall]:
        """What was recorded, in no order."""
        for path in self._folder.glob("calls-*.jsonl"):
            for line in path.read_text().splitlines():
                if line.endswith("]"):  # the last line of a killed worker may be cut
                    seconds, pid, rank, *keys = json.loads(line)
                    yield LossCall(seconds, pid, rank, tuple(keys))


class _FaultyLoss:
    """Counts its calls in each process."""

    def __init__(
        self,
        folder: Path,
        faults: tuple[_Fault, ...],
        delays: dict[int, float],
        key: Callable[[Any, Any], list[int]] | None,
        loss: LossFunction,
    ) -> None:
        self._folder, self._faults, self._delays, self._key, self._loss = folder, faults, delays, key, loss
        self._calls = 0

    def __call__(self, output: Any, label: Any) -> torch.Tensor:
        rank = current_rank()
        if rank is not None:
            self._calls += 1
            self._strike(rank)
            time.sleep(self._delays.get(rank, 0.0))
            if self._key is not None:
                line = json.dumps([time.time(), os.getpid(), rank, *self._key(output, label)])
                with (self._folder / f"calls-{os.getpid()}.jsonl").open("a") as file:
                    file.write(line + "\n")
        return self._loss(output, label)

    def _strike(self, rank: int) -> None:
        for fault in self._faults:
            mark = self._folder / fault.mark
            if (fault.rank, fault.call) != (rank, self._calls) or mark.exists():
                continue
            mark.touch()
            if fault.error is not None:
                raise fault.error
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
