"""The container of Fatwood's files: a zip archive that says what it is, with a checksum for every part. Never pickle.

It is stored without compression, with fixed dates and sorted names, so that equal contents give equal bytes, and written
from the first byte to the last, to any stream::

    part                   any bytes, in the order of the names, each at a multiple of 64 bytes
    manifest.json          UTF-8 JSON, keys sorted:
        format             what kind of file this is, such as "fatwood-model"
        format_version     2 and up
        versions           {"fatwood": ..., "python": ..., "torch": ...}   of the writer
        sha256_of_pieces   {part: hex digest} as in fatwood.archive.hashing; zip's own CRC-32 covers the manifest
        ...                what the kind of file adds

In version 1 the manifest came first and had plain SHA-256 digests as ``sha256``; it is read for ever. No size in the file is
believed before it is checked against the bytes that are there.
"""

from fatwood.archive.kind import Kind
from fatwood.archive.reading import Archive
from fatwood.archive.tensors import Tensors, read_tensors
from fatwood.archive.writing import Part, write_archive

__all__ = ["Archive", "Kind", "Part", "Tensors", "read_tensors", "write_archive"]
