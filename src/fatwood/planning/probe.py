"""The child process of :mod:`fatwood.planning.measuring`: real steps, timed, and the memory that they took.

It imports what a Python worker of Spark has in memory and forks for each case, as Spark's daemon forks workers, so that each
case has a peak of its own. Reads what to do from a file, and prints one JSON object a case.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from fatwood.data import Batch, PartitionData
from fatwood.errors import FatwoodError
from fatwood.exchange import FixedTeam
from fatwood.planning.mirror import MirrorExchange
from fatwood.spark.shipping import unship
from fatwood.train import Ledger, Recipe, Replica, StepRecord, Strategy, TrainingJob, pack
from fatwood.train.local import LocalTrainer

__all__ = ["main"]

_IMPORTED = (
    "pyspark.worker",
    "torch._dynamo",
    "pandas",
    "pyarrow.compute",
    "fatwood.spark.task",
    "fatwood.spark.inference_task",
)
"""What a Python worker of Spark has imported by its first step."""
_WARM_UP = 3
"""Steps that are not counted: what the optimizer and the threads allocate comes with the first."""
_SETTLING = 40
"""As many more where messages are sparse: the first are larger, until a threshold that adapts has found its value."""


@dataclass
class _Told:
    """What :func:`fatwood.planning.measuring.measure` asks for."""

    network: Any
    loss: Any
    optimizer: Any
    strategies: list[Strategy]
    batch: Batch
    rows: int
    """Of a minibatch."""
    workers: int
    steps: int
    seconds: float
    """After which no further step of a case begins, when a few are done."""
    threads: int


@dataclass
class _Rows:
    """Minibatches of example rows, in place of a worker's partition."""

    told: _Told
    warm_up: int = _WARM_UP
    """Steps before those that count."""
    rows_skipped: int = 0
    taken: int = field(default=0, init=False)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The rows again and again, in pieces that go on where the last one ended."""
        del number, start
        least, deadline = _WARM_UP + 2, time.perf_counter() + self.told.seconds
        while self.taken < self.told.steps + self.warm_up:
            if self.taken >= least and time.perf_counter() > deadline:
                return
            yield self._piece(self.taken)
            self.taken += 1

    def validation(self) -> Iterator[Batch]:
        """None."""
        return iter(())

    def _piece(self, number: int) -> Batch:
        have, rows = len(self.told.batch), self.told.rows
        chosen = (torch.arange(rows) + number * rows) % have
        return _taken(self.told.batch, chosen)


def _taken(batch: Batch, chosen: torch.Tensor) -> Batch:
    """Rows by number, copied."""
    assert batch.row_ids is not None  # noqa: S101  # set when it was made

    def pick(tensors: Any) -> Any:
        if isinstance(tensors, torch.Tensor):
            return tensors[chosen]
        if isinstance(tensors, dict):
            return {name: pick(value) for name, value in tensors.items()}
        return None if tensors is None else tuple(pick(value) for value in tensors)

    parts = {name: pick(getattr(batch, name)) for name in ("features", "label", "weight")}
    masks = {name: pick(getattr(batch, name)) for name in ("feature_mask", "label_mask")}
    return Batch(**parts, **masks, row_ids=batch.row_ids[chosen.numpy()])


def _recipe(told: _Told) -> Recipe:
    return Recipe(optimizer=told.optimizer)


def _together(told: _Told, strategy: Strategy) -> dict[str, Any]:
    """One worker of a group that is not there: everything but the network."""
    if strategy.every > 1 and is_dataclass(strategy):
        strategy = replace(strategy, every=1)
    job = TrainingJob(
        network=told.network,
        loss=told.loss,
        recipe=_recipe(told),
        strategy=strategy,
        batch_size=told.rows,
        epochs=1,
    )
    settles = strategy.reducer(1).residual is not None
    rows = _Rows(told, warm_up=_WARM_UP + _SETTLING * settles)
    data, exchange = cast(PartitionData, rows), MirrorExchange(told.workers)
    replica = Replica(job, FixedTeam(exchange), workers=told.workers)
    seen: list[dict[str, float]] = []
    rounds: list[list[int]] = []
    messages: list[int] = []
    mark = time.perf_counter()

    def on_progress(_: StepRecord, __: Ledger) -> None:
        nonlocal mark
        wall = time.perf_counter() - mark
        stats = replica.stats(data)
        seen.append({**stats.seconds, "wall": wall})
        rounds.append(exchange.rounds)
        messages.append(stats.message_bytes)
        exchange.rounds = []
        mark = time.perf_counter()

    replica.train(data, on_progress)
    pack(replica.state())
    replica.shared_state()
    settled = range(max(min(_WARM_UP, len(seen) - 1), len(seen) - told.steps), len(seen))

    def per_agreement(name: str) -> float:
        return statistics.median(
            seen[i].get(name, 0.0) - (seen[i - 1].get(name, 0.0) if i else 0.0) for i in settled
        )

    parts = {name: per_agreement(name) for name in ("compute", "encode", "exchange", "apply")}
    wall = statistics.median(seen[i]["wall"] for i in settled)
    other = max(0.0, wall - sum(parts.values())) if not strategy.staleness else 0.0
    return {
        "compute": parts["compute"] / strategy.every,
        "encode": parts["encode"],
        "swap": parts["exchange"],
        "apply": parts["apply"],
        "other": other,
        "rounds": [
            int(statistics.median(sizes)) for sizes in zip(*(rounds[i] for i in settled), strict=True)
        ],
        "agreements": len(seen),
    }


def _alone(told: _Told) -> dict[str, Any]:
    """One process that trains by itself."""
    trainer = LocalTrainer(told.network.train(), told.loss, _recipe(told), on_bad_row="error")
    seconds = []
    for batch in _Rows(told).epoch(0):
        start = time.perf_counter()
        trainer.gradient([batch])
        trainer.descend()
        seconds.append(time.perf_counter() - start)
    return {"compute": statistics.median(seconds[min(_WARM_UP, len(seconds) - 1) :])}


def _on_gpu(told: _Told) -> dict[str, Any]:
    """What steps take of a GPU's memory, if there is one."""
    if not torch.cuda.is_available():
        return {"bytes": None}

    trainer = LocalTrainer(
        told.network.train(), told.loss, _recipe(told), on_bad_row="error", device=torch.device("cuda")
    )
    for batch in islice(_Rows(told).epoch(0), _WARM_UP):
        trainer.gradient([batch])
        trainer.descend()
    free, total = torch.cuda.mem_get_info()
    return {
        "bytes": torch.cuda.max_memory_reserved(),
        "device_bytes": total,
        "process_bytes": total - free,
        "name": torch.cuda.get_device_name(),
    }


def memory_bytes() -> dict[str, int]:
    """Of this process: resident, and the most it was; address space, and the most it was. Empty where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"VmHWM": peak if sys.platform == "darwin" else peak << 10}
    return {name: int(kib) << 10 for name, kib in re.findall(r"^(Vm\w+):\s+(\d+) kB", text, re.MULTILINE)}


def _case(shipped: bytes, number: int, parent: Mapping[str, int]) -> dict[str, Any]:
    """What the forked process measures: -2 the GPU, -1 one process alone, else a strategy."""
    # A fork has the libraries' pages of its parent only when it touches them; a worker of Spark's own daemon has them all.
    unseen = max(0, parent.get("VmRSS", 0) - memory_bytes().get("VmRSS", 0))
    told = _Told(**unship(shipped))
    torch.set_num_threads(told.threads)
    torch.manual_seed(0)
    if number == -2:
        return {"case": number, **_on_gpu(told)}
    found = _alone(told) if number == -1 else _together(told, told.strategies[number])
    after = memory_bytes()
    memory = {
        "base_bytes": parent.get("VmRSS", 0),
        "peak_bytes": after.get("VmHWM", 0) + unseen,
        "address_bytes": after.get("VmPeak", 0),
    }
    return {"case": number, **found, **memory}


def _answer(shipped: bytes, number: int, parent: Mapping[str, int]) -> dict[str, Any]:
    try:
        return _case(shipped, number, parent)
    except FatwoodError as error:
        return {
            "case": number,
            "error": error.message,
            "hint": error.hint,
            "user": isinstance(error, ValueError),
        }
    except Exception as error:  # whatever the user's code raises
        return {"case": number, "error": f"{type(error).__name__}: {error}", "hint": None, "user": False}


def main() -> None:
    """Measure the cases of the command line."""
    shipped = Path(sys.argv[1]).read_bytes()
    for name in _IMPORTED:
        with suppress(ImportError):
            import_module(name)
    out = os.dup(1)
    os.dup2(2, 1)  # what the user's code prints does not come between the answers
    parent = memory_bytes()
    for number in map(int, sys.argv[2:]):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                answer = json.dumps(_answer(shipped, number, parent)).encode() + b"\n"
                while answer:
                    answer = answer[os.write(out, answer) :]
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if status:
            os.write(out, json.dumps({"case": number, "ended": status}).encode() + b"\n")


if __name__ == "__main__":
    main()
