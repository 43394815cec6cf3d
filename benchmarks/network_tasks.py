"""The tasks of `network.py`: networks of the size at which links matter, and the rows of every step.

All methods train the same rows in the same order: step ``s`` of worker ``r`` of ``W`` has the ``B`` rows from ``(s * W + r) * B`` on
of an endless series of permutations. One process alone has ``W = 1`` and the rows of all workers together, so ``W * B`` of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from steps_tasks import HELD_OUT_CHARACTERS, LENGTH, Transformer, _library_text
from torch import Tensor, nn
from torch.nn import functional

from fatwood.demo.digits import arrays

__all__ = ["TASKS", "Task", "stream"]

Array = NDArray[np.generic]


def stream(total: int, seed: int, first: int, count: int) -> NDArray[np.int64]:
    """Rows ``first`` to ``first + count`` of the series of permutations of ``total`` rows."""
    rounds = range(first // total, (first + count - 1) // total + 1)
    series = np.concatenate(
        [
            np.random.default_rng(np.random.SeedSequence((seed, number))).permutation(total)
            for number in rounds
        ]
    )
    start = first - rounds[0] * total
    return series[start : start + count]


class Task(ABC):
    """What is learned."""

    target: float
    """Quality to reach, as a mean of three looks at rows that are held out."""
    adam = False
    """Adam, else SGD with momentum 0.9."""
    batch_size = 32
    """Rows of a minibatch of one of four workers."""
    steps: int
    """After which a method that has not reached the quality is given up."""
    rows_total: int
    """Rows that there are to train."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels without its rows: each process reads them itself."""
        return type(self), (self.folder,)

    @abstractmethod
    def network(self, seed: int) -> nn.Module:
        """A fresh one; the same for equal seeds."""

    @abstractmethod
    def columns(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs and labels of training rows, as a DataFrame has them: ``(B, k)`` and ``(B,)`` or ``(B, k)``."""

    @abstractmethod
    def held_out(self, count: int) -> tuple[Array, Array]:
        """The first rows of those that are never trained, in the same form."""

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(scores.flatten(0, -2), labels.flatten())

    def quality(self, scores: Tensor, labels: Tensor) -> float:
        """What is wrong on average: the loss, or the share of wrong answers."""
        return float(self.loss(scores, labels))

    def optimizer(self, parameters: object, rate: float) -> torch.optim.Optimizer:
        """A worker's own."""
        if self.adam:
            return torch.optim.Adam(parameters, lr=rate)  # type: ignore[arg-type]
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9)  # type: ignore[arg-type]

    def rows(self, seed: int, step: int, rank: int, workers: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """A minibatch, ready for the network."""
        first = (step * workers + rank) * batch_size
        inputs, labels = self.columns(stream(self.rows_total, seed, first, batch_size))
        return torch.from_numpy(inputs), torch.from_numpy(labels)


@lru_cache(maxsize=4)
def _digits(part: str, folder: Path | None) -> tuple[Array, Array]:
    images, digits = arrays(part, folder)  # type: ignore[arg-type]
    return images, digits.astype(np.int64)


class _Digits(Task):
    """MNIST: 60,000 digits to train with ``--mnist``, else the demo's 12,000. Inputs ``(B, 784)`` float32 in [0, 1]."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder)
        self.rows_total = len(_digits("train", folder)[1])

    def columns(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        """See :meth:`Task.columns`."""
        return self._of("train", rows)

    def held_out(self, count: int) -> tuple[Array, Array]:
        """See :meth:`Task.held_out`; at most 10,000."""
        return self._of("t10k", np.arange(min(count, len(_digits("t10k", self.folder)[1]))))

    def quality(self, scores: Tensor, labels: Tensor) -> float:
        """See :meth:`Task.quality`: wrong answers. Losses of early running statistics are wild."""
        return float((scores.argmax(-1) != labels).double().mean())

    def _of(self, part: str, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        images, digits = _digits(part, self.folder)
        return images[rows].reshape(len(rows), 784).astype(np.float32) / np.float32(255), digits[rows]


class ResNetTask(_Digits):
    """A ResNet-18 with its usual stem, for one channel and ten classes: 11.17 M parameters, little computing on 28 x 28."""

    target, steps = 0.05, 240

    def network(self, seed: int) -> nn.Module:
        """See :meth:`Task.network`."""
        torch.manual_seed(seed)
        stages = []
        width = 64
        for planes in (64, 128, 256, 512):
            stages += [Block(width, planes), Block(planes, planes)]
            width = planes
        return nn.Sequential(
            *(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)),
            *(nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1), *stages),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)),
        )


class CNNTask(_Digits):
    """Two convolutions and a hidden layer on MNIST, 0.16 M parameters."""

    target, steps = 0.03, 600

    def network(self, seed: int) -> nn.Module:
        """See :meth:`Task.network`."""
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 49, 96), nn.ReLU(), nn.Linear(96, 10)),
        )


class TransformerTask(Task):
    """The next character of Python's own sources: three layers of width 512, 9.6 M parameters, 8 rows of 64 a worker."""

    target, steps, adam, batch_size = 2.3, 300, True, 8

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder)
        text, self.classes = _library_text()
        self._train, self._held_out = text[:-HELD_OUT_CHARACTERS].numpy(), text[-HELD_OUT_CHARACTERS:].numpy()
        self.rows_total = (len(self._train) - 1) // LENGTH

    def network(self, seed: int) -> nn.Module:
        """See :meth:`Task.network`."""
        torch.manual_seed(seed)
        return Transformer(self.classes, width=512)

    def columns(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        """See :meth:`Task.columns`: ``(B, 64)`` classes, and the same one later."""
        return self._cut(self._train, rows)

    def held_out(self, count: int) -> tuple[Array, Array]:
        """See :meth:`Task.held_out`; at most 3,000, evenly from all that is held out."""
        every = (len(self._held_out) - 1) // LENGTH // count
        return self._cut(self._held_out, np.arange(count) * every)

    @staticmethod
    def _cut(text: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[Array, Array]:
        windows = text[rows[:, None] * LENGTH + np.arange(LENGTH + 1)]
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, at half the size where the width changes."""

    def __init__(self, width: int, planes: int) -> None:
        super().__init__()
        stride = 1 if width == planes else 2
        self.inner = nn.Sequential(
            *(nn.Conv2d(width, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes), nn.ReLU()),
            *(nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width, h, w)`` to ``(B, planes, h', w')``."""
        return functional.relu(self.inner(x) + self.shortcut(x))


TASKS: dict[str, type[Task]] = {"resnet": ResNetTask, "cnn": CNNTask, "transformer": TransformerTask}
