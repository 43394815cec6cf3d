"""The compiled kernel: the C functions of ``src/kernel``, called on the buffers of NumPy arrays.

The library lies beside this module as ``_fatwood_kernel.so`` (``.dylib`` on macOS). It knows nothing of Python, so one
build serves all versions, and `ctypes` lets go of the interpreter lock for the time of a call. C trusts its arguments:
everything is checked here, above all whatever could make it touch memory outside an array.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import native_coders
from fatwood.codec.kernel import (
    Added,
    Extracted,
    Floats,
    Kernel,
    Positions,
    RicePlan,
    Signed,
    Signs,
    Term,
)
from fatwood.errors import NotFiniteError

__all__ = ["NativeKernel", "native_kernels"]

_ABI = 2  # FW_ABI of src/kernel/fatwood_kernel.h
_LEVELS = (("avx512", 2), ("avx2", 1), ("portable", 0))  # fastest first
_LIBRARY = "_fatwood_kernel.dylib" if sys.platform == "darwin" else "_fatwood_kernel.so"
# Parameters: below, starting a thread and sharing the memory's bandwidth was measured to lose.
_PER_THREAD = 1 << 23
_LINE = 16  # float32 numbers in a cache line: no two threads write to one

_Result = TypeVar("_Result")


class _Extraction(ctypes.Structure):
    _fields_ = (
        ("next", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("bad", ctypes.c_int64),
        ("clipped", ctypes.c_double),
    )


class _Signed(ctypes.Structure):
    _fields_ = (
        ("positions", ctypes.c_void_p),
        ("negative", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("done", ctypes.c_int64),
        ("value", ctypes.c_float),
    )


_P, _I, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
_PROTOTYPES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "fw_tile": (_N, ()),
    "fw_supports": (_N, (_N,)),
    "fw_extract": (None, (_N, _P, _P, _P, _N, _I, _F, _F, _P, _P, _I, ctypes.POINTER(_Extraction))),
    "fw_add": (None, (_N, _P, _P, _I)),
    "fw_weighted": (None, (_P, _P, _F, _P, _F, _I, _P, _P)),
    "fw_gather": (_I, (_P, _I, _P, _I, _P)),
    "fw_add_signed": (None, (_P, _I, _I, ctypes.POINTER(_Signed), _I)),
    "fw_rice_plan": (None, (_P, _P, _I, _P, _P)),
    "fw_rice_pack": (_I, (_P, _P, _I, _P, _I, _I, _I, _P, _I)),
    "fw_rice_unpack": (_I, (_P, _I, _I, _I, _P, _P)),
    "fw_ternary_histogram": (None, (_P, _I, _I, _P)),
    "fw_ternary_pack": (_I, (_P, _P, _I, _I, _P, _P, _I)),
    "fw_ternary_unpack": (_I, (_P, _I, _I, _I, _P, _P, _P)),
}


def native_kernels() -> list[Kernel]:
    """The compiled kernels that this processor can run, the fastest first.

    Returns:
        Nothing where no library was compiled, or one that does not belong to this version of the package.
    """
    library = _load(_library_path())
    if library is None:
        return []
    return [NativeKernel(library, name, level) for name, level in _LEVELS if library.fw_supports(level)]


class NativeKernel(Kernel):
    """The loops in C; all instruction sets return the same bits.

    Args:
        library: With the functions of ``src/kernel/fatwood_kernel.h`` and their prototypes set.
        name: Of the instruction set.
        level: Its number in C.
    """

    ternary_limit = sys.maxsize

    def __init__(self, library: ctypes.CDLL, name: str, level: int) -> None:
        self.name = name
        self._library = library
        self._level = level
        self._tile = int(library.fw_tile())

    def add(self, vector: Floats, delta: Floats) -> None:
        """``vector += delta``, both (n,): the least that any encoder must do, for benchmarks to compare with."""
        if vector.shape != delta.shape:
            msg = f"delta: expected shape {vector.shape} as the vector, received {delta.shape}"
            raise ValueError(msg)
        delta = _source(delta, np.float32)
        self._library.fw_add(self._level, _target(vector), delta.ctypes.data, vector.size)

    def _extract(
        self, residual: Floats, update: Added, tau: float, clip: float, threads: int, expected: int
    ) -> Extracted:
        _target(residual)
        if residual.size == 0:
            return Extracted(np.empty(0, np.int64), np.empty(0, np.bool_), 0.0)
        if update.put_back:
            _target(update.delta)
        elif np.may_share_memory(residual, update.delta):
            update = update._replace(delta=update.delta.copy())
        base = update.base
        if base is not None and np.may_share_memory(residual, base):
            base = base.copy()
        sources = Added(
            _source(update.delta, np.float32),
            None if base is None else _source(base, np.float32),
            update.put_back,
        )

        def work(first: int, last: int) -> tuple[list[Positions], list[Signs], float, int]:
            share = expected * (last - first) // residual.size
            return self._extract_range(residual, sources, tau, clip, first, last, share)

        parts = _by_ranges(work, residual.size, threads)
        for *_, bad in parts:
            if bad >= 0:
                raise NotFiniteError(bad, residual.size, float(residual[bad]))
        positions = [chunk for chunks, *_ in parts for chunk in chunks]
        negative = [chunk for _, chunks, *_ in parts for chunk in chunks]
        return Extracted(_joined(positions), _joined(negative), sum(clipped for _, _, clipped, _ in parts))

    def _extract_range(
        self,
        residual: Floats,
        update: Added,
        tau: float,
        clip: float,
        first: int,
        last: int,
        expected: int,
    ) -> tuple[list[Positions], list[Signs], float, int]:
        """Works on the elements first ... last - 1; memory follows the guess, then the density found so far.

        Returns:
            Positions and signs in chunks, the clipped mass, and the first element that is not finite or -1.
        """
        state = _Extraction(next=first, bad=-1)
        positions: list[Positions] = []
        negative: list[Signs] = []
        found, guess = 0, max(expected + expected // 16, (last - first) // 128)
        while state.next < last:
            capacity = min(guess, last - state.next) + min(self._tile, last - state.next)
            chunk, signs = np.empty(capacity, np.int64), np.empty(capacity, np.bool_)
            self._library.fw_extract(
                self._level,
                residual.ctypes.data,
                update.delta.ctypes.data,
                None if update.base is None else update.base.ctypes.data,
                update.put_back,
                last,
                tau,
                clip,
                chunk.ctypes.data,
                signs.ctypes.data,
                capacity,
                state,
            )
            if state.bad >= 0:
                break
            positions.append(chunk[: state.count])
            negative.append(signs[: state.count])
            found += state.count
            guess = found * (last - state.next) // max(1, state.next - first) * 5 // 4
        return positions, negative, float(state.clipped), int(state.bad)

    def _weighted(self, first: Floats, terms: tuple[Term, Term], out: Floats, also: Floats) -> None:
        (a, second), (b, third) = terms
        sources = [_source(vector, np.float32) for vector in (first, second, third)]
        one, two, three = (vector.ctypes.data for vector in sources)
        self._library.fw_weighted(one, two, a, three, b, out.size, _target(out), _target(also))

    def _gather(self, vector: Floats, places: Positions) -> Floats:
        places, out = _source(places, np.int64), np.empty(places.size, np.float32)
        copied = self._library.fw_gather(
            vector.ctypes.data, vector.size, places.ctypes.data, places.size, out.ctypes.data
        )
        if copied < places.size:
            msg = f"places: expected numbers in range({vector.size}), received {places[copied]}"
            raise ValueError(msg)
        return out

    def _add_signed(self, target: Floats, updates: Sequence[Signed], threads: int) -> None:
        address = _target(target)
        messages = [
            (_source(update.positions, np.int64), _source(update.negative, np.bool_), update.value)
            for update in updates
        ]
        for positions, negative, _ in messages:
            if positions.ndim != 1 or positions.shape != negative.shape:
                msg = (
                    f"negative: expected shape {positions.shape} as the positions, received {negative.shape}"
                )
                raise ValueError(msg)

        def work(first: int, last: int) -> int:
            whole = (first, last) == (0, target.size)
            parts = (_Signed * len(messages))()
            for part, (positions, negative, value) in zip(parts, messages, strict=True):
                low, high = (0, positions.size) if whole else np.searchsorted(positions, (first, last))
                part.positions = positions.ctypes.data + 8 * int(low)
                part.negative = negative.ctypes.data + int(low)
                part.count = int(high - low)
                part.value = value
            self._library.fw_add_signed(address, first, last, parts, len(parts))
            return sum(part.done for part in parts)

        added = sum(_by_ranges(work, target.size, threads))
        if added != sum(positions.size for positions, *_ in messages):
            msg = f"positions: expected ascending numbers in range({target.size}), received others"
            raise ValueError(msg)

    def rice_plan(self, positions: Positions, negative: Signs) -> RicePlan:
        """See `Kernel.rice_plan`."""
        return native_coders.rice_plan(self._library, positions, negative)

    def rice_pack(self, positions: Positions, negative: Signs, plan: RicePlan) -> bytes:
        """See `Kernel.rice_pack`."""
        return native_coders.rice_pack(self._library, positions, negative, plan)

    def rice_unpack(self, payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
        """See `Kernel.rice_unpack`."""
        return native_coders.rice_unpack(self._library, payload, count, n)

    def ternary_histogram(self, positions: Positions, n: int) -> NDArray[np.int64]:
        """See `Kernel.ternary_histogram`."""
        return native_coders.ternary_histogram(self._library, positions, n)

    def ternary_pack(self, positions: Positions, negative: Signs, n: int) -> bytes:
        """See `Kernel.ternary_pack`."""
        return native_coders.ternary_pack(self._library, positions, negative, n)

    def ternary_unpack(self, payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
        """See `Kernel.ternary_unpack`."""
        return native_coders.ternary_unpack(self._library, payload, count, n)


def _library_path() -> Path | None:
    """Where the library is: beside this module, or, in an editable install, where its package was installed."""
    package = sys.modules[__name__.rpartition(".")[0]]
    directories = (Path(__file__).parent, *map(Path, package.__path__))
    return next((path for directory in directories if (path := directory / _LIBRARY).is_file()), None)


def _load(path: Path | None) -> ctypes.CDLL | None:
    """Opens a library and declares its functions; None when it cannot be opened or has another version's."""
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
        if library.fw_abi() != _ABI:
            return None
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError):  # made for another machine, or without a function
        return None
    return library


def _target(vector: Floats) -> int:
    """The address of a vector that C may write to."""
    if not (vector.flags.aligned and vector.flags.writeable):
        msg = "vector: expected one that is aligned and can be written to, received another"
        raise ValueError(msg)
    return vector.ctypes.data


def _source(array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """The array as C reads it: contiguous and aligned; copied only when it is not."""
    if array.dtype != dtype:
        msg = f"array: expected {np.dtype(dtype)}, received {array.dtype}"
        raise ValueError(msg)
    return np.require(array, requirements=("C", "A"))


def _by_ranges(work: Callable[[int, int], _Result], n: int, threads: int) -> list[_Result]:
    """Calls ``work(first, last)`` for ranges that make up ``range(n)``, each in a thread; results in order."""
    ranges = min(threads, n // _PER_THREAD)
    if ranges <= 1:
        return [work(0, n)]
    bounds = [*(n * i // ranges // _LINE * _LINE for i in range(ranges)), n]
    with ThreadPoolExecutor(ranges) as pool:
        return list(pool.map(work, bounds[:-1], bounds[1:]))


def _joined(chunks: Sequence[np.ndarray]) -> np.ndarray:
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
