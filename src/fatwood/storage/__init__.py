"""Read, write, list and delete at any URI by its scheme: ``hdfs://``, ``s3://``, ``gs://``, ``file://``, plain local paths.

::

    URI --locating--> (store, path)      a store is an fsspec file system, or none for the local disk
                        |-- reading      whole files, or a file to seek in
                        |-- writing      whole under its name, or not at all
                        '-- listing      names, sizes, leftovers of killed writers; delete

The scheme alone decides where bytes go, never a default file system of the cluster. A plain string without
a scheme and every ``pathlib.Path`` is local to the machine that runs the code. A :class:`Location` is a URI with the options
of its store.
"""

from __future__ import annotations

from fatwood.storage.listing import delete, delete_leftovers, list_folder, list_sizes
from fatwood.storage.locating import URI, Location, absolute, join, located, location
from fatwood.storage.reading import open_read, read_bytes
from fatwood.storage.writing import write_atomic

__all__ = [
    "URI",
    "Location",
    "absolute",
    "delete",
    "delete_leftovers",
    "join",
    "list_folder",
    "list_sizes",
    "located",
    "location",
    "open_read",
    "read_bytes",
    "write_atomic",
]
