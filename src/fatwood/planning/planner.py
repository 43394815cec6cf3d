"""A plan: what a network needs of a cluster, and whether the cluster makes its training faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fatwood.data import Batch
from fatwood.errors import OptionError
from fatwood.planning.cluster import Cluster
from fatwood.planning.measuring import Measured, Together, measure
from fatwood.submission.memory import DriverMemory, ExecutorMemory
from fatwood.train import (
    AllReduce,
    AnyLoss,
    DiLoCo,
    GradientSharing,
    OptimizerFactory,
    ParameterAveraging,
    Strategy,
)

__all__ = ["Plan", "StrategyPlan", "plan"]

_FEEDING_BYTES = 32 << 20
"""Rows on their way into a worker: Arrow batches of 8 MB, as they come, as they are checked, and as they are kept."""
_HARDLY = 1.2
"""Times as fast as one process, below which a cluster is hardly worth its trouble."""
_ENOUGH = 0.8
"""A candidate is good enough with this part of the fastest one's speed."""


@dataclass(frozen=True, kw_only=True)
class StrategyPlan:
    """One strategy on the cluster."""

    name: str
    """As it is written."""
    every: int
    """Optimizer steps between two agreements."""
    staleness: int
    """1 where the exchange runs beside the next step."""
    measured: Together
    network_seconds: float
    """Of an agreement, on the links."""
    step_seconds: float
    """Of a minibatch on each worker, with its part of an agreement."""
    rows_per_second: float
    """Of all workers together."""
    speedup: float
    """The same over that of one process."""
    worker_mib: int
    """Memory of a Python worker."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What :func:`plan` found; ``str()`` of it is a page of text."""

    parameters: int
    """That are trained."""
    batch_size: int
    """Rows of a minibatch, per worker."""
    rows: int | None
    """Of an epoch, where it was told."""
    cluster: Cluster
    alone_seconds: float
    """Of a step of one process without a cluster."""
    alone_mib: int
    """Its memory."""
    strategies: tuple[StrategyPlan, ...]
    """In the order of preference."""
    gpu: Mapping[str, Any] | None
    """As in :class:`fatwood.planning.measuring.Measured`."""

    @property
    def considered(self) -> tuple[StrategyPlan, ...]:
        """The strategies that agree at every step, whose learning is nearest to that of one process; all where there is none."""
        return tuple(found for found in self.strategies if found.every == 1) or self.strategies

    @property
    def fastest(self) -> StrategyPlan:
        """Of the considered strategies, the one with the most rows a second."""
        return max(self.considered, key=lambda found: found.speedup)

    @property
    def recommended(self) -> StrategyPlan | None:
        """The first considered strategy with at least 80 % of the fastest one's speed; None where one process is faster."""
        if self.fastest.speedup <= 1:
            return None
        return next(found for found in self.considered if found.speedup >= _ENOUGH * self.fastest.speedup)

    @property
    def hardly_pays(self) -> bool:
        """Whether the fastest is less than 1.2 times as fast as one process."""
        return self.fastest.speedup < _HARDLY

    @property
    def executor(self) -> ExecutorMemory:
        """Of an executor with the recommended strategy, or else with the fastest."""
        worker = (self.recommended or self.fastest).worker_mib
        return ExecutorMemory.of(self.cluster.workers_per_executor, worker)

    @property
    def driver(self) -> DriverMemory:
        """Of the driver."""
        return DriverMemory.of(self.parameters, self.cluster.workers)

    def epoch_seconds(self, step_seconds: float, workers: int) -> float | None:
        """Of an epoch with steps that take so long; None without `rows`."""
        return None if self.rows is None else self.rows / (workers * self.batch_size) * step_seconds

    def to_json(self) -> dict[str, Any]:
        """As JSON values; memory in MiB, times in seconds."""
        recommended = self.recommended
        executor, driver = self.executor, self.driver
        return {
            "parameters": self.parameters,
            "batch_size": self.batch_size,
            "rows": self.rows,
            "cluster": asdict(self.cluster),
            "alone": {"step_seconds": self.alone_seconds, "memory_mib": self.alone_mib},
            "strategies": [asdict(found) for found in self.strategies],
            "recommended": None if recommended is None else recommended.name,
            "hardly_pays": self.hardly_pays,
            "memory_mib": {
                "worker": (recommended or self.fastest).worker_mib,
                "executor": {**asdict(executor), "overhead": executor.overhead, "total": executor.total},
                "driver": {**asdict(driver), "overhead": driver.overhead},
            },
            "gpu": None if self.gpu is None else dict(self.gpu),
        }

    def to_text(self) -> str:
        """Tables, the recommendation, and the arithmetic behind them."""
        from fatwood.planning.table import text_of

        return text_of(self)

    def __str__(self) -> str:
        return self.to_text()


def plan(
    network: torch.nn.Module,
    *,
    loss: AnyLoss,
    optimizer: OptimizerFactory,
    features: Any,
    label: Any = None,
    batch_size: int | None = None,
    workers: int = 2,
    mbit: float = 1000.0,
    round_trip_seconds: float = 0.0005,
    cores_per_worker: int = 1,
    workers_per_executor: int = 1,
    sharing: float = 1.0,
    rows: int | None = None,
    strategies: Sequence[Strategy] | None = None,
    steps: int = 12,
    timeout_seconds: float = 180.0,
) -> Plan:
    """What a network needs of a cluster's memory, and how fast it would train there.

    Real steps are taken in processes of their own, on this machine's cores. They are timed, with the codec's and the
    exchange's own work in them; only the time on the links is computed, from the bytes that were sent.

    Example::

        found = fatwood.plan(net, loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.Adam, lr=1e-3),
                             features=images, label=digits, batch_size=32, workers=4, mbit=100)
        print(found)

    Args:
        network: It stays as it is.
        loss: As in :class:`fatwood.SparkModel`.
        optimizer: Likewise.
        features: Example rows, as the network is called with them: a tensor ``(N, ...)``, a tuple of them, or a dict. Real ones:
            how much is sent depends on them where messages are sparse.
        label: Their labels, ``(N, ...)`` each.
        batch_size: Rows of a minibatch, per worker; None for N. With more than N, rows are repeated.
        workers: That train together.
        mbit: Megabits a second that each worker's link can send, and receive. Where several share a link, each one's part.
        round_trip_seconds: Between two workers.
        cores_per_worker: PyTorch's threads in each.
        workers_per_executor: In one container.
        sharing: Workers that compute on the same core at the same time.
        rows: Of an epoch, to have the time of one.
        strategies: In order of preference; None for `AllReduce`, `GradientSharing`, `ParameterAveraging` and `DiLoCo`.
        steps: To measure of each; fewer where they take long.
        timeout_seconds: For all measurements.

    Raises:
        UserError: An argument that cannot work; the network, the loss or the optimizer raised.
        ClusterError: A measurement was ended, or the time was over.
    """
    cluster = Cluster(
        workers=workers,
        mbit=mbit,
        round_trip_seconds=round_trip_seconds,
        cores_per_worker=cores_per_worker,
        workers_per_executor=workers_per_executor,
        sharing=sharing,
    )
    if not isinstance(network, torch.nn.Module):
        text = f"network: expected a torch.nn.Module, received {type(network).__name__}"
        raise OptionError(text, hint="pass an instance; SparkModel.load(...).network of a model file")
    chosen = _strategies(strategies)
    batch = Batch(features=features, label=label)
    if not len(batch):
        text = "features: expected at least one row, received none"
        raise OptionError(text)
    size = len(batch) if batch_size is None else batch_size
    for name, value in (("batch_size", size), ("rows", 1 if rows is None else rows), ("steps", steps)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            text = f"{name}: expected a whole number of at least 1, received {value!r}"
            raise OptionError(text)
    measured = measure(
        network=network,
        loss=loss,
        optimizer=optimizer,
        strategies=chosen,
        batch=batch,
        rows=size,
        workers=workers,
        threads=cores_per_worker,
        steps=steps,
        timeout_seconds=timeout_seconds,
    )
    measured = _settled(measured, chosen)
    return Plan(
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        batch_size=size,
        rows=rows,
        cluster=cluster,
        alone_seconds=measured.alone_seconds,
        alone_mib=_mib(measured.alone_peak_bytes),
        strategies=tuple(_on(cluster, measured, i, strategy, size) for i, strategy in enumerate(chosen)),
        gpu=measured.gpu,
    )


def _strategies(given: Sequence[Strategy] | None) -> list[Strategy]:
    found = [AllReduce(), GradientSharing(), ParameterAveraging(), DiLoCo()] if given is None else list(given)
    if not found or not all(isinstance(strategy, Strategy) for strategy in found):
        text = f"strategies: expected at least one Strategy, received {given!r}"
        raise OptionError(text, hint="for example strategies=[AllReduce(), GradientSharing()]")
    return found


def _settled(measured: Measured, strategies: Sequence[Strategy]) -> Measured:
    """The same work, measured once with each strategy, took the least of these times: the rest was the machine's."""
    stepping = [strategy.shares == "updates" for strategy in strategies]
    pairs = list(zip(measured.together, stepping, strict=True))
    with_step = min([measured.alone_seconds, *(found.compute for found, steps in pairs if steps)])
    without = min([found.compute for found, steps in pairs if not steps], default=with_step)
    return replace(
        measured,
        alone_seconds=with_step,
        together=tuple(replace(found, compute=with_step if steps else without) for found, steps in pairs),
    )


def _on(
    cluster: Cluster, measured: Measured, number: int, strategy: Strategy, batch_size: int
) -> StrategyPlan:
    """What a strategy would do on a cluster."""
    found, slower = measured.together[number], cluster.sharing
    network = cluster.seconds(found.rounds)
    own = slower * (found.encode + found.apply + found.other)
    compute, exchange = slower * found.compute * strategy.every, network + slower * found.swap
    agreement = own + (max(compute, exchange) if strategy.staleness else compute + exchange)
    step = agreement / strategy.every
    each = batch_size / step
    return StrategyPlan(
        name=name_of(strategy),
        every=strategy.every,
        staleness=strategy.staleness,
        measured=found,
        network_seconds=network,
        step_seconds=step,
        rows_per_second=cluster.workers * each,
        speedup=cluster.workers * each / (batch_size / measured.alone_seconds),
        worker_mib=_mib(found.peak_bytes + _FEEDING_BYTES),
    )


def name_of(strategy: Strategy) -> str:
    """Its class, with what says how often it agrees."""
    said = [f"every={strategy.every}"] if strategy.every != 1 else []
    said += [f"staleness={strategy.staleness}"] if strategy.staleness else []
    return f"{type(strategy).__name__}({', '.join(said)})"


def _mib(octets: int) -> int:
    return -(-octets // (1 << 20))
