"""The file of a saved model: weights, how to rebuild the network, and what the caller adds. Never pickle.

The file is an archive as `fatwood.archive` draws it, of the format ``"fatwood-model"``; equal models give equal bytes::

    manifest.json          the fields of every archive, and
        blueprint          JSON object for fatwood.blueprint.build, or null
        extra              JSON object of the caller
        tensors            [[name, name it is stored under], ...]   in the order of the state dict;
                           the two differ where a tensor is shared: it is stored once
    weights.safetensors    https://huggingface.co/docs/safetensors, one entry per stored name

Every byte is checked, and nothing in the file is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fatwood import blueprint, storage
from fatwood.archive import Archive, Kind, write_archive
from fatwood.errors import OptionError, UserError

__all__ = ["FORMAT_VERSION", "SavedModel", "load_network", "read_model", "write_model"]

FORMAT_VERSION = 1
"""The version written, and the newest that can be read."""

_KIND = Kind(
    format="fatwood-model",
    version=FORMAT_VERSION,
    content="model",
    remedy="copy it again, or save the model again",
)
_WEIGHTS = "weights.safetensors"


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
    fields = {
        "blueprint": blueprint,
        "extra": dict(extra),
        "tensors": [[name, stored] for name, stored in stored_as.items()],
    }
    write_archive(file, _KIND, fields=fields, parts={_WEIGHTS: weights})


def read_model(file: BinaryIO) -> SavedModel:
    """Read a model.

    Args:
        file: A seekable binary file, from its beginning; it stays open.

    Returns:
        What was written, every byte of it checked.

    Raises:
        StorageError: Not a saved model, truncated, altered, or of a newer version of the format.
    """
    with Archive(file, _KIND) as archive:
        manifest = archive.manifest
        if not _is_well_formed(manifest):
            raise archive.wrong_manifest()
        state_dict = _state_dict(archive.read(_WEIGHTS), manifest["tensors"], archive)
    return SavedModel(
        state_dict=state_dict,
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


def _is_well_formed(manifest: Mapping[str, Any]) -> bool:
    return (
        set(manifest["sha256"]) == {_WEIGHTS}
        and isinstance(manifest.get("blueprint", ""), (dict, type(None)))
        and isinstance(manifest.get("extra"), dict)
        and isinstance(manifest.get("tensors"), list)
        and all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in manifest["tensors"])
    )


def _state_dict(weights: bytes, names: list[list[str]], archive: Archive) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(weights)
        state_dict = {name: tensors[stored] for name, stored in names}
    except Exception as error:
        received = f"{type(error).__name__}: {error}"
        problem = f"{_WEIGHTS}: expected the tensors of the manifest, received {received}"
        raise archive.damaged(problem) from error
    if set(tensors) != {stored for _, stored in names} or len(state_dict) != len(names):
        problem = f"{_WEIGHTS}: expected {len(names)} named tensors, received {len(tensors)}"
        raise archive.damaged(problem)
    return state_dict


def load_network(uri: str | Path, network: torch.nn.Module | None) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A saved network: rebuilt from what the file says of its class, or the one that is given, with the saved tensors.

    Beside it what the caller of :func:`write_model` added.

    Args:
        uri: Of the file.
        network: To load the tensors into, or None.

    Raises:
        StorageError: There is no such file, or it is damaged or of a newer version.
        UserError: The file cannot say how to rebuild the network and none was given, or the one given does not fit; it is
            then as it was.
    """
    if not isinstance(network, torch.nn.Module | None):
        text = f"load: expected a torch.nn.Module, received {network!r}"
        raise OptionError(text, hint="pass an instance, not the class: Net() instead of Net")
    with storage.open_read(uri) as file:
        saved = read_model(file)
    if network is None:
        if saved.blueprint is None:
            text = f"{uri}: the file does not say how to rebuild its network, and none was given"
            hint = "SparkModel.load(uri, network=Net(...)), with the arguments it was saved with"
            raise UserError(text, hint=hint)
        network = blueprint.build(saved.blueprint)
    before = {k: v.clone() for k, v in network.state_dict().items() if not is_lazy(v)}
    try:
        network.load_state_dict(saved.state_dict)
    except RuntimeError as error:
        network.load_state_dict(before, strict=False)  # torch has copied what did fit
        text = f"{uri}: the saved tensors do not fit the network: {error}"
        raise UserError(text, hint="build the network with the arguments it was saved with") from error
    return network, saved.extra
