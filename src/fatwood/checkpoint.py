"""The file of a saved model: weights, how to rebuild the network, and what the caller adds. Never pickle.

The file is a zip archive, stored without compression, with fixed dates and sorted names, so that equal
models give equal bytes::

    manifest.json          UTF-8 JSON, keys sorted:
        format             "fatwood-model"
        format_version     1
        versions           {"fatwood": ..., "python": ..., "torch": ...}   of the writer
        blueprint          JSON object for fatwood.blueprint.build, or null
        extra              JSON object of the caller
        tensors            [[name, name it is stored under], ...]   in the order of the state dict;
                           the two differ where a tensor is shared: it is stored once
        sha256             {"weights.safetensors": hex digest}; zip's own CRC-32 covers the manifest
    weights.safetensors    https://huggingface.co/docs/safetensors, one entry per stored name

No size in the file is believed before it is checked against the bytes that are there, and nothing in the
file is executed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from fatwood.errors import StorageError, UserError

__all__ = ["FORMAT_VERSION", "SavedModel", "read_model", "write_model"]

FORMAT_VERSION = 1
"""The version written, and the newest that can be read."""

_FORMAT = "fatwood-model"
_MANIFEST = "manifest.json"
_WEIGHTS = "weights.safetensors"
_MAX_MANIFEST_BYTES = 64 * 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date zip knows
_DAMAGED_HINT = "the file is damaged, incomplete or no saved model: copy it again, or save the model again"


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """What a saved model holds."""

    state_dict: dict[str, Tensor]
    """Parameters and buffers on the CPU, in the order they were saved; shared tensors are the same object."""

    blueprint: dict[str, Any] | None
    """How to rebuild the network, for :func:`fatwood.blueprint.build`; None when that is not known."""

    extra: dict[str, Any]
    """What the caller of :func:`write_model` added."""

    manifest: dict[str, Any]
    """The whole manifest, versions of the writer included."""


def write_model(
    file: BinaryIO,
    *,
    state_dict: Mapping[str, Tensor],
    blueprint: Mapping[str, Any] | None,
    extra: Mapping[str, Any],
) -> None:
    """Write a model.

    Args:
        file: An open binary file, best a seekable one; it stays open.
        state_dict: Parameters and buffers, on any device, of any dtype that safetensors knows.
        blueprint: How to rebuild the network (:func:`fatwood.blueprint.describe`), or None.
        extra: Anything JSON can say; NaN is written the way Python's ``json`` does.

    Raises:
        UserError: A state that is no tensor or has an unknown dtype; an extra that JSON cannot say.
    """
    stored_as = _stored_names(state_dict)
    tensors = {name: _standalone(state_dict[name]) for name in stored_as.values()}
    try:
        weights = safetensors.torch.save(tensors)
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
        message = (
            f"cannot save the network: expected dtypes that safetensors can hold, received {dtypes}: {error}"
        )
        raise UserError(message, hint="convert the tensors, for example with network.float()") from error
    manifest = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": _versions(),
        "blueprint": blueprint,
        "extra": dict(extra),
        "tensors": [[name, stored] for name, stored in stored_as.items()],
        "sha256": {_WEIGHTS: hashlib.sha256(weights).hexdigest()},
    }
    try:
        plain = json.loads(json.dumps(manifest))  # keys that are numbers become text before they are sorted
        text = json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = f"cannot save the network: expected JSON values as blueprint and extra, received: {error}"
        raise UserError(message, hint="use numbers, strings, lists and dicts with string keys") from error
    if len(text) > _MAX_MANIFEST_BYTES:
        message = f"cannot save the network: expected a manifest of at most {_MAX_MANIFEST_BYTES} bytes, received {len(text)}"
        raise UserError(message, hint="put large things beside the model, not into extra")
    with zipfile.ZipFile(file, "w", compression=zipfile.ZIP_STORED) as archive:
        for name, content in ((_MANIFEST, text), (_WEIGHTS, weights)):
            archive.writestr(_entry(name), content)


def read_model(file: BinaryIO) -> SavedModel:
    """Read a model.

    Args:
        file: A seekable binary file, from its beginning; it stays open.

    Returns:
        What was written, every byte of it checked.

    Raises:
        StorageError: Not a saved model, truncated, altered, or of a newer version of the format.
    """
    title = _title(file)
    try:
        size = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, size, title)
            text = archive.read(entries[_MANIFEST])
            manifest = _parse_manifest(text, title)
            weights = archive.read(entries[_WEIGHTS])
    except StorageError:
        raise
    except Exception as error:  # zipfile meets a damaged file with a dozen kinds of exceptions
        message = f"{title}: expected a saved model (a zip archive), received {type(error).__name__}: {error}"
        raise StorageError(message, hint=_DAMAGED_HINT) from error
    expected, received = manifest["sha256"][_WEIGHTS], hashlib.sha256(weights).hexdigest()
    if received != expected:
        raise _damaged(title, f"{_WEIGHTS}: expected sha256 {expected}, received {received}")
    return SavedModel(
        state_dict=_state_dict(weights, manifest["tensors"], title),
        blueprint=manifest["blueprint"],
        extra=manifest["extra"],
        manifest=manifest,
    )


def _stored_names(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name that has the very same memory, shape and dtype."""
    first: dict[tuple[Any, ...], str] = {}
    stored_as = {}
    for name, tensor in state_dict.items():
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.is_meta
        ):
            received = (
                f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            )
            message = (
                f"cannot save the network: {name!r}: expected a dense tensor with values, received {received}"
            )
            raise UserError(message, hint="keep extra state of a module in buffers, or pass it as extra")
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        stored_as[name] = first.setdefault(memory, name) if tensor.numel() else name
    return stored_as


def _standalone(tensor: Tensor) -> Tensor:
    """The tensor on the CPU with memory of its own, as safetensors wants it."""
    tensor = tensor.detach().cpu().contiguous()
    own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone()


def _versions() -> dict[str, str]:
    try:
        fatwood = importlib.metadata.version("fatwood")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree or a shipped archive
        fatwood = "unknown"
    return {"fatwood": fatwood, "python": platform.python_version(), "torch": torch.__version__}


def _entry(name: str) -> zipfile.ZipInfo:
    """An archive entry that is the same on every machine."""
    entry = zipfile.ZipInfo(name, date_time=_EPOCH)
    entry.create_system = 3  # Unix, also where it is written on Windows
    entry.external_attr = 0o644 << 16
    return entry


def _title(file: BinaryIO) -> str:
    """What to call a file in a message: its path, where it knows one."""
    for attribute in ("path", "name"):
        name = getattr(file, attribute, None)
        if isinstance(name, str):
            return f"model file {name}"
    return "model file"


def _damaged(title: str, problem: str) -> StorageError:
    return StorageError(f"{title}: {problem}", hint=_DAMAGED_HINT)


def _entries(archive: zipfile.ZipFile, file_bytes: int, title: str) -> dict[str, zipfile.ZipInfo]:
    """The two entries, their sizes found possible."""
    names = sorted(entry.filename for entry in archive.infolist())
    if names != [_MANIFEST, _WEIGHTS]:
        raise _damaged(title, f"expected the entries {[_MANIFEST, _WEIGHTS]}, received {names!r:.200}")
    for entry in archive.infolist():
        limit = _MAX_MANIFEST_BYTES if entry.filename == _MANIFEST else file_bytes
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored or entry.file_size > min(limit, file_bytes):
            expected = f"at most {min(limit, file_bytes)} stored bytes"
            received = f"{entry.compress_size} bytes that stand for {entry.file_size}"
            raise _damaged(title, f"{entry.filename}: expected {expected}, received {received}")
    return {entry.filename: entry for entry in archive.infolist()}


def _parse_manifest(text: bytes, title: str) -> dict[str, Any]:
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise _damaged(title, f"{_MANIFEST}: expected the format {_FORMAT!r}, received {text[:80]!r}")
    version = manifest.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        message = (
            f"{title}: expected format version {FORMAT_VERSION} or older, received version {version}, "
            f"written by {manifest.get('versions')}"
        )
        raise StorageError(
            message, hint="install the version of Fatwood that wrote the file: pip install -U fatwood"
        )
    well_formed = (
        type(version) is int
        and version == FORMAT_VERSION
        and isinstance(manifest.get("blueprint", ""), (dict, type(None)))
        and isinstance(manifest.get("extra"), dict)
        and isinstance(manifest.get("tensors"), list)
        and all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in manifest["tensors"])
        and isinstance(manifest.get("sha256"), dict)
        and isinstance(manifest["sha256"].get(_WEIGHTS), str)
    )
    if not well_formed:
        raise _damaged(
            title, f"{_MANIFEST}: expected the fields of version {FORMAT_VERSION}, received {text[:200]!r}"
        )
    return manifest


def _state_dict(weights: bytes, names: list[list[str]], title: str) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(weights)
        state_dict = {name: tensors[stored] for name, stored in names}
    except Exception as error:
        problem = f"expected the tensors of the manifest, received {type(error).__name__}: {error}"
        raise _damaged(title, f"{_WEIGHTS}: {problem}") from error
    if set(tensors) != {stored for _, stored in names} or len(state_dict) != len(names):
        raise _damaged(title, f"{_WEIGHTS}: expected {len(names)} named tensors, received {len(tensors)}")
    return state_dict
