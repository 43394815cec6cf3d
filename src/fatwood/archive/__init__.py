"""The container of Fatwood's files: a zip archive that says what it is, with a checksum for every part. Never pickle.

It is stored without compression, with fixed dates and sorted names, so that equal contents give equal bytes::

    manifest.json          UTF-8 JSON, keys sorted:
        format             what kind of file this is, such as "fatwood-model"
        format_version     1 and up
        versions           {"fatwood": ..., "python": ..., "torch": ...}   of the writer
        sha256             {part: hex digest}; zip's own CRC-32 covers the manifest
        ...                what the kind of file adds
    part                   any bytes, in the order of the names

No size in the file is believed before it is checked against the bytes that are there.
"""

from fatwood.archive.kind import Kind
from fatwood.archive.reading import Archive
from fatwood.archive.writing import write_archive

__all__ = ["Archive", "Kind", "write_archive"]
