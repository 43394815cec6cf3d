"""The tasks of `steps_to_loss.py`: a network, its minibatches, and rows held out.

Nothing is downloaded: characters are those of Python's own library sources, digits those of Fatwood's demo. A minibatch
is a function of seed, step and worker alone, so all methods learn from the same rows in the same order.
"""

from __future__ import annotations

import sysconfig
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fatwood.demo.digits import arrays

Rows = tuple[Tensor, Tensor]
"""Inputs and targets of a minibatch."""

TEXT_CHARACTERS = 3_000_000
HELD_OUT_CHARACTERS = 200_000
LENGTH = 64
"""Characters of a row."""


class Task(ABC):
    """What is learned."""

    steps: int
    """Tuned dense training sets the loss to reach at this step."""
    adam: bool
    """Adam, else SGD with momentum 0.9."""
    rate: float
    """The learning rate that the grid multiplies."""

    @abstractmethod
    def network(self, seed: int) -> nn.Module:
        """A fresh one; the same for equal seeds."""

    @abstractmethod
    def rows(self, seed: int, step: int, worker: int) -> Rows:
        """One worker's minibatch."""

    @abstractmethod
    def held_out(self) -> Rows:
        """Rows that are never trained."""

    def loss(self, network: nn.Module, rows: Rows) -> Tensor:
        """Mean cross-entropy of some rows."""
        inputs, targets = rows
        return functional.cross_entropy(network(inputs).flatten(0, -2), targets.flatten())

    def optimizer(self, network: nn.Module, rate: float) -> torch.optim.Optimizer:
        """A worker's own."""
        if self.adam:
            return torch.optim.Adam(network.parameters(), lr=rate)
        return torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(numbers))


def _library_text() -> tuple[Tensor, int]:
    """Characters of Python's own sources as classes ``(n,)`` int64, and how many classes there are."""
    read, size = [], 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        read.append(file.read_text(encoding="utf-8", errors="ignore"))
        size += len(read[-1])
        if size > TEXT_CHARACTERS:
            break
    characters = np.frombuffer("".join(read).encode("ascii", "ignore"), np.uint8)
    used, classes = np.unique(characters, return_inverse=True)
    return torch.from_numpy(classes.astype(np.int64)), len(used)


class _Characters(Task):
    """The next character, for 8 rows of 64 characters a worker."""

    adam = True

    def __init__(self) -> None:
        text, self.classes = _library_text()
        self._train, self._held_out = text[:-HELD_OUT_CHARACTERS], text[-HELD_OUT_CHARACTERS:]

    def rows(self, seed: int, step: int, worker: int) -> Rows:
        """See :meth:`Task.rows`."""
        return self._cut(self._train, 8, _generator(seed, step, worker))

    def held_out(self) -> Rows:
        """See :meth:`Task.held_out`: 32 rows."""
        return self._cut(self._held_out, 32, _generator(12345))

    @staticmethod
    def _cut(text: Tensor, count: int, generator: np.random.Generator) -> Rows:
        starts = torch.from_numpy(generator.integers(0, len(text) - LENGTH - 1, count))
        windows = text[starts[:, None] + torch.arange(LENGTH + 1)]
        return windows[:, :-1], windows[:, 1:]


class TransformerTask(_Characters):
    """A decoder of 0.63 M parameters early in training: the hard case."""

    steps, rate = 200, 1e-3

    def network(self, seed: int) -> nn.Module:
        """See :meth:`Task.network`."""
        torch.manual_seed(seed)
        return Transformer(self.classes)


class LSTMTask(_Characters):
    """One LSTM layer of 256, 0.36 M parameters."""

    steps, rate = 300, 4e-3

    def network(self, seed: int) -> nn.Module:
        """See :meth:`Task.network`."""
        torch.manual_seed(seed)
        return CharacterLSTM(self.classes)


class CNNTask(Task):
    """Handwritten digits, 16 a worker, two convolutions, 0.16 M parameters, SGD with momentum."""

    steps, adam, rate = 300, False, 0.02

    def __init__(self) -> None:
        self._train, self._test = (self._read(part) for part in ("train", "t10k"))

    def network(self, seed: int) -> nn.Module:
        """See :meth:`Task.network`."""
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 49, 96), nn.ReLU(), nn.Linear(96, 10)),
        )

    def rows(self, seed: int, step: int, worker: int) -> Rows:
        """See :meth:`Task.rows`."""
        images, digits = self._train
        chosen = torch.from_numpy(_generator(seed, step, worker).integers(0, len(digits), 16))
        return images[chosen], digits[chosen]

    def held_out(self) -> Rows:
        """See :meth:`Task.held_out`: 600 digits."""
        return self._test[0][:600], self._test[1][:600]

    @staticmethod
    def _read(part: str) -> Rows:
        images, digits = arrays("train" if part == "train" else "t10k")
        return torch.from_numpy(images.astype(np.float32) / 255).view(-1, 1, 28, 28), torch.from_numpy(
            digits.astype(np.int64)
        )


TASKS: dict[str, type[Task]] = {"cnn": CNNTask, "lstm": LSTMTask, "transformer": TransformerTask}


class CharacterLSTM(nn.Module):
    """Scores ``(B, T, classes)`` of the next character."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 64)
        self.lstm = nn.LSTM(64, 256, batch_first=True)
        self.output = nn.Linear(256, classes)

    def forward(self, characters: Tensor) -> Tensor:
        """``(B, T)`` classes."""
        scores: Tensor = self.output(self.lstm(self.embedding(characters))[0])
        return scores


class Transformer(nn.Module):
    """Scores ``(B, T, classes)`` of the next character: three pre-norm layers of width 128 with four heads."""

    def __init__(self, classes: int, width: int = 128) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(classes, width), nn.Embedding(LENGTH, width)
        for table in (self.embedding, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.layers = nn.Sequential(*(Layer(width, heads=4) for _ in range(3)))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, characters: Tensor) -> Tensor:
        """``(B, T)`` classes, T of 64."""
        scores: Tensor = self.output(self.norm(self.layers(self.embedding(characters) + self.places.weight)))
        return scores


class Layer(nn.Module):
    """Causal attention and a feed-forward of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, width)`` to the same shape."""
        rows, length, width = x.shape
        mixed = self.mix(self.before_attention(x)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.merge(attended.transpose(1, 2).reshape(rows, length, width))
        fed: Tensor = x + self.feed(self.before_feed(x))
        return fed
