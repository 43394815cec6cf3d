"""A model's file: what of a model is written, and a model's parts from what was read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from fatwood import blueprint, storage
from fatwood.checkpoint import read_model, write_model
from fatwood.data.preprocessing import Transform
from fatwood.errors import FatwoodError, OptionError, StorageError
from fatwood.program import ExportedNetwork, trace
from fatwood.rebuilding import is_stream, network_of, opened
from fatwood.spark.run_state import RunState
from fatwood.train import Strategy

__all__ = ["Loaded", "load", "save"]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a file gives a model."""

    network: nn.Module
    preprocessing: dict[str, Transform]
    schema: Mapping[str, Any] | None
    run: RunState


def save(
    target: Any,
    network: nn.Module,
    *,
    preprocessing: Mapping[str, Transform],
    schema: Mapping[str, Any] | None,
    run: RunState | None,
    export: Any,
    storage_options: Mapping[str, Any] | None,
) -> None:
    """Write a model, atomically where the target is a URI.

    Args:
        target: A URI, or an open binary file.
        network: Its tensors are not copied.
        preprocessing: By field.
        schema: Of what the network was trained on.
        run: What a further fit goes on from; None to leave it out.
        export: What the network is called with, to write its operators, too; None to leave them out.
        storage_options: For the URI's store.
    """
    saved_run = None
    if run is not None:
        saved_run = run.saved()
        if saved_run is None:
            text = "save: run: expected a model that was fitted, received one without a run"
            raise OptionError(text, hint="leave run=True out, or fit first")
    exported = None if export is None else trace(network, export)
    if exported is None and isinstance(network, ExportedNetwork):
        exported = trace(network, None)
    contents: dict[str, Any] = {
        "state_dict": network.state_dict(),
        "blueprint": blueprint.describe(network),
        "extra": {"preprocessing": {name: t.to_json() for name, t in preprocessing.items()}},
        "schema": schema,
        "program": exported,
        "run": saved_run,
    }
    if not is_stream(target):
        storage.write_atomic(
            storage.location(target, storage_options), lambda file: write_model(file, **contents)
        )
        return
    if storage_options:
        text = f"storage_options: expected none beside an open file, received {sorted(storage_options)}"
        raise OptionError(text)
    try:
        write_model(target, **contents)
        target.flush()
    except OSError as error:
        text = f"cannot write the model to {target!r}: {type(error).__name__}: {error}"
        raise StorageError(text, hint="the stream holds a part of a model") from error


def load(
    source: Any,
    *,
    network: nn.Module | None,
    strategy: Strategy,
    run: bool,
    storage_options: Mapping[str, Any] | None,
) -> Loaded:
    """Read what `save` wrote.

    Args:
        source: A URI, or an open binary file.
        network: To load the tensors into, or None.
        strategy: Of the model, which must be that of a saved run.
        run: Whether to take over a saved run.
        storage_options: For the URI's store.
    """
    if not isinstance(network, nn.Module | None):
        text = f"load: expected a torch.nn.Module, received {network!r}"
        raise OptionError(text, hint="pass an instance, not the class: Net() instead of Net")
    title = str(getattr(source, "name", "the stream")) if is_stream(source) else str(source)
    directory = Path(tempfile.mkdtemp(prefix="fatwood-run-")) if run else None
    state = RunState()
    try:
        with opened(source, storage_options) as file:
            saved = read_model(file, run_directory=directory)
        preprocessing = _preprocessing(saved.extra.get("preprocessing", {}), title)
        if saved.run is not None:
            state = RunState.of(saved.run, strategy, cast("Path", directory), saved.schema)
        loaded = network_of(saved, network, title)
    except BaseException:
        state.close()
        _remove(directory)
        raise
    if saved.run is None:
        _remove(directory)
    return Loaded(network=loaded, preprocessing=preprocessing, schema=saved.schema, run=state)


def _preprocessing(states: Any, title: str) -> dict[str, Transform]:
    try:
        return {name: Transform.from_json(state) for name, state in states.items()}
    except (FatwoodError, AttributeError, RecursionError) as error:
        text = f"{title}: manifest.json: expected preprocessing, received {type(error).__name__}: {error}"
        raise StorageError(text, hint="copy the file again, or save the model again") from error


def _remove(directory: Path | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
