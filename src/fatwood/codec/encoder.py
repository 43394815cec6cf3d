"""One worker's side of threshold encoding: the residual, the threshold's state, and messages out and in.

Strom 2015's scheme, as Deeplearning4j's ``EncodingHandler`` runs it, with its defects left out: nothing is lost when
the coder changes, positive and negative changes are treated alike, and residual and threshold survive saving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import kernel, message
from fatwood.codec.residual import ResidualClipping
from fatwood.codec.threshold import Sent, Threshold, ThresholdState
from fatwood.errors import OptionError

__all__ = ["Encoded", "ThresholdEncoder", "apply_message"]


@dataclass(frozen=True)
class Encoded:
    """Figures of one encoded message."""

    tau: float  # as sent: exactly a float32
    count: int  # elements sent
    bytes: int  # length of the message
    clipped_mass: float  # sum of the absolute values that residual clipping threw away


class ThresholdEncoder:
    """Turns updates into messages and keeps what was not sent.

    Always: ``delta + residual before = decoded + residual after (+ clipped)``, up to the float32 rounding of one
    addition and, for values above two tau, of one subtraction (`kernel.extract` says when that one is exact).

    >>> from fatwood.codec.threshold import FixedThreshold
    >>> encoder = ThresholdEncoder(4, FixedThreshold(tau=0.5), None)
    >>> sent = encoder.encode(np.array([0.75, -0.5, 0.25, 0.0], np.float32), step=0)
    >>> encoder.residual.tolist(), encoder.last.count
    ([0.25, 0.0, 0.25, 0.0], 2)
    >>> target = np.zeros(4, np.float32)
    >>> apply_message(sent, target, scale=1.0, step=0)
    >>> target.tolist()
    [0.5, -0.5, 0.0, 0.0]

    Args:
        n: How many parameters there are.
        threshold: The rule for tau.
        clipping: The rule for the residual, or None.
    """

    def __init__(self, n: int, threshold: Threshold, clipping: ResidualClipping | None) -> None:
        self.n = n
        self.threshold = threshold
        self.clipping = clipping
        self.residual: NDArray[np.float32] = np.zeros(n, np.float32)
        """(n,) what was not sent yet."""
        self.last: Encoded | None = None
        """Figures of the last message, None before the first."""
        self._state: ThresholdState = threshold.init()
        self._sent: Sent | None = None

    def encode(self, delta: NDArray[np.float32], step: int) -> bytes:
        """Adds an update to the residual and returns what is to be sent of it.

        Args:
            delta: (n,) the local update.
            step: The training step, counted from 0 over the model's life.

        Raises:
            UserError: The update has a NaN or an infinity; the encoder cannot be used afterwards.
        """
        chosen, state = self.threshold.next(self._state, self._sent)
        tau = float(np.float32(chosen))
        clip = None
        if self.clipping is not None and self.clipping.due(step):
            clip = self.clipping.max_multiple * tau
        found = kernel.extract(self.residual, delta, tau, clip)
        encoded = message.encode(step, self.n, tau, found.positions, found.negative)
        self._state = state
        self._sent = Sent(found.positions.size, self.n) if self.n else None
        self.last = Encoded(tau, found.positions.size, len(encoded), found.clipped_mass)
        return encoded

    def state_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays to save, as copies."""
        return {"residual": self.residual.copy()}

    def state_json(self) -> dict[str, Any]:
        """The rest to save, as JSON values."""
        return {
            "threshold": self._state._asdict(),
            "sent": None if self._sent is None else asdict(self._sent),
        }

    def load_state(self, arrays: Mapping[str, NDArray[np.float32]], json: Mapping[str, Any]) -> None:
        """Goes on where a saved encoder stopped: the next message is the one that it would have sent.

        Args:
            arrays: From `state_arrays`.
            json: From `state_json`.

        Raises:
            OptionError: The state is not one of an encoder of ``n`` parameters. This encoder is then unchanged.
        """
        residual = arrays.get("residual")
        if residual is None or residual.shape != (self.n,) or residual.dtype != np.float32:
            received = "none" if residual is None else f"{residual.dtype} of shape {residual.shape}"
            msg = f"encoder state, residual: expected float32 of shape ({self.n},), received {received}"
            raise OptionError(msg, hint="the state belongs to a network with other trainable parameters")
        try:
            state = ThresholdState(float(json["threshold"]["tau"]))
            sent = None if json["sent"] is None else Sent(int(json["sent"]["count"]), int(json["sent"]["n"]))
        except (KeyError, TypeError, ValueError) as error:
            msg = f"encoder state: expected the keys threshold and sent as written by state_json, received {json!r}"
            raise OptionError(msg) from error
        if not 0.0 < state.tau < math.inf or (sent is not None and not 0 <= sent.count <= sent.n == self.n):
            msg = f"encoder state of {self.n} parameters: expected tau > 0 and count <= n, received {json!r}"
            raise OptionError(msg)
        np.copyto(self.residual, residual)
        self._state, self._sent, self.last = state, sent, None


def apply_message(
    encoded: bytes | bytearray | memoryview, target: NDArray[np.float32], scale: float, step: int
) -> None:
    """Adds ``scale * decoded`` to a vector, in float32: every parameter of the message moves by float32(tau * scale).

    Applying the same messages in the same order to equal vectors gives equal bits on every worker.

    Args:
        encoded: A message of any worker.
        target: (n,) changed in place; left alone when the message is refused.
        scale: The weight of this message, for example 1 / workers.
        step: The step this worker is at.

    Raises:
        ProtocolError: The message is damaged or belongs to another step or network.
        ValueError: The target is not a float32 vector, or tau * scale is not a finite float32.
    """
    if target.ndim != 1 or target.dtype != np.float32:
        msg = f"target: expected a float32 vector, received {target.dtype} of shape {target.shape}"
        raise ValueError(msg)
    received = message.decode(encoded, target.size, step)
    value = received.tau * scale
    if not abs(value) <= float(np.finfo(np.float32).max):
        msg = f"scale: expected tau * scale to be a finite float32, received {received.tau} * {scale}"
        raise ValueError(msg)
    kernel.add_signed(target, received.positions, received.negative, value)
