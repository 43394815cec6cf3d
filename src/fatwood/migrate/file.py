"""The zip file that Deeplearning4j's ModelSerializer writes; only four entries are read, and nothing in it is executed.

::

    configuration.json   layers or vertices
    coefficients.bin     one array of ND4J: all parameters in a row; empty where there are none
    updaterState.bin     one array of ND4J: the state of the optimizer; may be missing
    normalizer.bin       preprocessing; may be missing
    noParams.marker      says that coefficients.bin is empty
    preprocessor.bin, objects/...   serialised by Java: never read

Entries are compressed. What they may become in memory is bounded by the bytes that are there: parameters that are no zeros
hardly get smaller; zeros of an optimizer that has not begun do, but there are at most three for each parameter.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fatwood import nd4j
from fatwood.errors import DamagedError, StorageError

__all__ = ["SavedFile", "read_file"]

_CONFIGURATION = "configuration.json"
_COEFFICIENTS = "coefficients.bin"
_UPDATER = "updaterState.bin"
_NORMALIZER = "normalizer.bin"
_MARKER = "noParams.marker"
_READ = (_CONFIGURATION, _COEFFICIENTS, _UPDATER, _NORMALIZER, _MARKER)
_MAX_TEXT_BYTES = 64 << 20
_SLACK_BYTES = 64 << 20
_MAX_RATIO = 32
"""Of the parameters' bytes to the compressed ones, beyond the slack."""
_MAX_STATES = 3
"""Numbers that an optimizer keeps for one parameter."""
_MAX_ENTRIES = 10_000
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """What the file of a network holds."""

    configuration: bytes
    parameters: NDArray[np.generic]
    """``(N,)``, in the byte order of the file."""
    updater_state: NDArray[np.generic] | None
    """``(M,)``."""
    normalizer: bytes | None
    ignored: tuple[str, ...]
    """Names of entries that are not read."""


def read_file(file: BinaryIO, title: str) -> SavedFile:
    """Read a network's file.

    Args:
        file: A seekable binary file; it stays open.
        title: What to call it in messages.

    Raises:
        DamagedError: No zip file, or one with an entry that is missing, torn, or larger than what its bytes can stand for.
        StorageError: An array in a form that is not read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _contents(archive, title)
    except StorageError:
        raise
    except Exception as error:  # zipfile meets damage with a dozen kinds of exceptions
        problem = f"expected a zip file of Deeplearning4j, received {type(error).__name__}: {error}"
        raise _damaged(title, problem) from error


def _contents(archive: zipfile.ZipFile, title: str) -> SavedFile:
    entries = archive.infolist()
    if len(entries) > _MAX_ENTRIES:
        problem = f"expected at most {_MAX_ENTRIES} entries, received {len(entries)}"
        raise _damaged(title, problem)
    names = [entry.filename for entry in entries]
    twice = [name for name in _READ if names.count(name) > 1]
    if twice or _CONFIGURATION not in names:
        problem = f"expected one entry {(twice or [_CONFIGURATION])[0]}, received {names[:12]!r:.200}"
        raise _damaged(title, problem)
    configuration = _read(archive, _CONFIGURATION, _MAX_TEXT_BYTES, title)
    parameters = _parameters(archive, names, title)
    state = None
    if _UPDATER in names:
        limit = _MAX_STATES * max(parameters.nbytes, 8 * parameters.size) + _PIECE_BYTES
        state = _array(_read(archive, _UPDATER, limit, title), _UPDATER, title)
    return SavedFile(
        configuration=configuration,
        parameters=parameters,
        updater_state=state,
        normalizer=_read(archive, _NORMALIZER, _MAX_TEXT_BYTES, title) if _NORMALIZER in names else None,
        ignored=tuple(name for name in names if name not in _READ),
    )


def _parameters(archive: zipfile.ZipFile, names: list[str], title: str) -> NDArray[np.generic]:
    if _COEFFICIENTS in names:
        compressed = archive.getinfo(_COEFFICIENTS).compress_size
        content = _read(archive, _COEFFICIENTS, _SLACK_BYTES + _MAX_RATIO * compressed, title)
        if content:
            return _array(content, _COEFFICIENTS, title)
        if _MARKER in names:
            return np.zeros(0, ">f4")
    problem = f"{_COEFFICIENTS}: expected the parameters, received {'nothing' if _COEFFICIENTS in names else 'no such entry'}"
    raise _damaged(title, problem)


def _array(content: bytes, name: str, title: str) -> NDArray[np.generic]:
    """A vector of floating numbers, read-only."""
    try:
        array, end = nd4j.read_array(content)
    except DamagedError as error:
        problem = f"{name}: {error.message}"
        raise _damaged(title, problem) from error
    except StorageError as error:
        message = f"{title}: {name}: {error.message}"
        raise StorageError(message, hint=error.hint) from error
    if end != len(content) or array.dtype.kind != "f" or sum(length != 1 for length in array.shape) > 1:
        received = f"shape {array.shape} of {array.dtype.name} and {len(content) - end} bytes more"
        problem = f"{name}: expected a row of floating numbers, received {received}"
        raise _damaged(title, problem)
    return array.reshape(-1)


def _read(archive: zipfile.ZipFile, name: str, limit: int, title: str) -> bytes:
    """An entry in memory, which is not filled beyond the limit whatever the entry says of its size."""
    pieces, total = [], 0
    declared = archive.getinfo(name).file_size
    if declared <= limit:
        with archive.open(name) as source:
            while piece := source.read(min(_PIECE_BYTES, limit + 1 - total)):
                pieces.append(piece)
                total += len(piece)
                if total > limit:
                    break
    if max(declared, total) > limit:
        compressed = archive.getinfo(name).compress_size
        problem = f"{name}: expected at most {limit} bytes, received {compressed} that stand for {max(declared, total)}"
        raise _damaged(title, problem)
    return b"".join(pieces)


def _damaged(title: str, problem: str) -> DamagedError:
    hint = "the file is damaged, incomplete or no network saved by Deeplearning4j: copy it again, or save it again there"
    return DamagedError(f"{title}: {problem}", hint=hint)
