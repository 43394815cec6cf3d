"""How one vector per worker becomes the same mean on all workers: the codec and the exchange, joined.

A :class:`Reducer` is used in three moves:

1. :meth:`Reducer.prepare` makes this worker's message of its header and vector;
2. :meth:`Reducer.play` exchanges messages and returns the outcome's parts; it may be called again with another
   exchange and changes nothing here;
3. :meth:`Reducer.add_reduced` adds the weighted mean of all workers' vectors (or their sum), as the outcome has it, to
   a target.

All do the same arithmetic in the same order on every worker, so equal targets stay bitwise equal; and the outcome is
bytes, so a worker that missed it can be given it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import EncodingRecord, ThresholdEncoder, apply_messages, require_finite
from fatwood.codec.vectors import Update, Vector, add, computed, host
from fatwood.exchange import Buffer, Exchange, Outcome
from fatwood.train.header import HEADER_BYTES, Header, join, split

__all__ = ["DenseReducer", "Reducer", "Reduction", "Sparsity", "ThresholdReducer", "headers_of"]

Reduction = Literal["mean", "sum"]
"""``"mean"`` weighs workers by their rows; ``"sum"`` adds what they send, so that the learning rate grows with their
number (Deeplearning4j's way)."""


class Sparsity(NamedTuple):
    """How sparse a worker's last message was."""

    tau: float
    density: float
    """Share of the parameters that was sent."""


def headers_of(outcome: Outcome) -> list[Header]:
    """The headers of an agreement, in the order of its ranks."""
    return [split(rank, part)[0] for rank, part in zip(outcome.ranks, outcome.parts, strict=False)]


class Reducer(ABC):
    """One worker's half of a reduction; holds what must survive between steps (a residual)."""

    reads_once = False
    """Whether :meth:`prepare` is the last to read the vector, in one pass, so that a difference need not be computed."""

    @abstractmethod
    def prepare(self, step: int, header: Header, vector: Update) -> None:
        """Make the message of a step.

        Args:
            step: Counted from 0 over the model's life.
            header: A worker whose ``share`` is 0 has weight 0: what it holds back stays in its residual.
            vector: ``(n,)``, not changed before the step's :meth:`add_reduced`, with ``reads_once`` before this returns.

        Raises:
            NotFiniteError: The vector has a NaN or an infinity; nothing of it was sent.
        """

    @abstractmethod
    def play(self, exchange: Exchange, step: int) -> Sequence[Buffer]:
        """Send the prepared message; return the parts of the outcome, first every worker's header (and payload)."""

    @abstractmethod
    def add_reduced(self, step: int, outcome: Outcome, headers: Sequence[Header], *targets: Vector) -> None:
        """Add the mean of all workers' vectors, weighted by ``share``, to each target of shape ``(n,)`` in place.

        With the reduction ``"sum"`` it is the sum of the vectors whose share is not 0.
        """

    @abstractmethod
    def message_bytes(self, size: int) -> int:
        """Bytes of the prepared message, of ``size`` parameters; it goes to each peer."""

    @property
    def sparsity(self) -> Sparsity | None:
        """Of the last message; None where every value was sent."""
        return None

    @property
    def residual(self) -> Vector | None:
        """``(n,)`` what was not sent yet, where it lies; None where nothing is held back."""
        return None

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
        self._vector: NDArray[np.float32] = np.zeros(0, np.float32)
        self._message = b""
        self._share = 0.0

    def prepare(self, step: int, header: Header, vector: Update) -> None:
        """See :meth:`Reducer.prepare`."""
        del step
        vector = computed(vector)
        if header.share:
            require_finite(vector)
        self._vector, self._message, self._share = host(vector), join(header, b""), header.share

    def play(self, exchange: Exchange, step: int) -> Sequence[Buffer]:
        """See :meth:`Reducer.play`."""
        parts: list[Buffer] = list(exchange.gather(step, self._message))
        if any(split(rank, part)[0].share for rank, part in zip(exchange.ranks, parts, strict=True)):
            mean = exchange.mean(self._vector, self._share)
            parts.append(mean.astype("<f4", copy=False).view(np.uint8).data)
        return parts

    def add_reduced(self, step: int, outcome: Outcome, headers: Sequence[Header], *targets: Vector) -> None:
        """See :meth:`Reducer.add_reduced`."""
        del step, headers
        for target in targets:
            add(target, np.frombuffer(outcome.parts[-1], "<f4"))

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

    reads_once = True

    def __init__(self, encoder: ThresholdEncoder, reduction: Reduction = "mean") -> None:
        self._encoder = encoder
        self._reduction = reduction
        self._message = b""
        self._records: list[EncodingRecord] = []

    def prepare(self, step: int, header: Header, vector: Update) -> None:
        """See :meth:`Reducer.prepare`."""
        self._message = join(header, self._encode(vector, step) if header.share else b"")

    def play(self, exchange: Exchange, step: int) -> Sequence[Buffer]:
        """See :meth:`Reducer.play`."""
        return exchange.gather(step, self._message)

    def add_reduced(self, step: int, outcome: Outcome, headers: Sequence[Header], *targets: Vector) -> None:
        """See :meth:`Reducer.add_reduced`."""
        first, *others = targets
        sent = [(part, h) for part, h in zip(outcome.parts, headers, strict=True) if h.share]
        total = sum(header.share for _, header in sent)
        payloads = [header.payload_in(part) for part, header in sent]
        scales = [1.0 if self._reduction == "sum" else header.share / total for _, header in sent]
        apply_messages(payloads, first, scales, step, others=others, threads=self._encoder.threads)

    def message_bytes(self, size: int) -> int:
        """Header and encoded payload, as they are."""
        del size
        return len(self._message)

    @property
    def residual(self) -> Vector | None:
        """See :attr:`Reducer.residual`."""
        return self._encoder.residual

    @property
    def sparsity(self) -> Sparsity | None:
        """See :attr:`Reducer.sparsity`."""
        last = self._encoder.last
        return None if last is None or not last.tau else Sparsity(last.tau, last.count / self._encoder.n)

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

    def _encode(self, vector: Update, step: int) -> bytes:
        payload = self._encoder.encode(vector, step)
        if self._encoder.last is not None and self._encoder.last.debug is not None:
            self._records.append(self._encoder.last.debug)
        return payload
