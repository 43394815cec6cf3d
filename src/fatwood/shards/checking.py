"""Whether a shard directory is what its manifest says, and whether its values can be trained on."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Literal

from fatwood.errors import OptionError, SchemaError, StorageError
from fatwood.shards.manifest import MANIFEST, ShardFile, ShardSet, read_manifest, write_manifest
from fatwood.shards.parquet import is_data_file, open_parquet
from fatwood.shards.values import bad_rows, can_be_classes, rows_outside
from fatwood.storage import URI, delete, join, list_folder, open_read, write_atomic

__all__ = ["SET_ASIDE", "FileProblem", "ShardReport", "ValueProblem", "validate_shards"]

LOG = logging.getLogger("fatwood.shards")

SET_ASIDE = "_set-aside"
"""The folder within a shard directory that bad files are moved to; readers leave out such names."""
_THREADS = 4
_PIECE_BYTES = 1 << 20
_BATCH_ROWS = 1024
_FIRST = 5
"""Places of bad values that are told."""


@dataclass(frozen=True, kw_only=True)
class FileProblem:
    """A file that is not what the manifest says."""

    name: str
    kind: Literal["missing", "unknown", "truncated", "altered", "rows", "schema", "unreadable"]
    """``unknown`` files hold rows and are not in the manifest; ``rows`` and ``schema`` differ from the manifest's."""
    text: str
    """What was expected and what was found."""
    rows_lost: int = 0
    """That the manifest counts in it."""


@dataclass(frozen=True, kw_only=True)
class ValueProblem:
    """Values of a column that cannot be trained on."""

    column: str
    kind: str
    """``null``, ``NaN``, ``infinite``, or ``no class`` for a label out of range."""
    rows: int
    """How many rows have one."""
    first: tuple[tuple[str, int], ...]
    """File and row of the first few."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What :func:`validate_shards` found; printed, it is a readable text."""

    uri: str
    files: int
    """In the manifest as it was found."""
    rows: int
    """In the manifest as it was found."""
    file_problems: tuple[FileProblem, ...] = ()
    value_problems: tuple[ValueProblem, ...] = ()
    set_aside: tuple[str, ...] = ()
    """Files that were moved to the folder ``_set-aside``."""
    rows_set_aside: int = 0
    """By how many rows the manifest is smaller now."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.file_problems and not self.value_problems

    def __str__(self) -> str:
        lines = [f"{self.uri}: {self.files} files, {self.rows:,} rows: {'ok' if self.ok else 'NOT ok'}"]
        lines += [f"  {problem.name}: {problem.text}" for problem in self.file_problems]
        for value in self.value_problems:
            places = ", ".join(f"{name} row {row}" for name, row in value.first)
            more = ", ..." if value.rows > len(value.first) else ""
            lines.append(f"  column {value.column!r}: {value.kind} in {value.rows:,} rows ({places}{more})")
        if self.set_aside:
            lines.append(
                f"  set aside: {len(self.set_aside)} files; {self.rows_set_aside:,} rows fewer to train on"
            )
        elif self.file_problems:
            lines.append('hint: write the shards again, or leave bad files out with repair="set_aside"')
        if self.value_problems:
            lines.append('hint: fit(..., on_bad_row="skip") leaves such rows out and counts them')
        return "\n".join(lines)


def validate_shards(
    uri: URI,
    *,
    label: str | None = None,
    classes: int | None = None,
    columns: Sequence[str] | None = None,
    repair: Literal["report", "set_aside"] = "report",
    storage_options: Mapping[str, Any] | None = None,
) -> ShardReport:
    """Read every byte of a shard directory and compare it with the manifest; look at every value.

    Files are found that are missing, truncated, altered (by size and SHA-256), not in the manifest, or of other rows or
    columns than the manifest says; values that are null, NaN or infinite; labels out of range. Files are read by four
    threads of this process, a piece at a time.

    Args:
        uri: The shard directory; a scheme picks the store, a plain path is local.
        label: The column whose values must be whole numbers from 0 to ``classes - 1``.
        classes: How many classes there are; goes with `label`.
        columns: Those whose values are looked at; None for all. A column of notes may well have nulls.
        repair: ``"report"`` changes nothing. ``"set_aside"`` rewrites the manifest without the bad files, then moves them to
            ``<uri>/_set-aside/``; rows lost so are counted in the report and logged under ``fatwood.shards``. Bad values
            move no file: training has ``on_bad_row`` for them.
        storage_options: Arguments of the store's fsspec class, by name: address, credentials.

    Raises:
        OptionError: `classes` without `label` or the other way round, or another `repair`.
        SchemaError: `label` or one of `columns` is not in the shards, or the label cannot be a class.
        StorageError: There is no manifest, it is damaged, or the directory cannot be read or repaired.
    """
    if repair not in ("report", "set_aside"):
        message = f"repair: expected 'report' or 'set_aside', received {repair!r}"
        raise OptionError(message)
    if (label is None) != (classes is None):
        message = f"validate_shards: expected label and classes together, received label={label!r} and classes={classes!r}"
        raise OptionError(message, hint='validate_shards(uri, label="digit", classes=10)')
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 1):
        message = f"classes: expected a whole number of at least 1, received {classes!r}"
        raise OptionError(message)
    shards = read_manifest(uri, storage_options=storage_options)
    wanted = _Wanted(_columns(shards, columns, label), label, classes or 0)
    names = frozenset(list_folder(shards.uri))
    with ThreadPoolExecutor(_THREADS, "fatwood-shards") as pool:
        looks = [pool.submit(_look, shards, file, names, wanted) for file in shards.files]
        try:
            found = [look.result() for look in looks]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    known = {MANIFEST, *(file.name for file in shards.files)}
    problems = [problem for problem, _ in found if problem is not None]
    problems += [
        FileProblem(
            name=name, kind="unknown", text="not in the manifest; readers of the directory would read it"
        )
        for name in sorted(names)
        if is_data_file(name) and name not in known
    ]
    report = ShardReport(
        uri=str(shards.uri),
        files=len(shards.files),
        rows=shards.rows,
        file_problems=tuple(problems),
        value_problems=_summed([values for _, values in found]),
    )
    return _set_aside(shards, report, names) if repair == "set_aside" and problems else report


@dataclass(frozen=True)
class _Wanted:
    columns: tuple[str, ...]
    label: str | None
    classes: int


@dataclass
class _Values:
    """Bad values of one file, by column and kind."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], list[tuple[str, int]]] = field(default_factory=dict)


def _columns(shards: ShardSet, columns: Sequence[str] | None, label: str | None) -> tuple[str, ...]:
    chosen = list(shards.schema.names if columns is None else columns)
    for name in [*chosen, *([] if label is None else [label])]:
        if name not in shards.schema.names:
            message = f"column {name!r}: expected a column of the shards ({', '.join(shards.schema.names)}), received an unknown name"
            raise SchemaError(message, hint="print(read_manifest(uri)) shows the columns")
    if label is not None:
        kind = shards.schema.field(label).type
        if not can_be_classes(kind):
            message = f"label {label!r}: expected numbers, received {kind}"
            raise SchemaError(message, hint="index the classes by number before the shards are written")
        chosen += [label] if label not in chosen else []
    return tuple(chosen)


def _look(
    shards: ShardSet,
    file: ShardFile,
    names: frozenset[str],
    wanted: _Wanted,
) -> tuple[FileProblem | None, _Values]:
    """What is wrong with a file, and with its values; values of a wrong file are not looked at."""
    problem = _wrong_bytes(shards, file, names) or _wrong_content(shards, file)
    values = _Values()
    if problem is None:
        try:
            for key, row in _bad_values(join(shards.uri, file.name), wanted):
                first = values.first.setdefault(key, [])
                values.rows[key] += 1
                if len(first) < _FIRST:
                    first.append((file.name, row))
        except StorageError as error:
            problem, values = _problem(file, "unreadable", error.message), _Values()
    return problem, values


def _wrong_bytes(shards: ShardSet, file: ShardFile, names: frozenset[str]) -> FileProblem | None:
    if file.name not in names:
        return _problem(file, "missing", "expected the file, found none")
    digest, size = hashlib.sha256(), 0
    with open_read(join(shards.uri, file.name)) as source:
        while piece := _read(source, file.name):
            digest.update(piece)
            size += len(piece)
    if size < file.bytes:
        return _problem(file, "truncated", f"expected {file.bytes} bytes, found {size}")
    if size > file.bytes:
        return _problem(file, "altered", f"expected {file.bytes} bytes, found {size}")
    if digest.hexdigest() != file.sha256:
        text = f"expected SHA-256 {file.sha256[:12]}..., found {digest.hexdigest()[:12]}..."
        return _problem(file, "altered", text)
    return None


def _read(source: BinaryIO, name: str) -> bytes:
    try:
        return source.read(_PIECE_BYTES)
    except OSError as error:
        message = f"cannot read {name}: {error}"
        raise StorageError(message) from error


def _wrong_content(shards: ShardSet, file: ShardFile) -> FileProblem | None:
    try:
        with open_parquet(join(shards.uri, file.name)) as parquet:
            rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    except StorageError as error:
        return _problem(file, "unreadable", error.message)
    if rows != file.rows:
        return _problem(file, "rows", f"expected {file.rows} rows, found {rows}")
    if not schema.equals(shards.schema):
        different = next(
            (
                f"expected {ours}, found {theirs}"
                for ours, theirs in zip(shards.schema, schema, strict=False)
                if not ours.equals(theirs)
            ),
            f"expected {len(shards.schema)} columns, found {len(schema)}",
        )
        return _problem(file, "schema", f"other columns than in the manifest: {different}")
    return None


def _bad_values(uri: URI, wanted: _Wanted) -> Iterator[tuple[tuple[str, str], int]]:
    """(column, kind) and row of each bad value; each row once for a column and kind."""
    with open_parquet(uri) as parquet:
        start = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(wanted.columns), use_threads=False):
            for name in wanted.columns:
                column = batch.column(name)
                seen: dict[str, set[int]] = {}
                for kind, rows in bad_rows(column):
                    seen.setdefault(kind, set()).update(rows.tolist())
                if name == wanted.label:
                    seen["no class"] = set(rows_outside(column, wanted.classes).tolist())
                for kind, numbers in seen.items():
                    yield from (((name, kind), start + row) for row in sorted(numbers))
            start += batch.num_rows


def _summed(found: Sequence[_Values]) -> tuple[ValueProblem, ...]:
    keys = sorted({key for values in found for key in values.rows})
    return tuple(
        ValueProblem(
            column=column,
            kind=kind,
            rows=sum(values.rows[column, kind] for values in found),
            first=tuple(place for values in found for place in values.first.get((column, kind), ()))[:_FIRST],
        )
        for column, kind in keys
    )


def _set_aside(shards: ShardSet, report: ShardReport, names: frozenset[str]) -> ShardReport:
    """The manifest goes first: whenever this is broken off, what it lists is good."""
    bad = {problem.name for problem in report.file_problems}
    kept = replace(shards, files=tuple(file for file in shards.files if file.name not in bad))
    lost = shards.rows - kept.rows
    if len(kept.files) < len(shards.files):
        write_manifest(kept)
    moved = tuple(sorted(bad & names))
    for name in moved:
        _move(join(shards.uri, name), join(join(shards.uri, SET_ASIDE), name))
    LOG.warning(
        "%s: %d bad files set aside, %d rows of %d fewer to train on", shards.uri, len(bad), lost, shards.rows
    )
    return replace(report, set_aside=moved, rows_set_aside=lost)


def _move(source: URI, target: URI) -> None:
    """Copy and delete: the one way that all stores know."""

    def write(file: BinaryIO) -> None:
        with open_read(source) as content:
            shutil.copyfileobj(content, file, _PIECE_BYTES)

    write_atomic(target, write)
    delete(source)


def _problem(file: ShardFile, kind: str, text: str) -> FileProblem:
    return FileProblem(name=file.name, kind=kind, text=text, rows_lost=file.rows)  # type: ignore[arg-type]
