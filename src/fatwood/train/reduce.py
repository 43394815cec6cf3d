"""How one vector per worker becomes the same mean on all workers: the codec and the exchange, joined.

A :class:`Reducer` is used in two moves, so that headers and payloads share one round trip:

1. :meth:`Reducer.send` hands out this worker's header and vector and returns everybody's headers;
2. :meth:`Reducer.add_mean` adds the weighted mean of all workers' vectors to a target.

Both moves do the same arithmetic in the same order on every worker, so equal targets stay bitwise equal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import EncodingRecord, ThresholdEncoder, apply_messages
from fatwood.exchange import Exchange
from fatwood.train.header import HEADER_BYTES, Header, join, split

__all__ = ["DenseReducer", "Reducer", "ThresholdReducer"]

Vector = NDArray[np.float32]


class Reducer(ABC):
    """One worker's half of a reduction; holds what must survive between steps (a residual)."""

    @abstractmethod
    def send(self, exchange: Exchange, step: int, header: Header, vector: Vector) -> list[Header]:
        """Send this worker's header and vector of shape ``(n,)``; return all headers by rank.

        A worker whose ``header.rows`` is 0 has weight 0: what it holds back stays in its residual.
        """

    @abstractmethod
    def add_mean(self, exchange: Exchange, step: int, headers: Sequence[Header], target: Vector) -> None:
        """Add the mean of all workers' vectors, weighted by ``rows``, to ``target`` of shape ``(n,)`` in place."""

    @abstractmethod
    def message_bytes(self, size: int) -> int:
        """Bytes this worker sent to each peer at the last :meth:`send`, of ``size`` parameters."""

    @abstractmethod
    def take_records(self) -> list[EncodingRecord]:
        """What was measured of this worker's messages since the last call, in order; the caller keeps it."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What must survive this fit: nested dicts of scalars and arrays."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that :meth:`state` gave."""


class DenseReducer(Reducer):
    """Sends every value as float32: a reduce-scatter and an all-gather, after the headers."""

    def __init__(self) -> None:
        self._vector: Vector = np.zeros(0, np.float32)

    def send(self, exchange: Exchange, step: int, header: Header, vector: Vector) -> list[Header]:
        """See :meth:`Reducer.send`."""
        self._vector = vector
        return [split(rank, m)[0] for rank, m in enumerate(exchange.gather(step, join(header, b"")))]

    def add_mean(self, exchange: Exchange, step: int, headers: Sequence[Header], target: Vector) -> None:
        """See :meth:`Reducer.add_mean`."""
        del step  # the exchange counts its means itself
        target += exchange.mean(self._vector, float(headers[exchange.rank].rows))

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


class ThresholdReducer(Reducer):
    """Sends signed multiples of a threshold and keeps the rest as a residual (Strom 2015)."""

    def __init__(self, encoder: ThresholdEncoder) -> None:
        self._encoder = encoder
        self._payloads: list[memoryview] = []
        self._records: list[EncodingRecord] = []
        self._sent_bytes = 0

    def send(self, exchange: Exchange, step: int, header: Header, vector: Vector) -> list[Header]:
        """See :meth:`Reducer.send`."""
        payload = self._encode(vector, step) if header.rows else b""
        message = join(header, payload)
        self._sent_bytes = len(message)
        parts = [split(rank, m) for rank, m in enumerate(exchange.gather(step, message))]
        self._payloads = [payload for _, payload in parts]
        return [header for header, _ in parts]

    def add_mean(self, exchange: Exchange, step: int, headers: Sequence[Header], target: Vector) -> None:
        """See :meth:`Reducer.add_mean`."""
        del exchange  # all payloads came with the headers
        total = sum(header.rows for header in headers)
        weighted = [(p, h.rows / total) for h, p in zip(headers, self._payloads, strict=True) if h.rows]
        payloads, scales = [p for p, _ in weighted], [scale for _, scale in weighted]
        apply_messages(payloads, target, scales, step, threads=self._encoder.threads)

    def message_bytes(self, size: int) -> int:
        """Header and encoded payload, as they were."""
        del size
        return self._sent_bytes

    def take_records(self) -> list[EncodingRecord]:
        """One for every message that was sent, with ``encoding_debug``; none for dense steps of a warm-up."""
        records, self._records = self._records, []
        return records

    def state(self) -> dict[str, Any]:
        """Residual and threshold."""
        return {"arrays": self._encoder.state_arrays(), "json": self._encoder.state_json()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up residual and threshold."""
        self._encoder.load_state(state["arrays"], state["json"])

    def _encode(self, vector: Vector, step: int) -> bytes:
        payload = self._encoder.encode(vector, step)
        if self._encoder.last is not None and self._encoder.last.debug is not None:
            self._records.append(self._encoder.last.debug)
        return payload
