"""The rivals of `network.py`, in one job of PySpark's TorchDistributor: a process group of gloo, one cell after the other.

* PyTorch's DistributedDataParallel, whose all-reduce overlaps the backward pass; with its fp16 hook; with its PowerSGD hook.
* Error-feedback top-k: local step, residual, the k largest as int32 places and float32 values, all-gather, mean.
  ``sampled`` estimates the k-th largest from a sample, as Deep Gradient Compression does, which is much faster.
* Deeplearning4j's scheme: local step, residual, its adaptive threshold and its messages byte for byte (`codec_peers.py`), residual
  clipping, all-gather, sum. Synchronous here; its own is not.
* One process alone with the rows of all, and all workers without any exchange.

Gloo has no all-gather of different sizes: sizes go first, then messages of the largest size, as every program on it does.
"""

from __future__ import annotations

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from codec_peers import dl4j_apply, dl4j_bitmap, dl4j_flexible
from network_cells import SETTLED, Cell, Measured, factor_at, intervals, link_bytes, sent
from network_tasks import TASKS, Task
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Dl4j", "Scheme", "Sharer", "TopK", "gathered", "look", "merged", "work"]

LOOK_ROWS = 500
"""Held-out rows that go through the network at once."""
ONE_BUCKET_MB = 1000
SAMPLE = 100
"""One of so many residuals is looked at for a sampled threshold."""


class Phases:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the block's."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def gathered(message: Tensor, group: Any, phases: Phases) -> list[Tensor]:
    """All ranks' messages, in their order.

    Args:
        message: ``(k,)`` int32, of any length.
        group: A process group of gloo.
        phases: ``wait`` until all sizes are known, ``exchange`` from there.
    """
    count = group.size()
    with phases.of("wait"):
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count)]
        group.allgather([sizes], [torch.tensor([message.numel()])]).wait()
    with phases.of("exchange"):
        most = max(int(size) for size in sizes)
        if not most:
            return [message] * count
        padded = torch.zeros(most, dtype=torch.int32)
        padded[: message.numel()] = message
        parts = [torch.empty(most, dtype=torch.int32) for _ in range(count)]
        group.allgather([parts], [padded]).wait()
        return [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]


class Scheme(ABC):
    """What is sent of a residual."""

    sums = False
    """Messages are added up; else their mean."""

    @abstractmethod
    def encode(self, residual: Tensor) -> Tensor:
        """Take a message ``(k,)`` int32 out of the residual ``(n,)``."""

    @abstractmethod
    def apply(self, message: Tensor, target: Tensor, scale: float) -> None:
        """Add ``scale`` times what a message says to ``(n,)``."""


class TopK(Scheme):
    """The largest residuals, whole.

    Args:
        density: Their share.
        sampled: Send those above a sample's quantile, so that their number is only about right.
    """

    def __init__(self, density: float, *, sampled: bool) -> None:
        self.density, self.sampled = density, sampled

    def encode(self, residual: Tensor) -> Tensor:
        """See :meth:`Scheme.encode`: k places, then the bits of k float32 values."""
        size = residual.abs()
        if self.sampled:
            sample = size[torch.randint(SAMPLE, (1,)).item() :: SAMPLE]
            k = max(1, round(self.density * sample.numel()))
            places = (size >= torch.topk(sample, k, sorted=False).values.min()).nonzero().squeeze(1)
        else:
            places = torch.topk(size, max(1, round(self.density * size.numel())), sorted=False).indices
        values = residual[places]
        residual.index_fill_(0, places, 0.0)
        return torch.cat([places.to(torch.int32), values.view(torch.int32)])

    def apply(self, message: Tensor, target: Tensor, scale: float) -> None:
        """See :meth:`Scheme.apply`."""
        places, values = message.view(2, -1)
        target.index_add_(0, places, values.view(torch.float32), alpha=scale)


class Dl4j(Scheme):
    """Deeplearning4j's ``EncodingHandler`` with its ``AdaptiveThresholdAlgorithm`` and ``ResidualClippingPostProcessor``.

    Args:
        initial: The first threshold; 1e-4 in the code, 1e-3 in its examples.
    """

    sums = True
    low, high = 1e-4, 1e-2
    decay = 0.5 ** (1 / 20)
    clip, every = 5.0, 5

    def __init__(self, initial: float) -> None:
        self.tau = initial
        self.bitmap, self.was_dense = True, False
        self.sparsity: float | None = None
        self.step = 0

    def encode(self, residual: Tensor) -> Tensor:
        """See :meth:`Scheme.encode`; nothing where fewer than two residuals reach the threshold."""
        r, n = residual.numpy(), residual.numel()
        self.tau = self._next_tau()
        step, self.step = self.step, self.step + 1
        if self.bitmap:
            message, count = dl4j_bitmap(r, self.tau)
            if count < (n // 16 + 5) / 2:
                self.bitmap = False  # with the next message
            self.was_dense, self.sparsity = True, None
        else:
            found = dl4j_flexible(r, self.tau, n // 16)
            if found is None:
                self.was_dense, self.sparsity = False, 0.0
                return torch.empty(0, dtype=torch.int32)
            if found.size >= n // 16:  # what was taken out of the residual for it is lost, as in the original
                self.bitmap = True
                message, _ = dl4j_bitmap(r, self.tau)
                self.was_dense, self.sparsity = True, None
            else:
                message = found
                self.was_dense, self.sparsity = False, found.size / n
        if step > 0 and step % self.every == 0:
            residual.clamp_(-self.clip * self.tau, self.clip * self.tau)
        return torch.from_numpy(message)

    def apply(self, message: Tensor, target: Tensor, scale: float) -> None:
        """See :meth:`Scheme.apply`; only with a scale of 1."""
        assert scale == 1.0
        if message.numel():
            dl4j_apply(message.numpy(), target.numpy())

    def _next_tau(self) -> float:
        if self.step == 0:
            return self.tau
        last = 1 / 16 if self.sparsity is None else self.sparsity
        if last < self.low:
            return self.tau * self.decay
        return self.tau / self.decay if last > self.high else self.tau


class Sharer:
    """Local steps whose updates are shared by a scheme.

    Args:
        parameters: ``(n,)``, the network's own memory.
        scheme: What is sent.
        group: A process group of gloo.
        phases: Are told of ``codec``, ``wait``, ``exchange``.
    """

    def __init__(self, parameters: Tensor, scheme: Scheme, group: Any, phases: Phases) -> None:
        self.parameters, self.scheme, self.group, self.phases = parameters, scheme, group, phases
        self.agreed = parameters.clone()
        self.residual = torch.zeros_like(parameters)

    def share(self) -> None:
        """After a local step: go to the parameters that all agree on."""
        with self.phases.of("codec"):
            self.residual.add_(self.parameters).sub_(self.agreed)
            message = self.scheme.encode(self.residual)
        messages = gathered(message, self.group, self.phases)
        with self.phases.of("codec"):
            scale = 1.0 if self.scheme.sums else 1.0 / len(messages)
            for one in messages:
                self.scheme.apply(one, self.agreed, scale)
            self.parameters.copy_(self.agreed)


def flat_parameters(network: nn.Module) -> Tensor:
    """Put all parameters side by side into one vector that they are views of."""
    parameters = list(network.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    place = 0
    for p in parameters:
        p.data = flat[place : place + p.numel()].view_as(p)
        place += p.numel()
    return flat


def look(network: nn.Module, task: Task, count: int, rank: int, workers: int) -> tuple[float, float]:
    """A worker's part of the held-out rows: the sum of what is wrong with them, and how many they are."""
    inputs, labels = (
        torch.split(torch.from_numpy(part[rank::workers]), LOOK_ROWS) for part in task.held_out(count)
    )
    wrong = rows = 0.0
    network.eval()
    with torch.inference_mode():
        for some, right in zip(inputs, labels, strict=True):
            wrong += task.quality(network(some), right) * len(right)
            rows += len(right)
    network.train()
    return wrong, rows


class _Run:
    """One cell on one rank."""

    def __init__(self, cell: Cell, task: Task, group: Any) -> None:
        self.cell, self.task, self.group, self.phases = cell, task, group, Phases()
        kind = cell.settings["kind"]
        self.workers = 1 if kind == "alone" else group.size()
        self.rank = 0 if kind == "alone" else group.rank()
        self.batch_size = (cell.batch_size or task.batch_size) * (group.size() if kind == "alone" else 1)
        self.network = task.network(cell.seed)
        self.called: nn.Module = self.network
        self.sharer: Sharer | None = None
        if kind == "ddp":
            self.called = _ddp(self.network, cell.settings)
        elif kind in ("topk", "dl4j"):
            options = {name: value for name, value in cell.settings.items() if name != "kind"}
            scheme: Scheme = TopK(**options) if kind == "topk" else Dl4j(**options)
            self.sharer = Sharer(flat_parameters(self.network), scheme, group, self.phases)
        self.optimizer = task.optimizer(self.network.parameters(), cell.rate)

    def step(self, number: int) -> None:
        """One."""
        with self.phases.of("compute"):
            inputs, labels = self.task.rows(self.cell.seed, number, self.rank, self.workers, self.batch_size)
            for options in self.optimizer.param_groups:
                options["lr"] = self.cell.rate * factor_at(number, self.cell)
            self.optimizer.zero_grad(set_to_none=not isinstance(self.called, DistributedDataParallel))
            self.task.loss(self.called(inputs), labels).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        if self.sharer is not None:
            with torch.no_grad():
                self.sharer.share()

    def look(self) -> float:
        """Quality on the held-out rows."""
        part = look(self.network, self.task, self.cell.held_out, self.rank, self.workers)
        sums = torch.tensor(part, dtype=torch.float64)
        if self.workers > 1:
            self.group.allreduce([sums]).wait()
        return float(sums[0] / sums[1])

    def run(self) -> dict[str, Any]:
        """All steps; what was seen."""
        stamps, counters, computed, points = [], [], [], []
        begun = time.perf_counter()
        for number in range(self.cell.steps):
            if number == SETTLED:
                self.phases.seconds.clear()
            stamps.append(time.perf_counter())
            counters.append(link_bytes())
            computed.append(time.process_time())
            self.step(number)
            if self.cell.every and (number + 1) % self.cell.every == 0:
                points.append((number + 1, self.look()))
                if self._is_over(points, time.perf_counter() - begun):
                    break
        stamps.append(time.perf_counter())
        counters.append(link_bytes())
        computed.append(time.process_time())
        steps, first = intervals(stamps, self.cell.every)
        done = max(1, len(stamps) - 1 - SETTLED)
        return {
            "points": points,
            "step_seconds": steps,
            "first_seconds": first,
            "cpu_seconds": intervals(computed, self.cell.every)[0],
            "sent_bytes": sent(counters, self.cell.every),
            "phases": {name: seconds / done for name, seconds in self.phases.seconds.items()},
        }

    def _is_over(self, points: list[tuple[int, float]], seconds: float) -> bool:
        until = self.cell.until
        reached = until is not None and Measured(cell={}, points=points).steps_to(until) is not None
        flags = torch.tensor([float(reached), seconds, points[-1][1]], dtype=torch.float64)
        if self.workers > 1:  # rank 0 decides
            self.group.broadcast([flags]).wait()
        return bool(flags[0]) or float(flags[1]) > self.cell.seconds or not math.isfinite(float(flags[2]))


def _ddp(network: nn.Module, settings: dict[str, Any]) -> nn.Module:
    # The PowerSGD hook waits for its second all-reduce inside a thread of gloo, which has two: with more than one bucket it
    # waits for ever. One bucket is also fewer rounds, and there is little left to overlap.
    cap = ONE_BUCKET_MB if settings.get("hook") == "powersgd" else None
    called = DistributedDataParallel(
        network, broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=cap
    )
    if settings.get("hook") == "fp16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        called.register_comm_hook(None, fp16_compress_hook)
    elif settings.get("hook") == "powersgd":
        from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

        state = PowerSGDState(
            process_group=None,
            matrix_approximation_rank=settings["rank"],
            start_powerSGD_iter=2,  # the least that error feedback allows
            batch_tensors_with_same_shape=True,
        )
        called.register_comm_hook(state, powerSGD_hook)
    return called


def work(told: Sequence[dict[str, Any]], output: str) -> None:
    """A rank of the job: run cells one after the other; rank 0 appends a line of JSON for each to a file."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "eth0" if Path("/sys/class/net/eth0").exists() else "lo")
    dist.init_process_group("gloo")
    try:
        for values in told:
            cell = Cell(**values)
            task = TASKS[cell.task](None if cell.folder is None else Path(cell.folder))
            group = dist.group.WORLD
            assert group is not None
            kind = cell.settings["kind"]
            mine: dict[str, Any] = {}
            dist.barrier()
            if kind != "alone" or group.rank() == 0:
                mine = _Run(cell, task, group).run()
            everyone: list[Any] = [None] * group.size()
            dist.all_gather_object(everyone, mine)
            if group.rank() == 0:
                found = merged(cell, [one for one in everyone if one])
                with Path(output).open("a") as file:
                    print(json.dumps(found.to_json()), file=file)
    finally:
        dist.destroy_process_group()


def merged(cell: Cell, parts: Sequence[dict[str, Any]]) -> Measured:
    """Means of what ranks measured; curves and steps of rank 0."""
    first = parts[0]
    names = {name for part in parts for name in part["phases"]}
    means = {name: float(np.mean([part["phases"].get(name, 0.0) for part in parts])) for name in names}
    bytes_sent = float(np.mean([part["sent_bytes"] for part in parts]))
    return Measured(cell=cell.to_json(), **{**first, "phases": means, "sent_bytes": bytes_sent})
