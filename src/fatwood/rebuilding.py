"""A saved model becomes a network again: one that the caller gives, one of the class that the file names, or its operators.

load(source) -> SavedModel -> network= given       its tensors are overwritten, or left as they were
-> blueprint            the class is importable: built without first values, then given the tensors
-> program              the class is not: the operators that were exported
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fatwood import blueprint, storage
from fatwood.blueprint import Budget
from fatwood.checkpoint import SavedModel
from fatwood.errors import OptionError, StorageError, UserError
from fatwood.program import ExportedNetwork

__all__ = ["is_stream", "network_of", "opened"]

_PIECE_BYTES = 2**20
_SPARE_BYTES = 2**28
_SPARE_CALLS = 4_000


def is_stream(source: object) -> bool:
    """Whether it is an open file, and no URI.

    Raises:
        OptionError: It is a file of text.
    """
    if isinstance(source, io.TextIOBase):
        text = f"expected a binary file, received one of text: {source!r}"
        raise OptionError(text, hint='open it with "rb" or "wb"')
    return hasattr(source, "read") or hasattr(source, "write")


@contextmanager
def opened(source: Any, storage_options: Mapping[str, Any] | None) -> Iterator[BinaryIO]:
    """A seekable file of what a URI names, or of an open file.

    A stream that cannot seek, such as a pipe, is copied to a temporary file first, which may take half of what is free there.

    Args:
        source: A URI, or an open binary file; that stays open.
        storage_options: For the URI's store.
    """
    if not is_stream(source):
        with storage.open_read(storage.location(source, storage_options)) as file:
            yield file
        return
    if storage_options:
        text = f"storage_options: expected none beside an open file, received {sorted(storage_options)}"
        raise OptionError(text)
    if source.seekable():
        yield source
        return
    with tempfile.TemporaryFile() as spool:
        _copy(source, spool)
        yield spool


def network_of(saved: SavedModel, network: nn.Module | None, title: str) -> nn.Module:
    """The network of a saved model.

    Args:
        saved: What was read. Its tensors become the network's own, where the network is made here.
        network: To load the tensors into, or None.
        title: What to call the file in messages.

    Raises:
        UserError: None was given and the file cannot say how to rebuild one, or the one given does not fit; it is then as it was.
    """
    if network is not None:
        _load_into(network, saved.state_dict, title)
        return network
    if saved.blueprint is None:
        problem = "the file does not say how to rebuild its network"
    else:
        try:
            return _rebuilt(saved.blueprint, saved.state_dict, title)
        except UserError as error:
            if saved.program is None:
                raise UserError(_none_works(title, error.message), hint=_hint(error.hint)) from error
    if saved.program is not None:
        return ExportedNetwork(saved.program.graph, saved.state_dict, saved.program.constants)
    raise UserError(_none_works(title, problem), hint=_hint(None))


def _none_works(title: str, class_path: str) -> str:
    return (
        f"{title}: expected one of three ways to its network, received none: network=: none was given; "
        f"class path: {class_path}; export: the file holds no exported network"
    )


def _hint(more: str | None) -> str:
    ways = "SparkModel.load(uri, network=Net(...)), with the arguments it was saved with; or save it with export=features"
    return ways if more is None else f"{more}; {ways}"


def _rebuilt(node: Mapping[str, Any], state_dict: Mapping[str, Tensor], title: str) -> nn.Module:
    tensors = {id(tensor): tensor for tensor in state_dict.values()}.values()
    budget = Budget(
        tensor_bytes=4 * sum(tensor.nbytes for tensor in tensors) + _SPARE_BYTES,
        calls=64 * len(state_dict) + _SPARE_CALLS,
    )
    network = blueprint.build(node, filled=False, budget=budget)
    if not _hand_over(network, state_dict):
        _load_into(network, state_dict, title)
    return network


def _hand_over(network: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Make the tensors the network's own, without a copy; False, with nothing changed, where its class may want it otherwise."""
    own = network.state_dict(keep_vars=True)
    if any(_has_own_way(module) for module in network.modules()) or own.keys() != state_dict.keys():
        return False
    for name, tensor in state_dict.items():
        held = own[name]
        if (
            not isinstance(held, Tensor)
            or is_lazy(held)
            or (held.shape, held.dtype, held.device) != (tensor.shape, tensor.dtype, tensor.device)
            or held.untyped_storage().nbytes() != tensor.nbytes
        ):
            return False
    if len({id(held) for held in own.values()}) != len({id(tensor) for tensor in state_dict.values()}):
        return False  # the class shares other tensors than the file
    for name, tensor in state_dict.items():
        own[name].data = tensor
    return True


def _has_own_way(module: nn.Module) -> bool:
    return bool(
        module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        or not type(module)._load_from_state_dict.__module__.startswith("torch.")
        or type(module).load_state_dict is not nn.Module.load_state_dict
        or type(module).get_extra_state is not nn.Module.get_extra_state
    )


def _load_into(network: nn.Module, state_dict: Mapping[str, Tensor], title: str) -> None:
    before = {k: v.clone() for k, v in network.state_dict().items() if not is_lazy(v)}
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        network.load_state_dict(before, strict=False)  # torch has copied what did fit
        text = f"{title}: the saved tensors do not fit the network: {error}"
        raise UserError(text, hint="build the network with the arguments it was saved with") from error


def _copy(source: BinaryIO, spool: Any) -> None:
    limit = shutil.disk_usage(tempfile.gettempdir()).free // 2
    copied = 0
    try:
        while piece := source.read(_PIECE_BYTES):
            copied += len(piece)
            if copied > limit:
                text = f"load: expected a stream of at most {limit} bytes, half of what is free for temporary files, received more"
                raise StorageError(text, hint="write it to a file and load that")
            spool.write(piece)
    except OSError as error:
        text = f"load: cannot copy the stream to a temporary file: {error}"
        raise StorageError(text, hint=f"free space in {os.path.abspath(tempfile.gettempdir())}") from error
