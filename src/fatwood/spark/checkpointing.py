"""Checkpoints on the driver: collect what the workers send, write it as one file, and read it to go on.

A checkpoint's parts are ``shared`` (network and ledger, the same for all) and ``worker-R`` for each rank (optimizer,
residual, threshold, random state, buffers). It is written when the parts of all workers that took part have come; one
that was lost on the way is left out, and its rank begins without a state of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fatwood import storage
from fatwood.errors import FatwoodError, OptionError, StorageError
from fatwood.snapshots import (
    Checkpoints,
    latest_checkpoint,
    list_snapshots,
    prune,
    read_snapshot,
    snapshot_uri,
    write_snapshot,
)
from fatwood.train import Ledger, unpack

__all__ = ["CheckpointWriter", "Resumed", "require_usable", "resume"]

LOG = logging.getLogger("fatwood.checkpoints")

_SHARED = "shared"
_END_SECONDS = 600.0
"""How long a last checkpoint may take to be written after the fit's end."""


@dataclass
class _Collected:
    """A checkpoint on its way."""

    ranks: set[int] | None = None
    """Who takes part, once a worker has said so."""
    reported: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    parts: dict[str, Path] = field(default_factory=dict)
    leader: int | None = None
    """Who sent the shared part."""

    def forget(self, rank: int) -> None:
        """A lost worker may have been alone in completing the agreement: the others played it again without it."""
        self.lost.add(rank)
        self.reported.discard(rank)
        for name in (_part(rank), *((_SHARED,) if self.leader == rank else ())):
            path = self.parts.pop(name, None)
            if path is not None:
                path.unlink(missing_ok=True)

    @property
    def complete(self) -> bool:
        return self.ranks is not None and _SHARED in self.parts and self.ranks <= self.reported | self.lost


class CheckpointWriter:
    """Collects parts and writes whole checkpoints in a thread of its own; a context manager.

    A checkpoint that cannot be written is a warning in the log ``fatwood.checkpoints``: training goes on.

    Args:
        policy: Where, and how many stay.
        about: What a run that goes on from here must agree on; JSON values.
    """

    def __init__(self, policy: Checkpoints, about: Mapping[str, Any]) -> None:
        self._policy = policy
        self._about = dict(about)
        self._collected: dict[int, _Collected] = {}
        self._away: set[int] = set()
        """Ranks that are lost and not back."""
        self._newest = -1
        self._queue: queue.Queue[tuple[int, _Collected] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write_all, name="fatwood-checkpoints", daemon=True)
        self.last: str | None = None
        """The URI of the last one that was written."""
        self.written = 0
        """How many were written."""

    def add_part(self, rank: int, name: str, path: Path) -> None:
        """A part has come.

        Args:
            rank: Whose.
            name: Of the blob: ``checkpoint-<agreements>-own`` or ``-shared``.
            path: Where it is; owned from now on.
        """
        _, number, kind = name.split("-")
        if int(number) <= self._newest:
            path.unlink(missing_ok=True)
            return
        found = self._at(int(number))
        if kind == _SHARED:
            found.leader = rank
        found.parts[_SHARED if kind == _SHARED else _part(rank)] = path

    def reported(self, rank: int, agreements: int, ranks: Sequence[int]) -> None:
        """A worker has sent all its parts of a checkpoint in which these ranks take part."""
        if agreements > self._newest:
            found = self._at(agreements)
            found.ranks = set(ranks)
            found.reported.add(rank)
            found.lost.discard(rank)
            self._hand_over()

    def lost(self, rank: int) -> None:
        """A worker was lost; what it has not sent will not come, and what it has sent may never have counted."""
        self._away.add(rank)
        for found in self._collected.values():
            found.forget(rank)
        self._hand_over()

    def returned(self, rank: int) -> None:
        """Another process has taken a lost worker's place; it takes part in the checkpoints from now on."""
        self._away.discard(rank)

    def __enter__(self) -> CheckpointWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join(_END_SECONDS)

    def _at(self, agreements: int) -> _Collected:
        if agreements not in self._collected:  # of one that was lost before anything of it came, nothing will
            self._collected[agreements] = _Collected(lost=set(self._away))
        return self._collected[agreements]

    def _hand_over(self) -> None:
        """Give the newest complete checkpoint to the thread, and forget those before it."""
        complete = [number for number, found in self._collected.items() if found.complete]
        if not complete:
            return
        newest = max(complete)
        for number in [number for number in self._collected if number <= newest]:
            found = self._collected.pop(number)
            if number == newest:
                self._newest = number
                self._queue.put((number, found))
            else:
                _remove(found)

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            number, found = item
            uri = snapshot_uri(self._policy.uri, number)
            try:
                self._write(uri, number, found)
            except FatwoodError as error:
                LOG.warning("the checkpoint after %d agreements was not written: %s", number, error)
            finally:
                _remove(found)

    def _write(self, uri: storage.URI, number: int, found: _Collected) -> None:
        manifest = {"about": self._about, "agreements": number}
        storage.write_atomic(uri, lambda file: write_snapshot(file, manifest=manifest, parts=found.parts))
        self.last = str(uri)
        self.written += 1
        LOG.info("wrote %s", uri)
        try:
            prune(self._policy.uri, self._policy.keep)
        except FatwoodError as error:
            LOG.warning("older checkpoints were not deleted: %s", error)


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A checkpoint, ready to go on from."""

    uri: str
    about: Mapping[str, Any]
    network: Mapping[str, Any]
    """The network's state dict."""
    ledger: Ledger
    states: Mapping[int, Path]
    """Each rank's own state, as a local file."""

    @property
    def agreements(self) -> int:
        """Over the model's life, before it."""
        return self.ledger.agreements

    def require(self, about: Mapping[str, Any]) -> None:
        """Check that the fit that was called is the one that was broken off.

        Args:
            about: As for :class:`CheckpointWriter`.

        Raises:
            OptionError: Something differs; names it, with both values.
        """
        for name, value in about.items():
            if self.about.get(name) != value:
                text = f"{name}: expected {self.about.get(name)!r} as in {self.uri}, received {value!r}"
                hint = "a run goes on with the arguments, the network and the rows that it began with"
                raise OptionError(text, hint=hint)


def resume(uri: str | storage.Location, directory: Path) -> Resumed:
    """Read a checkpoint.

    Args:
        uri: Of a checkpoint, or of a folder of them: then the newest.
        directory: An empty local directory for its parts.

    Raises:
        StorageError: There is none, or it is damaged.
    """
    found = uri if str(uri).endswith(".fwc") else latest_checkpoint(uri)
    if found is None:
        text = f"resume_from: expected a checkpoint or a folder with one, received {uri}, where there is none"
        hint = "resume_from=fatwood.latest_checkpoint(folder) is None where there is none, and begins anew"
        raise StorageError(text, hint=hint)
    with storage.open_read(found) as file:
        snapshot = read_snapshot(file, directory)
    try:
        about = snapshot.manifest["about"]
        shared = unpack(snapshot.parts[_SHARED].read_bytes())
        states = {
            int(name.removeprefix("worker-")): path
            for name, path in snapshot.parts.items()
            if name.startswith("worker-")
        }
        ledger = Ledger.from_json(shared["ledger"])
        return Resumed(uri=str(found), about=about, network=shared["network"], ledger=ledger, states=states)
    except (KeyError, TypeError, ValueError, FatwoodError) as error:
        text = f"{found}: expected the parts of a checkpoint, received {sorted(snapshot.parts)}: {error}"
        raise StorageError(text, hint="resume from an older one") from error


def require_usable(policy: Checkpoints, resumed: Resumed | None) -> None:
    """Check, before any Spark job, that checkpoints can be written where they are to go and would be the newest there.

    Args:
        policy: Where to.
        resumed: What the fit goes on from, if anything.

    Raises:
        OptionError: The folder has checkpoints that this fit does not go on from: they would pass for newer ones.
        StorageError: It cannot be written to.
    """
    newer = [uri for step, uri in list_snapshots(policy.uri) if resumed is None or step > resumed.agreements]
    if newer:
        text = f"checkpoints: expected a folder without checkpoints after the one to resume from, received {newer[-1]}"
        hint = f"pass resume_from={str(newer[-1])!r} to go on from it, choose another folder, or delete it"
        raise OptionError(text, hint=hint)
    probe = storage.join(policy.uri, ".fatwood-probe")
    storage.write_atomic(probe, _write_probe)
    storage.delete(probe)


def _write_probe(file: BinaryIO) -> None:
    file.write(b"fatwood")


def _part(rank: int) -> str:
    return f"worker-{rank}"


def _remove(found: _Collected) -> None:
    for path in found.parts.values():
        path.unlink(missing_ok=True)
