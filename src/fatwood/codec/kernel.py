"""The codec's loops over parameters and positions: their contract, and which implementation serves.

There are two, and they return the same bits: `fatwood.codec.native` (C, compiled when the package was built) and
`fatwood.codec.reference` (NumPy; the reference in the tests, and what serves where nothing was compiled). `active`
picks one, once per process, and says in one log line when it is not a compiled one.

Shapes: ``n`` parameters, ``count`` positions in a message.
"""

from __future__ import annotations

import functools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import OptionError

__all__ = [
    "Added",
    "Extracted",
    "Kernel",
    "RicePlan",
    "Signed",
    "Term",
    "active",
    "available",
    "checked_threshold",
]

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]
Signs = NDArray[np.bool_]

ENVIRONMENT = "FATWOOD_KERNEL"
"""Environment variable that names the kernel to use; unset takes the fastest."""


class Extracted(NamedTuple):
    """What one pass took out of a residual."""

    positions: Positions  # (count,) ascending, unique
    negative: Signs  # (count,) True where -tau was taken, False where +tau
    clipped_mass: float  # sum of the absolute values that clipping threw away


class Added(NamedTuple):
    """What `Kernel.extract` adds to a residual."""

    delta: Floats  # (n,)
    base: Floats | None  # (n,) where delta is counted from
    put_back: bool  # delta becomes base


Term: TypeAlias = tuple[float, Floats]
"""A factor and the vector that it scales."""


class Signed(NamedTuple):
    """One message's part of a sum: ``+value`` or ``-value`` at its positions."""

    positions: Positions  # (count,) ascending, unique, in range(n)
    negative: Signs  # (count,) True where -value is to be added
    value: float  # rounded to float32 before it is added


class RicePlan(NamedTuple):
    """How `fatwood.codec.rice` will write some positions and signs, and in how many bytes."""

    k: NDArray[np.uint8]  # the Rice parameter of every block; one number when there is one block for all
    flips: int  # how many signs differ from the one before; -1 when signs are written as plain bits
    flips_k: int  # the Rice parameter of the gaps between flips
    bytes: int  # exact length of the payload


class Kernel(ABC):
    """The loops. Arguments are checked here, once for all implementations."""

    name: str
    """``"numpy"``, or the instruction set of a compiled one: ``"portable"``, ``"avx2"``, ``"avx512"``."""

    ternary_limit: int
    """The most parameters for which this kernel's range coder is worth its time; beyond, dense steps go as Rice."""

    def extract(
        self,
        residual: Floats,
        delta: Floats,
        tau: float,
        clip: float | None = None,
        *,
        base: Floats | None = None,
        put_back: bool = False,
        threads: int = 1,
        expected: int = 0,
    ) -> Extracted:
        """Adds an update to the residual and takes one ``+-tau`` out of every element that reaches it.

        With ``r`` the residual, ``d`` the update and all arithmetic in float32::

            r <- r + d                        with a base b: r <- r + (d - b)
            for each |r[i]| >= tau:  emit (i, sign r[i]);  r[i] <- r[i] - tau * sign r[i]
            with a clip c >= tau:    r[i] <- min(max(r[i], -c), c)

        The subtraction is exact when ``tau <= |r[i]| <= 2 tau`` (Sterbenz) and, for ``|r[i]| < 2**24 tau``, when tau
        is a power of two; otherwise it rounds once, by at most half a unit in the last place of ``r[i]``.

        Args:
            residual: (n,) changed in place.
            delta: (n,) left alone, unless it is put back.
            tau: The threshold; it is rounded to float32 first, as it will be in the message.
            clip: Bound on the residual after the subtraction, at least ``tau``, or None for no clipping.
            base: (n,) what the update is counted from, left alone, or None: ``delta`` is the update.
            put_back: With a base, copy it into ``delta`` in the same pass; no two of the three may share memory.
            threads: How many threads may work; the result is the same for any number but for the last bits of
                the clipped mass.
            expected: A guess of ``count``, to take memory once.

        Returns:
            The positions in ascending order, their signs and the mass lost to clipping.

        Raises:
            NotFiniteError: A sum is NaN or infinite. The residual is then partly updated and must not be used again.
            ValueError: Shapes, dtypes, tau or clip cannot work.
        """
        _check_vectors(residual, delta, *(() if base is None else (base,)))
        update = Added(delta, base, put_back and base is not None)
        if update.put_back and (np.may_share_memory(residual, delta) or np.may_share_memory(base, delta)):
            msg = "delta: expected memory of its own to put the base back into, received another vector's"
            raise ValueError(msg)
        quantum, bound = checked_threshold(tau, clip)
        return self._extract(residual, update, quantum, bound, max(1, threads), max(0, expected))

    def weighted(self, first: Floats, terms: tuple[Term, Term], out: Floats, also: Floats) -> None:
        """``out = also = (first + a * second) + b * third``, rounding every product and sum to float32, in one pass.

        Args:
            first: (n,)
            terms: ``((a, second), (b, third))``, vectors (n,); the factors are rounded to float32.
            out: (n,) overwritten; it shares memory with no other.
            also: (n,) overwritten; it shares memory with no other.

        Raises:
            ValueError: Shapes or dtypes differ, or a vector that is written is another one, too.
        """
        vectors = (first, *(vector for _, vector in terms))
        _check_vectors(first, *vectors, out, also)
        if any(np.may_share_memory(written, one) for written in (out, also) for one in vectors) or (
            np.may_share_memory(out, also)
        ):
            msg = "out: expected memory of its own, received another vector's"
            raise ValueError(msg)
        self._weighted(first, terms, out, also)

    def gather(self, vector: Floats, places: Positions) -> Floats:
        """``vector[places]``, fast where the places are far apart and in no cache.

        Args:
            vector: (n,)
            places: (count,) in ``range(n)``.

        Raises:
            ValueError: A place is not in the vector, or that is not a contiguous float32 vector.
        """
        _check_vectors(vector)
        return self._gather(vector, places)

    def add_signed(self, target: Floats, updates: Sequence[Signed], *, threads: int = 1) -> None:
        """Adds several messages to a vector, in float32 and in the order given: any number of threads, equal bits.

        Args:
            target: (n,) changed in place.
            updates: Positions must be ascending, unique and in ``range(n)``, as `rice_unpack` and `ternary_unpack`
                return them; that is not checked again.
            threads: How many threads may work.

        Raises:
            ValueError: The target is not a contiguous float32 vector.
        """
        _check_vectors(target)
        self._add_signed(target, updates, max(1, threads))

    @abstractmethod
    def _extract(
        self, residual: Floats, update: Added, tau: float, clip: float, threads: int, expected: int
    ) -> Extracted:
        """See `extract`; tau and clip are float32 numbers, clip is infinite when there is no clipping."""

    @abstractmethod
    def _weighted(self, first: Floats, terms: tuple[Term, Term], out: Floats, also: Floats) -> None:
        """See `weighted`."""

    @abstractmethod
    def _gather(self, vector: Floats, places: Positions) -> Floats:
        """See `gather`."""

    @abstractmethod
    def _add_signed(self, target: Floats, updates: Sequence[Signed], threads: int) -> None:
        """See `add_signed`."""

    @abstractmethod
    def rice_plan(self, positions: Positions, negative: Signs) -> RicePlan:
        """The form with the fewest bytes, see `fatwood.codec.rice`; at least one position, ascending and unique."""

    @abstractmethod
    def rice_pack(self, positions: Positions, negative: Signs, plan: RicePlan) -> bytes:
        """Writes positions and signs as planned."""

    @abstractmethod
    def rice_unpack(self, payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
        """Reads what `rice_pack` wrote; no length or value is trusted.

        Raises:
            ProtocolError: The payload is not a packing of ``count`` positions below ``n``.
        """

    @abstractmethod
    def ternary_histogram(self, positions: Positions, n: int) -> NDArray[np.int64]:
        """How many of the ``ceil(n / 8)`` bytes of the mask have 0, 1, ... 8 bits set: (9,)."""

    @abstractmethod
    def ternary_pack(self, positions: Positions, negative: Signs, n: int) -> bytes:
        """Writes mask and signs with a range coder, see `fatwood.codec.ternary`."""

    @abstractmethod
    def ternary_unpack(self, payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
        """Reads what `ternary_pack` wrote; no length or value is trusted.

        Raises:
            ProtocolError: The payload is not a packing of ``count`` positions below ``n``.
        """


def available() -> dict[str, Kernel]:
    """All kernels that this machine can run, the fastest first; ``"numpy"`` is always the last."""
    from fatwood.codec.native import native_kernels
    from fatwood.codec.reference import NumpyKernel

    return {kernel.name: kernel for kernel in (*native_kernels(), NumpyKernel())}


@functools.cache
def active() -> Kernel:
    """The kernel of this process: the fastest, or the one that ``FATWOOD_KERNEL`` names.

    Raises:
        OptionError: ``FATWOOD_KERNEL`` names one that this machine cannot run.
    """
    kernels = available()
    chosen = os.environ.get(ENVIRONMENT) or next(iter(kernels))
    if chosen not in kernels:
        msg = f"environment variable {ENVIRONMENT}: expected one of {', '.join(kernels)}, received {chosen!r}"
        raise OptionError(msg, hint="leave it unset for the fastest")
    if chosen == "numpy":
        logging.getLogger(__name__).warning(
            "the codec runs in NumPy (no compiled kernel); encoding takes about three times as long"
        )
    return kernels[chosen]


def checked_threshold(tau: float, clip: float | None) -> tuple[float, float]:
    """Tau and the bound of clipping as float32 numbers; the bound is infinite when there is none.

    Raises:
        ValueError: They cannot work, see `Kernel.extract`.
    """
    with np.errstate(over="ignore"):  # too large a number is refused below
        quantum = float(np.float32(tau))
        bound = np.inf if clip is None else float(np.float32(clip))
    if not 0.0 < quantum < np.inf:
        msg = f"tau: expected a positive finite float32, received {tau!r}"
        raise ValueError(msg)
    if not bound >= quantum:
        msg = f"clip: expected at least tau = {quantum}, received {clip!r}"
        raise ValueError(msg)
    return quantum, bound


def _check_vectors(*vectors: Floats) -> None:
    for vector in vectors:
        if vector.ndim != 1 or vector.dtype != np.float32 or not vector.flags.c_contiguous:
            msg = f"vector: expected contiguous float32 of one dimension, received {vector.dtype} of shape {vector.shape}"
            raise ValueError(msg)
        if vector.shape != vectors[0].shape:
            msg = f"delta: expected {vectors[0].size} numbers as in the residual, received {vector.size}"
            raise ValueError(msg)
