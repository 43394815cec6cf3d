"""Shard directories: rows that are prepared once and trained on many times.

A shard directory is plain Parquet with a manifest. Spark, pandas, pyarrow and DuckDB read it as it is::

    shards/
        part-00000-of-00012.parquet      nearly equal files, each of whole rows
        ...
        _manifest.json                   written last: without it the directory is not complete
        _set-aside/                      what `validate_shards` took out, if anything

Names that begin with ``_`` are ignored by all of these readers, which is why the manifest has such a name.
:func:`fatwood.spark.shards.write_shards` writes one from a DataFrame.
"""

from __future__ import annotations

from fatwood.shards.checking import FileProblem, ShardReport, ValueProblem, validate_shards
from fatwood.shards.manifest import MANIFEST, ShardFile, ShardSet, read_manifest, shard_name, write_manifest
from fatwood.shards.parquet import is_data_file, open_parquet

__all__ = [
    "MANIFEST",
    "FileProblem",
    "ShardFile",
    "ShardReport",
    "ShardSet",
    "ValueProblem",
    "is_data_file",
    "open_parquet",
    "read_manifest",
    "shard_name",
    "validate_shards",
    "write_manifest",
]
