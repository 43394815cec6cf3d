"""Methods of `steps_to_loss.py`: four workers in one process, by the library's encoder, messages and outer step.

The arithmetic is that of a job: every worker has a network and an optimizer of its own, messages are encoded and
decoded for real and applied in the order of ranks. Only the exchange is left out. As all replicas are bitwise equal at an
agreement, the agreed parameters are kept once.

Shapes: ``n`` parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from steps_tasks import Task

from fatwood.codec import (
    DensityWarmup,
    FlatParameters,
    TargetSparsityThreshold,
    ThresholdEncoder,
    apply_messages,
)
from fatwood.train.lookahead import LookAhead, Velocity
from fatwood.train.outer import Nesterov

WORKERS = 4
EVERY = 10
"""Steps between two looks at the held-out rows."""
RATE_WARMUP = 20
"""Steps in which the learning rate rises to its constant value."""

Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of training together."""

    density: float | None = 1e-2
    """Share of the parameters in a message, met at every step by the quantile; None sends every value as float32."""
    every: int = 1
    """Minibatches of a worker between two messages."""
    gradients: bool = False
    """Share gradients; every worker's optimizer takes the same step on their mean."""
    ahead: LookAhead | None = None
    """Workers train ahead of the agreed parameters."""
    outer: tuple[float, float] | None = None
    """Learning rate and momentum of the outer Nesterov step."""
    start: tuple[float, int] | None = None
    """A density to begin with, and the steps in which it falls to ``density``."""

    def encoder(self, n: int) -> ThresholdEncoder:
        """A worker's."""
        final = self.density or 1.0
        initial, steps = self.start or (final, 1 << 30)
        warmup = DensityWarmup(steps=steps, initial=initial, final=final)
        rule = TargetSparsityThreshold(initial="quantile", target=min(final, 0.0624))
        return ThresholdEncoder(n, rule, None, warmup=warmup)


METHODS: dict[str, Method] = {
    "dense": Method(density=None, gradients=True),
    "local": Method(density=None),
    "local-ahead": Method(density=None, ahead=LookAhead(residual=0.0, velocity=1.0, momentum=0.8)),
    "sharing": Method(),
    "sharing-own": Method(ahead=LookAhead(residual=1.0, velocity=0.0)),
    "sharing-velocity": Method(ahead=LookAhead(residual=0.0, velocity=4.0, momentum=0.8)),
    "sharing-ahead": Method(ahead=LookAhead(residual=0.5, velocity=4.0, momentum=0.8)),
    "sharing-warmup": Method(density=5e-3, start=(3e-2, 100)),
    "gradients": Method(gradients=True),
    "local8": Method(every=8, density=8e-2),
    "local8-own": Method(every=8, density=8e-2, ahead=LookAhead(residual=1.0, velocity=0.0)),
    "local8-nesterov": Method(every=8, density=8e-2, outer=(0.7, 0.5)),
}


@dataclass(frozen=True)
class Curve:
    """One run."""

    points: list[tuple[int, float]]
    """Steps and held-out loss, every ten steps."""
    bytes_per_minibatch: float
    """Of one worker's messages."""
    parameters: int

    @property
    def share_of_dense(self) -> float:
        """Bytes over those of float32 values."""
        return self.bytes_per_minibatch / (4 * self.parameters)

    def smooth(self) -> list[tuple[int, float]]:
        """Means of three neighbours."""
        losses = [loss for _, loss in self.points]
        triples = zip(losses, losses[1:], losses[2:], strict=False)
        return [(step, sum(three) / 3) for (step, _), three in zip(self.points[1:-1], triples, strict=True)]

    def loss_at(self, step: int) -> float:
        """The smoothed loss at a step, which is a multiple of ten and not the last."""
        return dict(self.smooth())[step]

    def steps_to(self, loss: float) -> float | None:
        """Where the smoothed loss first falls to a value, between two points by a straight line; None if it never does."""
        smooth = self.smooth()
        for (before, high), (after, low) in itertools.pairwise(smooth):
            if low <= loss:
                return before + (after - before) * max(0.0, high - loss) / max(high - low, 1e-12)
        return None


class _Worker:
    """A network, its optimizer and its encoder."""

    def __init__(self, task: Task, method: Method, seed: int, rate: float) -> None:
        self.task, self.rate = task, rate
        self.network = task.network(seed)
        self.flat = FlatParameters(self.network)
        self.optimizer = task.optimizer(self.network, rate)
        self.encoder = None if method.density is None else method.encoder(self.flat.size)
        self.begin = self.flat.array.copy()

    def gradient(self, seed: int, step: int, rank: int) -> None:
        """Backward of this worker's minibatch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.task.loss(self.network, self.task.rows(seed, step, rank)).backward()  # type: ignore[no-untyped-call]

    def descend(self, step: int) -> None:
        """One step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (step + 1) / RATE_WARMUP)
        self.optimizer.step()

    def residual(self) -> Vector:
        """What was not sent yet."""
        return np.zeros_like(self.begin) if self.encoder is None else np.asarray(self.encoder.residual)


class _Agreement:
    """Messages in, mean out; counts bytes."""

    def __init__(self, n: int) -> None:
        self.n, self.number, self.bytes = n, 0, 0

    def mean(self, workers: list[_Worker], vectors: list[Vector]) -> Vector:
        """``(n,)``: of what the workers' messages say."""
        mean = np.zeros(self.n, np.float32)
        scales = [1.0 / len(vectors)] * len(vectors)
        if workers[0].encoder is None:
            for vector, scale in zip(vectors, scales, strict=True):
                mean += np.float32(scale) * vector
            self.bytes += 4 * self.n * len(vectors)
        else:
            messages = [
                w.encoder.encode(v, self.number)
                for w, v in zip(workers, vectors, strict=True)
                if w.encoder is not None
            ]
            apply_messages(messages, mean, scales, self.number)
            self.bytes += sum(map(len, messages))
        self.number += 1
        return mean


def run(
    task: Task, method: Method, *, rate: float, seed: int, steps: int, target: float | None = None
) -> Curve:
    """Train until the smoothed loss is below ``target``, at most ``steps`` steps of every worker."""
    workers = [_Worker(task, method, seed, rate) for _ in range(WORKERS)]
    agreed = workers[0].flat.array.copy()
    exchange, held_out = _Agreement(agreed.size), task.held_out()
    advance = _gradient_steps(method) if method.gradients else _update_steps(method, agreed.size)
    points: list[tuple[int, float]] = []
    for step in range(steps):
        advance(workers, exchange, agreed, seed, step)
        if (step + 1) % EVERY:
            continue
        points.append((step + 1, _loss_of(task, workers[0], agreed, held_out)))
        curve = Curve(points, exchange.bytes / WORKERS / (step + 1), agreed.size)
        reached = target is not None and curve.steps_to(target) is not None
        if reached or not points[-1][1] < 20.0:
            break
    return curve


Advance = Callable[[list[_Worker], _Agreement, Vector, int, int], None]


def _gradient_steps(method: Method) -> Advance:
    """All workers are one: the same parameters and the same optimizer step."""
    del method

    def advance(workers: list[_Worker], exchange: _Agreement, agreed: Vector, seed: int, step: int) -> None:
        leader, gradients = workers[0], []
        for rank in range(len(workers)):
            leader.gradient(seed, step, rank)
            gradients.append(leader.flat.gradient().copy())
        leader.flat.set_gradient(exchange.mean(workers, gradients))
        leader.descend(step)
        np.copyto(agreed, leader.flat.array)

    return advance


def _update_steps(method: Method, n: int) -> Advance:
    """Every worker steps by itself; updates are agreed on every ``every`` steps."""
    outer = None if method.outer is None else Nesterov(n, *method.outer)
    velocities = [] if method.ahead is None else [Velocity(method.ahead, n) for _ in range(WORKERS)]

    def advance(workers: list[_Worker], exchange: _Agreement, agreed: Vector, seed: int, step: int) -> None:
        for rank, worker in enumerate(workers):
            worker.gradient(seed, step, rank)
            worker.descend(step)
        if (step + 1) % method.every:
            return
        mean = exchange.mean(workers, [w.flat.array - w.begin for w in workers])
        for velocity in velocities:
            velocity.decay()
            velocity.array += mean
        if outer is None:
            agreed += mean
        else:
            outer.apply(agreed, mean)
        for worker, velocity in itertools.zip_longest(workers, velocities):
            np.copyto(worker.flat.array, agreed)
            if velocity is not None:
                velocity.go_ahead(agreed, worker.residual(), worker.flat.array)
            np.copyto(worker.begin, worker.flat.array)

    return advance


def _loss_of(
    task: Task, worker: _Worker, agreed: Vector, held_out: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Held-out loss of the agreed parameters."""
    kept = worker.flat.array.copy()
    np.copyto(worker.flat.array, agreed)
    worker.network.eval()
    with torch.inference_mode():
        loss = float(task.loss(worker.network, held_out))
    worker.network.train()
    np.copyto(worker.flat.array, kept)
    return loss if math.isfinite(loss) else math.inf
