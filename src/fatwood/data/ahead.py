"""Minibatches before they are asked for: one, to know whether it is the last, or some, read by a thread meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace

import torch

from fatwood.data.batch import Batch, each, mapped
from fatwood.errors import OptionError

__all__ = ["Lookahead", "Prefetched"]

_PARTS = ("features", "label", "weight", "feature_mask", "label_mask")


class Lookahead(Iterator[Batch]):
    """Minibatches, with the next one read ahead, so that a worker can say with a message that it was its last."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._next: Batch | None = next(batches, None)

    def has_more(self) -> bool:
        """Whether another minibatch will come."""
        return self._next is not None

    def __next__(self) -> Batch:
        if self._next is None:
            raise StopIteration
        current, self._next = self._next, next(self._batches, None)
        return current


class Prefetched(Iterator[Batch]):
    """Minibatches that a thread of its own reads, checks and assembles ahead of the one that asks for them.

    They come in their order and unchanged. What the source raises is raised in place of the minibatch that is missing,
    after all before it. The thread ends with the source, with its first error, or with `close`; it begins to read no
    minibatch for which there is no room, taking it to be as large as the largest until then.

    Args:
        batches: Read by the thread alone, and closed at the end.
        ahead: How many minibatches may wait, at least 1.
        max_bytes: How many bytes of tensors may wait, at least 1; None for any number. A larger minibatch waits alone, and
            one that turns out larger than there is room for stays with the thread, beside those that wait.
        pin: Whether tensors are copied into page-locked memory, from where a GPU fetches them without waiting; does
            nothing where PyTorch sees no CUDA.

    Raises:
        OptionError: A number is less than 1.
    """

    def __init__(
        self, batches: Generator[Batch], ahead: int, *, max_bytes: int | None = None, pin: bool = False
    ) -> None:
        for what, value in (("", ahead), (" of bytes", max_bytes)):
            if value is not None and value < 1:
                message = (
                    f"prefetch{what}: expected at least 1 for a thread that reads ahead, received {value}"
                )
                raise OptionError(message)
        self._batches = batches
        self._ahead = ahead
        self._max_bytes = max_bytes
        self._pin = pin and torch.cuda.is_available()
        self._waiting: deque[tuple[Batch, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._thread = threading.Thread(target=self._read, name="fatwood-prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
            if self._closed:
                message = (
                    "prefetch: expected minibatches of the epoch that is read, received a call after its end"
                )
                raise OptionError(
                    message, hint="one epoch is read at a time; ask for the new one's minibatches"
                )
            if self._waiting:
                batch, nbytes = self._waiting.popleft()
                self._bytes -= nbytes
                self._changed.notify_all()
                return batch
            if self._error is not None:
                raise self._error
            raise StopIteration

    def close(self) -> None:
        """End the thread and drop what waits; later calls change nothing.

        A minibatch that the thread is reading is waited for: nobody else may read the source meanwhile.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._waiting.clear()
        self._error = None

    def _read(self) -> None:
        largest = 0  # bytes of a minibatch until now
        try:
            while self._has_room(largest):
                batch = next(self._batches, None)
                if batch is None:
                    break
                batch = _pinned(batch) if self._pin else batch
                nbytes = _nbytes(batch)
                largest = max(largest, nbytes)
                if not self._has_room(nbytes):
                    break
                with self._changed:
                    self._waiting.append((batch, nbytes))
                    self._bytes += nbytes
                    self._changed.notify_all()
                del batch
        except BaseException as error:  # raised where the minibatch is asked for
            self._error = error
        finally:
            self._batches.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _has_room(self, nbytes: int) -> bool:
        """Wait for room for a minibatch of that size; False when there will be none, since it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(nbytes))
            return not self._closed

    def _fits(self, nbytes: int) -> bool:
        if not self._waiting:
            return True
        fits = self._max_bytes is None or self._bytes + nbytes <= self._max_bytes
        return fits and len(self._waiting) < self._ahead


def _nbytes(batch: Batch) -> int:
    """What the tensors of a minibatch take."""
    return sum(tensor.nbytes for name in _PARTS for _, tensor in each(getattr(batch, name)))


def _pinned(batch: Batch) -> Batch:
    return replace(batch, **{name: mapped(torch.Tensor.pin_memory, getattr(batch, name)) for name in _PARTS})
