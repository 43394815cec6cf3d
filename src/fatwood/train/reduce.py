"""How one vector per worker becomes the same mean on all workers: the codec and the exchange, joined.

A :class:`Reducer` is used in three moves:

1. :meth:`Reducer.prepare` makes this worker's message of its header and vector;
2. :meth:`Reducer.play` exchanges messages and returns the outcome's parts; it may be called again with another
   exchange and changes nothing here;
3. :meth:`Reducer.add_mean` adds the weighted mean of all workers' vectors, as the outcome has it, to a target.

All do the same arithmetic in the same order on every worker, so equal targets stay bitwise equal; and the outcome is
bytes, so a worker that missed it can be given it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import EncodingRecord, ThresholdEncoder, apply_messages
from fatwood.exchange import Buffer, Exchange, Outcome
from fatwood.train.header import HEADER_BYTES, Header, join, split

__all__ = ["DenseReducer", "Reducer", "ThresholdReducer", "headers_of"]

Vector = NDArray[np.float32]


def headers_of(outcome: Outcome) -> list[Header]:
    """The headers of an agreement, in the order of its ranks."""
    return [split(rank, part)[0] for rank, part in zip(outcome.ranks, outcome.parts, strict=False)]


class Reducer(ABC):
    """One worker's half of a reduction; holds what must survive between steps (a residual)."""

    @abstractmethod
    def prepare(self, step: int, header: Header, vector: Vector) -> None:
        """Make the message of a step.

        Args:
            step: Counted from 0 over the model's life.
            header: A worker whose ``rows`` is 0 has weight 0: what it holds back stays in its residual.
            vector: ``(n,)``, not changed before the step's :meth:`add_mean`.

        Raises:
            NotFiniteError: The vector has a NaN or an infinity; nothing of it was sent.
        """

    @abstractmethod
    def play(self, exchange: Exchange, step: int) -> Sequence[Buffer]:
        """Send the prepared message; return the parts of the outcome, first every worker's header (and payload)."""

    @abstractmethod
    def add_mean(self, step: int, outcome: Outcome, headers: Sequence[Header], target: Vector) -> None:
        """Add the mean of all workers' vectors, weighted by ``rows``, to ``target`` of shape ``(n,)`` in place."""

    @abstractmethod
    def message_bytes(self, size: int) -> int:
        """Bytes of the prepared message, of ``size`` parameters; it goes to each peer."""

    @abstractmethod
    def take_records(self) -> list[EncodingRecord]:
        """What was measured of this worker's messages since the last call, in order; the caller keeps it."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What must survive this fit: nested dicts of scalars and arrays."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that :meth:`state` gave."""

    @abstractmethod
    def common_state(self) -> dict[str, Any]:
        """What of the state is of use to a worker that takes over another rank: all but the residual."""

    @abstractmethod
    def load_common_state(self, state: Mapping[str, Any]) -> None:
        """Take up what another worker's :meth:`common_state` gave, with nothing held back."""


class DenseReducer(Reducer):
    """Sends every value as float32: a reduce-scatter and an all-gather, after the headers.

    The outcome's parts are the headers and, if any row was trained, the mean.
    """

    def __init__(self) -> None:
        self._vector: Vector = np.zeros(0, np.float32)
        self._message = b""
        self._rows = 0

    def prepare(self, step: int, header: Header, vector: Vector) -> None:
        """See :meth:`Reducer.prepare`; whoever owns the vector looks for NaNs."""
        del step
        self._vector, self._message, self._rows = vector, join(header, b""), header.rows

    def play(self, exchange: Exchange, step: int) -> Sequence[Buffer]:
        """See :meth:`Reducer.play`."""
        parts: list[Buffer] = list(exchange.gather(step, self._message))
        if any(split(rank, part)[0].rows for rank, part in zip(exchange.ranks, parts, strict=True)):
            mean = exchange.mean(self._vector, float(self._rows))
            parts.append(mean.astype("<f4", copy=False).view(np.uint8).data)
        return parts

    def add_mean(self, step: int, outcome: Outcome, headers: Sequence[Header], target: Vector) -> None:
        """See :meth:`Reducer.add_mean`."""
        del step, headers
        target += np.frombuffer(outcome.parts[-1], "<f4")

    def message_bytes(self, size: int) -> int:
        """Header and four bytes a parameter."""
        return HEADER_BYTES + 4 * size

    def take_records(self) -> list[EncodingRecord]:
        """None: there is no threshold to measure by."""
        return []

    def state(self) -> dict[str, Any]:
        """Nothing is held back."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing is held back."""

    def common_state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_common_state(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class ThresholdReducer(Reducer):
    """Sends signed multiples of a threshold and keeps the rest as a residual (Strom 2015).

    The outcome's parts are every worker's header and message.
    """

    def __init__(self, encoder: ThresholdEncoder) -> None:
        self._encoder = encoder
        self._message = b""
        self._records: list[EncodingRecord] = []

    def prepare(self, step: int, header: Header, vector: Vector) -> None:
        """See :meth:`Reducer.prepare`."""
        self._message = join(header, self._encode(vector, step) if header.rows else b"")

    def play(self, exchange: Exchange, step: int) -> Sequence[Buffer]:
        """See :meth:`Reducer.play`."""
        return exchange.gather(step, self._message)

    def add_mean(self, step: int, outcome: Outcome, headers: Sequence[Header], target: Vector) -> None:
        """See :meth:`Reducer.add_mean`."""
        total = sum(header.rows for header in headers)
        with_rows = [
            (split(rank, part)[1], header.rows / total)
            for rank, part, header in zip(outcome.ranks, outcome.parts, headers, strict=True)
            if header.rows
        ]
        payloads, scales = [payload for payload, _ in with_rows], [scale for _, scale in with_rows]
        apply_messages(payloads, target, scales, step, threads=self._encoder.threads)

    def message_bytes(self, size: int) -> int:
        """Header and encoded payload, as they are."""
        del size
        return len(self._message)

    def take_records(self) -> list[EncodingRecord]:
        """One for every message that was made, with ``encoding_debug``; none for dense steps of a warm-up."""
        records, self._records = self._records, []
        return records

    def state(self) -> dict[str, Any]:
        """Residual and threshold."""
        return {"arrays": self._encoder.state_arrays(), "json": self._encoder.state_json()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up residual and threshold."""
        self._encoder.load_state(state["arrays"], state["json"])

    def common_state(self) -> dict[str, Any]:
        """The threshold."""
        return {"json": self._encoder.state_json()}

    def load_common_state(self, state: Mapping[str, Any]) -> None:
        """Take up the threshold; the residual is zero."""
        self._encoder.load_state({"residual": np.zeros(self._encoder.n, np.float32)}, state["json"])

    def _encode(self, vector: Vector, step: int) -> bytes:
        payload = self._encoder.encode(vector, step)
        if self._encoder.last is not None and self._encoder.last.debug is not None:
            self._records.append(self._encoder.last.debug)
        return payload
