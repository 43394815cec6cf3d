"""One worker's side of threshold encoding: the residual, the threshold's state, and messages out and in.

Strom 2015's scheme, as Deeplearning4j's ``EncodingHandler`` runs it, with its defects left out: nothing is lost when
the coder changes, positive and negative changes are treated alike, and residual and threshold survive saving.

Arrays go through the kernel of this process (`fatwood.codec.kernel`), tensors are worked on where they are
(`fatwood.codec.tensors`); both give the same bytes.

Shapes: ``n`` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.codec import kernel, message, tensors
from fatwood.codec.diagnostics import EncodingRecord, Multiples, multiples
from fatwood.codec.kernel import Extracted, Signed
from fatwood.codec.residual import ResidualClipping
from fatwood.codec.threshold import Sent, Threshold, ThresholdState
from fatwood.codec.vectors import Difference, Update, Vector, add, as_tensor, computed, host, put, zeros
from fatwood.codec.warmup import DensityWarmup, quantile_tau
from fatwood.errors import OptionError

__all__ = ["Encoded", "ThresholdEncoder", "apply_messages"]

_LARGEST = float(np.finfo(np.float32).max)
_NOTHING_TO_MEASURE = 1.0  # tau of a message of a vector of zeros: nothing reaches it, whatever it is


@dataclass(frozen=True)
class Encoded:
    """Figures of one encoded message."""

    tau: float  # as sent: exactly a float32; 0 when values were sent
    count: int  # elements sent
    bytes: int  # length of the message
    clipped_mass: float  # sum of the absolute values that residual clipping threw away
    debug: EncodingRecord | None = None  # with debug=True; None when values were sent, which have no tau


class ThresholdEncoder:
    """Turns updates into messages and keeps what was not sent.

    Always: ``delta + residual before = decoded + residual after (+ clipped)``, up to the float32 rounding of one
    addition and, for values above two tau, of one subtraction (`Kernel.extract` says when that one is exact).

    >>> from fatwood.codec.threshold import FixedThreshold
    >>> encoder = ThresholdEncoder(4, FixedThreshold(tau=0.5), None)
    >>> sent = encoder.encode(np.array([0.75, -0.5, 0.25, 0.0], np.float32), step=0)
    >>> encoder.residual.tolist(), encoder.last.count
    ([0.25, 0.0, 0.25, 0.0], 2)
    >>> target = np.zeros(4, np.float32)
    >>> apply_messages([sent], target, scales=[1.0], step=0)
    >>> target.tolist()
    [0.5, -0.5, 0.0, 0.0]

    Args:
        n: How many parameters there are.
        threshold: The rule for tau.
        clipping: The rule for the residual, or None.
        warmup: The densities of the first steps, or None.
        debug: Measure every message for `Encoded.debug`; one more pass over the parameters.
        threads: How many threads the kernel may use; the bytes do not depend on it.
        device: Where the residual is kept as a tensor; None keeps it as an array.
    """

    def __init__(
        self,
        n: int,
        threshold: Threshold,
        clipping: ResidualClipping | None,
        *,
        warmup: DensityWarmup | None = None,
        debug: bool = False,
        threads: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.n = n
        self.threshold = threshold
        self.clipping = clipping
        self.warmup = warmup
        self.debug = debug
        self.threads = threads
        self.residual: Vector = zeros(n, device)
        """(n,) what was not sent yet."""
        self.last: Encoded | None = None
        """Figures of the last message, None before the first."""
        self._state = self._first_state()
        self._sent: Sent | None = None

    def encode(self, delta: Update, step: int) -> bytes:
        """Adds an update to the residual and returns what is to be sent of it.

        Args:
            delta: (n,) the local update, left alone, or two vectors whose difference it is; brought to the residual's device when that is a tensor.
            step: The training step, counted from 0 over the model's life.

        Raises:
            NotFiniteError: The update has a NaN or an infinity; the encoder cannot be used afterwards.
            ValueError: The update is not a float32 vector of ``n`` numbers, or on a GPU while the residual is not.
        """
        delta = self._at_home(delta)
        density = None if self.warmup is None else self.warmup.density(step)
        if density is not None and density >= 1.0:
            return self._encode_values(delta, step)
        chosen, state = self._choose_tau(delta, density)
        tau = float(np.float32(chosen))
        before = multiples(self.residual, computed(delta), tau) if self.debug else None
        found = self._extract(delta, tau, self._bound(tau, step) if density is None else None)
        encoded = message.encode(step, self.n, tau, found.positions, found.negative)
        self._state = state
        by_rule = density is None and state is not None and self.n > 0
        self._sent = Sent(found.positions.size, self.n) if by_rule else None
        self.last = self._figures(step, tau, found, len(encoded), before)
        return encoded

    def state_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays to save, as copies."""
        return {"residual": host(self.residual).copy()}

    def state_json(self) -> dict[str, Any]:
        """The rest to save, as JSON values."""
        return {
            "threshold": None if self._state is None else self._state._asdict(),
            "sent": None if self._sent is None else asdict(self._sent),
        }

    def load_state(self, arrays: Mapping[str, NDArray[np.float32]], json: Mapping[str, Any]) -> None:
        """Goes on where a saved encoder stopped: the next message is the one that it would have sent.

        Args:
            arrays: From `state_arrays`.
            json: From `state_json`; one of an older version, without a sparsity, will do.

        Raises:
            OptionError: The state is not one of an encoder of ``n`` parameters. This encoder is then unchanged.
        """
        residual = arrays.get("residual")
        if residual is None or residual.shape != (self.n,) or residual.dtype != np.float32:
            received = "none" if residual is None else f"{residual.dtype} of shape {residual.shape}"
            msg = f"encoder state, residual: expected float32 of shape ({self.n},), received {received}"
            raise OptionError(msg, hint="the state belongs to a network with other trainable parameters")
        state, sent = _read_state(json, self.n)
        put(self.residual, residual)
        self._state = self._first_state() if state is None else state
        self._sent, self.last = sent, None

    def _first_state(self) -> ThresholdState | None:
        """None where the first update is to be measured."""
        return self.threshold.init() if self.threshold.start_density is None else None

    def _choose_tau(self, delta: Update, density: float | None) -> tuple[float, ThresholdState | None]:
        """Tau of this step, and the rule's state after it; a density is one of the warm-up."""
        if density is not None:
            tau = quantile_tau(self.residual, delta, density)
            # Nothing counts as sent in a warm-up, so the rule will begin with its last tau as it is.
            return (_NOTHING_TO_MEASURE, self._state) if tau is None else (tau, self.threshold.init(tau))
        state = self._state
        if state is None:
            tau = quantile_tau(self.residual, delta, self.threshold.start_density or 1.0)
            if tau is None:
                return _NOTHING_TO_MEASURE, None
            state = self.threshold.init(tau)
        return self.threshold.next(state, self._sent)

    def _bound(self, tau: float, step: int) -> float | None:
        if self.clipping is None or not self.clipping.due(step):
            return None
        bound = self.clipping.max_multiple * tau
        return bound if bound <= _LARGEST else None

    def _extract(self, update: Update, tau: float, clip: float | None) -> Extracted:
        delta, base, put_back = update if isinstance(update, Difference) else (update, None, False)
        if isinstance(self.residual, np.ndarray):
            expected = 0 if self.last is None else self.last.count + self.last.count // 4 + 64
            return kernel.active().extract(
                self.residual,
                host(delta),
                tau,
                clip,
                base=None if base is None else host(base),
                put_back=put_back,
                threads=self.threads,
                expected=min(expected, self.n),
            )
        other = None if base is None else as_tensor(base)
        return tensors.extract(self.residual, as_tensor(delta), tau, clip, base=other, put_back=put_back)

    def _encode_values(self, update: Update, step: int) -> bytes:
        """A dense step: every value is sent, only the rounding is kept."""
        delta = computed(update)
        if isinstance(update, Difference) and update.put_back:
            put(update.after, update.before)
        with np.errstate(over="ignore", invalid="ignore"):  # encode_values finds and names it
            values = host(self.residual + delta)
        encoded, sent = message.encode_values(step, values)
        put(self.residual, values - sent)
        self._sent = None
        self.last = Encoded(0.0, self.n, len(encoded), 0.0)
        return encoded

    def _figures(
        self, step: int, tau: float, found: Extracted, size: int, before: Multiples | None
    ) -> Encoded:
        count = found.positions.size
        record = None
        if before is not None:
            record = EncodingRecord(
                step=step,
                tau=tau,
                n=self.n,
                count=count,
                bytes=size,
                clipped_mass=found.clipped_mass,
                residual_norm=_norm(self.residual),
                multiples=before,
            )
        return Encoded(tau, count, size, found.clipped_mass, record)

    def _at_home(self, update: Update) -> Update:
        """The update as what the residual is, and where it is."""
        if isinstance(update, Difference):
            after, before = self._vector_at_home(update.after), self._vector_at_home(update.before)
            if update.put_back and as_tensor(after).data_ptr() != as_tensor(update.after).data_ptr():
                msg = "delta: expected a vector beside the residual to put back into, received one that had to be copied"
                raise ValueError(msg)
            return Difference(after, before, update.put_back)
        return self._vector_at_home(update)

    def _vector_at_home(self, delta: Vector) -> Vector:
        if isinstance(self.residual, torch.Tensor):
            if isinstance(delta, np.ndarray):
                delta = torch.from_numpy(delta if delta.flags.writeable else delta.copy())
            delta = delta.detach().to(self.residual.device)
        elif isinstance(delta, torch.Tensor):
            if delta.device.type != "cpu":
                msg = f"delta: expected a vector in the host's memory as the residual, received one on {delta.device}"
                raise ValueError(msg)
            delta = delta.detach().numpy()
        if tuple(delta.shape) != (self.n,) or delta.dtype != self.residual.dtype:
            msg = f"delta: expected {self.n} float32 numbers, received {delta.dtype} of shape {tuple(delta.shape)}"
            raise ValueError(msg)
        return delta


def apply_messages(
    messages: Sequence[bytes | bytearray | memoryview],
    target: Vector,
    scales: Sequence[float],
    step: int,
    *,
    others: Sequence[Vector] = (),
    threads: int = 1,
) -> None:
    """Adds ``scale * decoded`` of every message to a vector, in float32 and in the order given.

    A parameter moves by ``float32(tau * scale)`` for every message that names it, and by ``float32(value * scale)``
    for a dense one. All are decoded first, then added in one sweep over the vector; the result is bit for bit that of
    one message after the other. The same messages in the same order on equal vectors give equal bits on every worker.

    Args:
        messages: Of any workers, each of this step.
        target: (n,) changed in place; left alone when a message is refused.
        scales: The weight of each message, for example 1 / workers.
        step: The step this worker is at.
        others: More vectors (n,) to which the same is done, as by calls of their own.
        threads: How many threads may work.

    Raises:
        ProtocolError: A message is damaged or belongs to another step or network.
        ValueError: The target is not a contiguous float32 vector, there is not one scale for each message, or a
            scaled value is not a finite float32.
    """
    targets = (target, *others)
    for vector in targets:
        _check_target(vector, target.shape[0])
    n = target.shape[0]
    received = [message.decode(encoded, n, step) for encoded in messages]
    scaled = [_scale(decoded, scale) for decoded, scale in zip(received, scales, strict=True)]
    for vector in targets:
        run: list[Signed] = []
        for update in scaled:
            if isinstance(update, Signed):
                run.append(update)
            else:
                _add_signed(vector, run, threads)
                add(vector, update)
                run = []
        _add_signed(vector, run, threads)


def _scale(decoded: message.Message, scale: float) -> Signed | NDArray[np.float32]:
    """A message's part of the sum; every number is rounded to float32 once."""
    values = decoded.values
    largest = decoded.tau if values is None else float(np.max(np.abs(values), initial=0.0))
    if not largest * abs(scale) <= _LARGEST:
        msg = f"scale: expected tau * scale to be a finite float32, received {largest} * {scale}"
        raise ValueError(msg)
    if values is None:
        return Signed(decoded.positions, decoded.negative, decoded.tau * scale)
    scaled = np.empty(values.shape, np.float32)
    np.multiply(values, scale, out=scaled, dtype=np.float64, casting="same_kind")
    return scaled


def _add_signed(target: Vector, updates: list[Signed], threads: int) -> None:
    if isinstance(target, torch.Tensor):
        tensors.add_signed(target, updates)
    else:
        kernel.active().add_signed(target, updates, threads=threads)


def _check_target(target: Vector, n: int) -> None:
    if isinstance(target, torch.Tensor):
        fits = target.ndim == 1 and target.dtype == torch.float32 and target.is_contiguous()
    else:
        fits = target.ndim == 1 and target.dtype == np.float32 and target.flags.c_contiguous
    if not fits or target.shape[0] != n:
        msg = f"target: expected a contiguous float32 vector, received {target.dtype} of shape {tuple(target.shape)}"
        raise ValueError(msg)


def _read_state(json: Mapping[str, Any], n: int) -> tuple[ThresholdState | None, Sent | None]:
    try:
        saved, last = json["threshold"], json["sent"]
        state = sent = None
        if saved is not None:
            sparsity = saved.get("sparsity")
            state = ThresholdState(float(saved["tau"]), None if sparsity is None else float(sparsity))
        if last is not None:
            sent = Sent(int(last["count"]), int(last["n"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = (
            f"encoder state: expected the keys threshold and sent as written by state_json, received {json!r}"
        )
        raise OptionError(msg) from error
    known = state is None or (0.0 < state.tau < math.inf and 0.0 <= (state.sparsity or 0.0) <= 1.0)
    if not known or (sent is not None and (state is None or not 0 <= sent.count <= sent.n == n)):
        msg = f"encoder state of {n} parameters: expected tau > 0, sparsity in 0 to 1 and count <= n, received {json!r}"
        raise OptionError(msg)
    return state, sent


def _norm(vector: Vector) -> float:
    """L2, summed in float64."""
    tensor = vector if isinstance(vector, torch.Tensor) else torch.from_numpy(vector)
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
