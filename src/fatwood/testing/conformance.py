"""What every strategy must do: train four kinds of networks as one process would, with replicas bitwise equal.

A new strategy is taken in by one line::

    @pytest.mark.parametrize("workers", [1, 2, 3])
    @pytest.mark.parametrize("task", TASKS, ids=str)
    def test_my_strategy(task, workers):
        check_strategy(MyStrategy(), task, workers, least_progress=0.9)

The workers are threads, and the minibatches of all workers together have as many rows as those of the one process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fatwood.data import Batch, Layout
from fatwood.testing.threads import Outcome, shard, train_in_threads, training_job
from fatwood.train import Strategy

__all__ = ["TASKS", "Task", "check_strategy", "mean_loss"]

GLOBAL_BATCH = 24
_ROWS = 192
_LETTERS = 12


@dataclass(frozen=True, kw_only=True)
class Task:
    """Rows, a network, and how one process trains it."""

    name: str
    network: Callable[[], nn.Module]
    features: NDArray[Any] = field(repr=False)
    """``(rows, width)`` float32 or int64"""
    labels: NDArray[np.int64] | None = field(repr=False)
    """``(rows,)``, or None where the loss needs none."""
    loss: Any
    optimizer: Callable[[Any], torch.optim.Optimizer]
    epochs: int

    def __str__(self) -> str:
        return self.name

    @property
    def layout(self) -> Layout:
        """Of the rows."""
        of_label: dict[str, Any] = {} if self.labels is None else {"label_dtype": "int64", "label_name": "y"}
        kind: Any = str(self.features.dtype)
        return Layout.of(
            feature_width=self.features.shape[1], feature_dtype=kind, feature_name="x", **of_label
        )


class _Cnn(nn.Sequential):
    """With batch norm, on 8 x 8 images."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Flatten(),
            nn.Linear(32, 4),
        )


class _Lstm(nn.Module):
    """A language model: ``(B, T)`` letters to ``(B, T, letters)``."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__()
        self.embedding = nn.Embedding(_LETTERS, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, _LETTERS)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        """Of the letter after each."""
        output: torch.Tensor = self.head(self.lstm(self.embedding(letters))[0])
        return output


class _Transformer(nn.Module):
    """A decoder of one layer: ``(B, T)`` letters to ``(B, T, letters)``; embedding and head share their weight."""

    def __init__(self) -> None:
        torch.manual_seed(4)
        super().__init__()
        self.embedding = nn.Embedding(_LETTERS, 16)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.position = nn.Parameter(0.1 * torch.randn(16, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, _LETTERS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        """Of the letter after each."""
        length = letters.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.embedding(letters) + self.position[:length]
        output: torch.Tensor = self.head(self.layer(hidden, src_mask=mask, is_causal=True))
        return output


def _mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 4))


def next_letter(network: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of a language model: every letter after the first, from those before it."""
    letters: Any = batch.features
    output = network(letters[:, :-1])
    return nn.functional.cross_entropy(output.flatten(0, 1), letters[:, 1:].flatten())


def _images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Four classes: which quarter of an 8 x 8 image is bright."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, _ROWS)
    images = generator.standard_normal((_ROWS, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[top : top + 4, left : left + 4] += 1.0
    return images.reshape(_ROWS, 64), labels.astype(np.int64)


def _sentences() -> NDArray[np.int64]:
    """Letters that mostly step by two or three, ``(rows, 13)``."""
    generator = np.random.default_rng(1)
    steps = generator.choice([2, 3, 7], p=[0.6, 0.35, 0.05], size=(_ROWS, 13))
    return (np.cumsum(steps, axis=1) % _LETTERS).astype(np.int64)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def _tasks() -> list[Task]:
    pixels, quarters = _images()
    of_images: dict[str, Any] = {
        "features": pixels,
        "labels": quarters,
        "loss": nn.CrossEntropyLoss(),
        "optimizer": _sgd,
        "epochs": 5,
    }
    of_letters: dict[str, Any] = {
        "features": _sentences(),
        "labels": None,
        "loss": next_letter,
        "optimizer": _adam,
        "epochs": 6,
    }
    return [
        Task(name="mlp", network=_mlp, **of_images),
        Task(name="cnn", network=_Cnn, **of_images),
        Task(name="lstm", network=_Lstm, **of_letters),
        Task(name="transformer", network=_Transformer, **of_letters),
    ]


TASKS = _tasks()


def check_strategy(
    strategy: Strategy, task: Task, workers: int, *, least_progress: float, **options: Any
) -> list[Outcome]:
    """Train with a strategy, and compare with one process.

    Args:
        strategy: To be checked.
        task: What to train.
        workers: As threads; the minibatches of all of them have 24 rows together.
        least_progress: Of the loss that one process takes away, so much must be taken away at least.
        options: Of the job.

    Returns:
        The workers' outcomes.
    """
    job = training_job(
        network=task.network(),
        loss=task.loss,
        optimizer=task.optimizer,
        strategy=strategy,
        batch_size=GLOBAL_BATCH // workers,
        epochs=task.epochs,
        **options,
    )
    shards = [shard(task.features, task.labels, np.arange(rank, _ROWS, workers)) for rank in range(workers)]
    outcomes = train_in_threads(job, shards, task.layout)
    rows = [sum(o.stats.rows_trained for o in outcomes)]
    assert rows == [_ROWS * task.epochs], f"{rows} rows were trained"
    assert len({o.stats.digest for o in outcomes}) == 1, "replicas differ"
    before, single = _alone(task.name)
    found = mean_loss(task, outcomes[0].network)
    progress = (before - found) / (before - single)
    text = f"{task} with {workers} workers: from {before:.4f} to {found:.4f}, one process to {single:.4f}"
    assert progress >= least_progress, f"{text}: {progress:.3f} of its progress"
    return outcomes


def mean_loss(task: Task, network: nn.Module) -> float:
    """On all rows, in evaluation mode."""
    network.eval()
    with torch.no_grad():
        return float(_loss(task, network, np.arange(_ROWS)))


@cache
def _alone(name: str) -> tuple[float, float]:
    """The loss before and after one process has trained."""
    task = next(task for task in TASKS if task.name == name)
    network = task.network()
    before = mean_loss(task, copy.deepcopy(network))
    optimizer, generator = task.optimizer(network.parameters()), np.random.default_rng(0)
    network.train()
    for _ in range(task.epochs):
        order = generator.permutation(_ROWS)
        for start in range(0, _ROWS, GLOBAL_BATCH):
            optimizer.zero_grad()
            _loss(task, network, order[start : start + GLOBAL_BATCH]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return before, mean_loss(task, network)


def _loss(task: Task, network: nn.Module, rows: NDArray[np.int64]) -> torch.Tensor:
    features = torch.from_numpy(task.features[rows])
    if task.labels is None:
        return next_letter(network, Batch(features, None, rows))
    loss: torch.Tensor = task.loss(network(features), torch.from_numpy(task.labels[rows]))
    return loss
