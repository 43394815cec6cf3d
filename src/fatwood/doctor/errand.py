"""What a task of the examination does with fatwood itself: it calls the driver and its peers, and tries the storage."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from fatwood import storage
from fatwood.doctor.station import visit
from fatwood.errors import FatwoodError

__all__ = ["run", "try_storage"]

_MAX_BYTES = 1 << 16


def run(order: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the network and of the storage, as seen from here.

    Args:
        order: Where the driver listens, the secret in hexadecimal digits, and how long all may take; the storage and its sample.
    """
    uri, sample = order.get("storage"), order.get("storage_sample")
    return {
        "storage": None if uri is None else try_storage(uri, sample),
        "network": visit(order),
    }


def try_storage(uri: str, sample: str | None = None) -> dict[str, Any]:
    """Write, read and delete a small file.

    Args:
        uri: A folder.
        sample: The name of a file that the driver has written there, to be read.

    Returns:
        ``error`` is None where all of it worked.
    """
    text = secrets.token_hex(16).encode()
    place = storage.join(uri, f"fatwood-doctor-{text.decode()}")
    try:
        if sample is not None:
            storage.read_bytes(storage.join(uri, sample), max_bytes=_MAX_BYTES)
        storage.write_atomic(place, lambda file: file.writelines([text]))
        try:
            found = storage.read_bytes(place, max_bytes=_MAX_BYTES)
        finally:
            storage.delete(place)
    except FatwoodError as error:
        return {"uri": uri, "error": error.message}
    return {"uri": uri, "error": None if found == text else "other bytes were read than were written"}
