"""The disk is asked early, never after the end, and what is written after it is written all the same."""

from __future__ import annotations

import os

from fatwood.archive import early
from fatwood.archive.early import EarlySync


def test_it_syncs_while_the_file_is_written_and_not_afterwards(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(early.os, "fdatasync", synced.append)
    with open(tmp_path / "file", "wb") as file:
        with EarlySync(file) as sync:
            sync.wrote(early._EVERY_BYTES - 1)
            assert synced == []
            sync.wrote(1)
            sync.wrote(early._EVERY_BYTES - 1)  # left for the next call, which comes after the end
        assert synced == [file.fileno()]
        sync.wrote(early._EVERY_BYTES)
        assert synced == [file.fileno()]


def test_nothing_is_asked_for_what_is_no_file_on_a_disk():
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb") as file, EarlySync(file) as sync:
        sync.wrote(2 * early._EVERY_BYTES)
        assert sync._running is None
