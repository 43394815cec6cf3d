"""The container of Fatwood's files: a zip archive that says what it is, with zip's CRC-32 of every part. Never pickle.

It is stored without compression, with fixed dates and sorted names, so that equal contents give equal bytes, and written
from the first byte to the last, to any stream::

    part                   any bytes, in the order of the names, each at a multiple of 64 bytes
    manifest.json          UTF-8 JSON, keys sorted:
        format             what kind of file this is, such as "fatwood-model"
        format_version     3 and up
        versions           {"fatwood": ..., "python": ..., "torch": ...}   of the writer
        parts              their names
        ...                what the kind of file adds

Older versions are read for ever: in version 2 the manifest had ``sha256_of_pieces``, ``{part: hex digest}``, as in
`fatwood.archive.hashing`, instead of ``parts``; in version 1 it came first and had plain SHA-256 digests as ``sha256``. The
checksum is against accidents; a digest in the same file was no more than that and took longer than writing the bytes. No size
in the file is believed before it is checked against the bytes that are there.
"""

from fatwood.archive.kind import Kind
from fatwood.archive.reading import Archive
from fatwood.archive.tensors import Tensors, read_tensors
from fatwood.archive.writing import Part, write_archive

__all__ = ["Archive", "Kind", "Part", "Tensors", "read_tensors", "write_archive"]
