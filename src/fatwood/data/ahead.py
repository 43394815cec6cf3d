"""Minibatches before they are asked for: one, to know whether it is the last, or some, read by a thread meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator

from fatwood.data.batch import Batch
from fatwood.errors import OptionError

__all__ = ["Lookahead", "Prefetched"]


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
    minibatch for which there is no room.

    Args:
        batches: Read by the thread alone, and closed at the end.
        ahead: How many minibatches may wait, at least 1.
    """

    def __init__(self, batches: Generator[Batch], ahead: int) -> None:
        if ahead < 1:
            message = f"prefetch: expected at least 1 for a thread that reads ahead, received {ahead}"
            raise OptionError(message)
        self._batches = batches
        self._ahead = ahead
        self._waiting: deque[Batch] = deque()
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
                self._changed.notify_all()
                return self._waiting.popleft()
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
        try:
            while self._has_room():
                batch = next(self._batches, None)
                with self._changed:
                    if batch is None or self._closed:
                        break
                    self._waiting.append(batch)
                    self._changed.notify_all()
                del batch
        except BaseException as error:  # raised where the minibatch is asked for
            self._error = error
        finally:
            self._batches.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._ahead)
            return not self._closed
