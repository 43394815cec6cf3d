"""What steps of a network really take: seconds and memory, of real steps in processes of their own.

Each strategy is measured in a process that is forked like a Python worker of Spark. It trains as one worker of the group:
reading aside everything is real but its peers and the network between them (:mod:`fatwood.planning.mirror`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fatwood.data import Batch
from fatwood.errors import ClusterError, UserCodeError
from fatwood.spark.shipping import ship
from fatwood.train import AnyLoss, OptimizerFactory, Strategy

__all__ = ["Measured", "Together", "measure"]

_SECONDS_A_CASE = 10.0


@dataclass(frozen=True, kw_only=True)
class Together:
    """One worker of a group, without the network between them. Seconds and bytes are medians over agreements."""

    compute: float
    """Seconds of a minibatch: forward, backward, and the optimizer's step where each worker makes its own."""
    encode: float
    """Seconds to make the vector and the message."""
    swap: float
    """Seconds of the exchange's own work: to copy, to check and to sum up."""
    apply: float
    """Seconds to decode and to change the parameters."""
    other: float
    """Seconds of the rest: rows, headers, the ledger."""
    rounds: tuple[int, ...]
    """Bytes that a worker sends in each round of an agreement, frames included."""
    peak_bytes: int
    """The most that was resident, PyTorch included."""
    base_bytes: int
    """That were resident before there was a network."""
    address_bytes: int
    """The most address space."""
    agreements: int
    """That were measured, with those to warm up."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it."""

    alone_seconds: float
    """Of a step of one process that trains by itself."""
    alone_peak_bytes: int
    """The most that was resident in it."""
    together: tuple[Together, ...]
    """In the order of the strategies."""
    gpu: Mapping[str, Any] | None
    """``bytes`` that PyTorch reserved on a GPU for a step, ``process_bytes`` that the device had in use meanwhile, its
    ``device_bytes`` and ``name``; None where PyTorch sees no GPU."""


def measure(
    *,
    network: Any,
    loss: AnyLoss,
    optimizer: OptimizerFactory,
    strategies: Sequence[Strategy],
    batch: Batch,
    rows: int,
    workers: int,
    threads: int,
    steps: int,
    timeout_seconds: float,
) -> Measured:
    """Take real steps.

    Args:
        network: It stays as it is.
        loss: As in :class:`fatwood.SparkModel`.
        optimizer: Likewise.
        strategies: Each is measured.
        batch: Example rows; minibatches are made of them in turns.
        rows: Of a minibatch.
        workers: Of the group.
        threads: Of PyTorch.
        steps: That are counted; fewer where they take long.
        timeout_seconds: For all of it.

    Raises:
        UserCodeError: The network, the loss or the optimizer raised.
        ClusterError: A process was ended, or the time was over.
    """
    told = {
        "network": network,
        "loss": loss,
        "optimizer": optimizer,
        "strategies": list(strategies),
        "batch": batch,
        "rows": rows,
        "workers": workers,
        "steps": steps,
        "seconds": min(_SECONDS_A_CASE, timeout_seconds / (4 * (len(strategies) + 2))),
        "threads": threads,
    }
    cases = [-2, -1, *range(len(strategies))]
    with tempfile.TemporaryDirectory(prefix="fatwood-plan-") as folder:
        path = Path(folder, "told")
        path.write_bytes(ship(told))
        answers = _answers([str(path), *map(str, cases)], threads, timeout_seconds)
    found = {int(answer.pop("case")): _checked(answer) for answer in answers}
    if missing := [case for case in cases if case not in found]:
        text = f"plan: expected {len(cases)} measurements, received {len(found)}; missing: {missing}"
        raise ClusterError(text, hint="the process that measures ended early: its messages are on stderr")
    parts = [found[i] | {"rounds": tuple(found[i]["rounds"])} for i in range(len(strategies))]
    return Measured(
        alone_seconds=found[-1]["compute"],
        alone_peak_bytes=found[-1]["peak_bytes"],
        together=tuple(Together(**part) for part in parts),
        gpu=None if found[-2]["bytes"] is None else found[-2],
    )


def _answers(arguments: Sequence[str], threads: int, timeout_seconds: float) -> list[dict[str, Any]]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "fatwood.planning.probe", *arguments]
    # A group of its own: with the process that measures the ones that it forked are ended, too.
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        text = f"plan: the steps that are measured: expected their end within {timeout_seconds:g} s, received none"
        raise ClusterError(
            text, hint="pass fewer strategies, fewer steps or a longer timeout_seconds"
        ) from error
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return [json.loads(line) for line in out.splitlines()]


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        text = f"plan: a step raised: {answer['error']}"
        raise UserCodeError(text, hint=answer["hint"])
    if "ended" in answer:
        number = os.waitstatus_to_exitcode(answer["ended"])
        text = f"plan: the process that measures a step ended with code {number}"
        hint = (
            "signal 9 is what Linux sends when memory is short: pass a smaller batch_size"
            if number < 0
            else None
        )
        raise ClusterError(text, hint=hint)
    return answer
