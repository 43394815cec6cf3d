"""Reads networks that Deeplearning4j saved, as networks of PyTorch.

::

    zip            -> file.py           four entries, bounded in memory
    JSON           -> parsing.py        layers or vertices (configuration.py), in the newest form (modern.py, ordering.py)
    layers         -> layers.py         a module for each, and where its numbers go (parameters.py)
    graph          -> networks.py       the modules in a row, or as a graph (vertices.py)
    flat vectors   -> plan.py           cut into the layers' arrays; the optimizer's state likewise (optimizer.py)
"""

from __future__ import annotations

import os
from typing import BinaryIO

import torch

from fatwood import storage
from fatwood.errors import OptionError
from fatwood.migrate.file import read_file
from fatwood.migrate.optimizer import SavedOptimizer
from fatwood.migrate.plan import MigratedNetwork, migrated
from fatwood.migrate.table import LayerRow

__all__ = ["LayerRow", "MigratedNetwork", "SavedOptimizer", "from_dl4j"]


def from_dl4j(
    source: str | os.PathLike[str] | BinaryIO, *, updater: bool = True, dtype: torch.dtype = torch.float32
) -> MigratedNetwork:
    """A network that Deeplearning4j saved: a MultiLayerNetwork or a ComputationGraph, of any version from 0.5 on.

    Args:
        source: The zip file that ``ModelSerializer.writeModel`` or ``save`` wrote: a path, a URI that fsspec knows, or an open
            seekable binary file, which stays open.
        updater: Whether to read the state of the optimizer.
        dtype: Of the network: ``torch.float32`` or ``torch.float64``.

    Returns:
        The network with its parameters, the optimizer and preprocessing where they map, and a table of the layers.

    Raises:
        OptionError: Another dtype.
        UserError: A layer or vertex that has no equal here; the message has its name and class.
        StorageError: There is no such file, or it is no whole network of Deeplearning4j.

    Example::

        old = from_dl4j("s3://models/digits.zip")
        print(old)
        model = SparkModel(old.network, loss=old.loss, optimizer=old.optimizer, preprocessing=old.preprocessing)
    """
    if dtype not in (torch.float32, torch.float64):
        text = f"from_dl4j: dtype: expected torch.float32 or torch.float64, received {dtype!r}"
        raise OptionError(text)
    if isinstance(source, str | os.PathLike):
        with storage.open_read(source) as file:
            return migrated(read_file(file, str(source)), updater=updater, dtype=dtype)
    name = getattr(source, "name", None)
    title = name if isinstance(name, str) else "the file"
    return migrated(read_file(source, title), updater=updater, dtype=dtype)
