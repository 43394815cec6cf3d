"""The file of a saved model: weights, how to rebuild the network, and what the caller adds. Never pickle.

The file is an archive as `fatwood.archive` draws it, of the format ``"fatwood-model"``; equal models give equal bytes::

    manifest.json          the fields of every archive, and
        blueprint          JSON object for fatwood.blueprint.build, or null
        extra              JSON object of the caller
        run                JSON object: what a further fit must know of the last one, or null
        schema             JSON object: names, dtypes and shapes of what the network was trained on, or null
        tensors            [[name, name it is stored under], ...]   in the order of the state dict;
                           the two differ where a tensor is shared: it is stored once
    weights.safetensors    https://huggingface.co/docs/safetensors, one entry per stored name
    program.json           the network's operators (fatwood.program), where it was exported
    constants.safetensors  their tensors that are not in the state dict
    worker-R               each worker's optimizer, residual, threshold and random states, where the run was saved; as in
                           the checkpoints of fatwood.snapshots

Version 1 had neither run, schema nor program. Every byte is checked, and nothing in the file is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fatwood.archive import Archive, Kind, Part, Tensors, read_tensors, write_archive
from fatwood.errors import UserError
from fatwood.program import Program

__all__ = ["FORMAT_VERSION", "SavedModel", "SavedRun", "read_model", "write_model"]

FORMAT_VERSION = 3
"""The version written, and the newest that can be read."""

_KIND = Kind(
    format="fatwood-model",
    version=FORMAT_VERSION,
    content="model",
    remedy="copy it again, or save the model again",
)
_WEIGHTS = "weights.safetensors"
_PROGRAM = "program.json"
_CONSTANTS = "constants.safetensors"
_WORKER = "worker-"
_WORKER_NAME = re.compile(r"worker-(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a further fit goes on from."""

    about: Mapping[str, Any]
    """JSON object."""
    states: Mapping[int, Path]
    """Each worker's own state, as a local file."""


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

    schema: dict[str, Any] | None = None
    """What the network was trained on."""

    program: Program | None = None
    """The network's operators, where they were saved."""

    run: SavedRun | None = field(default=None)
    """The run, where it was saved and asked for."""


def write_model(
    file: BinaryIO,
    *,
    state_dict: Mapping[str, Tensor],
    blueprint: Mapping[str, Any] | None,
    extra: Mapping[str, Any],
    schema: Mapping[str, Any] | None = None,
    program: Program | None = None,
    run: SavedRun | None = None,
) -> None:
    """Write a model, from the first byte to the last; tensors on the CPU are not copied.

    Args:
        file: An open binary file, which needs no ``seek``; it stays open.
        state_dict: Parameters and buffers, on any device, of any dtype that safetensors knows.
        blueprint: How to rebuild the network (:func:`fatwood.blueprint.describe`), or None.
        extra: Anything JSON can say; NaN is written the way Python's ``json`` does.
        schema: Of what the network was trained on, JSON values.
        program: The network's operators (:func:`fatwood.program.trace`).
        run: What a further fit goes on from.

    Raises:
        UserError: A state that is no tensor or has an unknown dtype; an extra that JSON cannot say.
    """
    stored_as = _stored_names(state_dict)
    parts: dict[str, Part] = {_WEIGHTS: _tensors({name: state_dict[name] for name in stored_as.values()})}
    if program is not None:
        parts[_PROGRAM] = json.dumps(program.graph, separators=(",", ":"), sort_keys=True).encode()
        parts[_CONSTANTS] = _tensors(program.constants)
    if run is not None:
        parts |= {f"{_WORKER}{rank}": path for rank, path in run.states.items()}
    fields = {
        "blueprint": blueprint,
        "extra": dict(extra),
        "run": None if run is None else dict(run.about),
        "schema": schema,
        "tensors": [[name, stored] for name, stored in stored_as.items()],
    }
    write_archive(file, _KIND, fields=fields, parts=parts)


def read_model(file: BinaryIO, *, run_directory: Path | None = None) -> SavedModel:
    """Read a model.

    Args:
        file: A seekable binary file, from its beginning; it stays open. A local file is mapped into memory and not copied: it must
            be replaced as a whole, and not be written into, as long as the tensors are used.
        run_directory: A local directory for the workers' states of a saved run; None leaves the run out.

    Returns:
        What was written, every byte of it checked.

    Raises:
        StorageError: Not a saved model, truncated, altered, or of a newer version of the format.
    """
    with Archive(file, _KIND) as archive:
        manifest = archive.manifest
        if not _is_well_formed(manifest, archive.parts):
            raise archive.wrong_manifest()
        return SavedModel(
            state_dict=_state_dict(archive, manifest["tensors"]),
            blueprint=manifest["blueprint"],
            extra=manifest["extra"],
            manifest=manifest,
            schema=manifest.get("schema"),
            program=_read_program(archive) if _PROGRAM in archive.parts else None,
            run=None if run_directory is None else _read_run(archive, run_directory),
        )


def _tensors(tensors: Mapping[str, Tensor]) -> Tensors:
    try:
        return Tensors(tensors)
    except ValueError as error:
        message = f"cannot save the network: {error}"
        raise UserError(message, hint="convert the tensors, for example with network.float()") from error


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


def _is_well_formed(manifest: Mapping[str, Any], parts: list[str]) -> bool:
    run = manifest.get("run")
    workers = [name for name in parts if name.startswith(_WORKER)]
    rest = set(parts) - set(workers)
    return (
        rest in ({_WEIGHTS}, {_WEIGHTS, _PROGRAM, _CONSTANTS})
        and all(_WORKER_NAME.fullmatch(name) for name in workers)
        and isinstance(run, (dict, type(None)))
        and (run is not None or not workers)
        and isinstance(manifest.get("schema"), (dict, type(None)))
        and isinstance(manifest.get("blueprint", ""), (dict, type(None)))
        and isinstance(manifest.get("extra"), dict)
        and isinstance(manifest.get("tensors"), list)
        and all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in manifest["tensors"])
    )


def _read_tensors(archive: Archive, part: str) -> dict[str, Tensor]:
    memory = archive.memory(part)
    try:
        return read_tensors(memory)
    except Exception as error:
        problem = f"{part}: expected the tensors of the manifest, received {type(error).__name__}: {error}"
        raise archive.damaged(problem) from error


def _state_dict(archive: Archive, names: list[list[str]]) -> dict[str, Tensor]:
    tensors = _read_tensors(archive, _WEIGHTS)
    state_dict = {name: tensors[stored] for name, stored in names if stored in tensors}
    if set(tensors) != {stored for _, stored in names} or len(state_dict) != len(names):
        problem = (
            f"{_WEIGHTS}: expected the tensors of the manifest, {len(names)} names, received {len(tensors)}"
        )
        raise archive.damaged(problem)
    return state_dict


def _read_program(archive: Archive) -> Program:
    content = archive.read(_PROGRAM)
    try:
        graph = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        problem = f"{_PROGRAM}: expected JSON, received {type(error).__name__}: {error}"
        raise archive.damaged(problem) from error
    if not isinstance(graph, dict):
        problem = f"{_PROGRAM}: expected a JSON object, received {content[:80]!r}"
        raise archive.damaged(problem)
    return Program(graph=graph, constants=_read_tensors(archive, _CONSTANTS))


def _read_run(archive: Archive, directory: Path) -> SavedRun | None:
    about = archive.manifest.get("run")
    if about is None:
        return None
    states = {}
    for name in archive.parts:
        if name.startswith(_WORKER):
            rank = int(name.removeprefix(_WORKER))
            states[rank] = directory / f"{_WORKER}{rank}"
            archive.extract(name, states[rank])
    return SavedRun(about=about, states=states)
