"""A real S3 server on loopback, for tests: moto's, in a process of its own.

::

    with s3_server() as s3:
        write_atomic(location(f"{s3.uri}/model", s3.options), write)

Needs ``pip install 'moto[s3]' flask flask-cors s3fs``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fatwood.errors import ClusterError
from fatwood.testing.daemons import Daemon

__all__ = ["S3", "s3_server"]

_START_SECONDS = 60.0
_HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class S3:
    """A running server, from :func:`s3_server`."""

    uri: str
    """Of a bucket: ``s3://fatwood``."""
    options: Mapping[str, Any]
    """``storage_options`` for it: address, key and secret."""
    endpoint: str
    """``http://127.0.0.1:port``."""


@contextmanager
def s3_server(*, parent: Path | None = None) -> Iterator[S3]:
    """A server that keeps objects in memory, with an empty bucket; it ends with this process.

    Args:
        parent: Where its folder is made; None for that of temporary files.

    Raises:
        ClusterError: A package is missing, or the server did not come up.
    """
    missing = [name for name in ("moto", "flask", "flask_cors", "s3fs") if find_spec(name) is None]
    if missing:
        message = f"an S3 server for tests: expected the packages moto, flask, flask-cors and s3fs, {', '.join(missing)} is missing"
        raise ClusterError(message, hint="pip install 'moto[s3]' flask flask-cors s3fs")
    folder = Path(tempfile.mkdtemp(prefix="fatwood-s3-", dir=parent))
    command = [sys.executable, "-m", "moto.server", "-H", _HOST, "-p", "0"]
    keys = {"AWS_ACCESS_KEY_ID": "fatwood", "AWS_SECRET_ACCESS_KEY": "secret-of-tests"}
    server = Daemon(
        "S3 server", command, folder=folder, environment={**os.environ, **keys, "PYTHONUNBUFFERED": "1"}
    )
    try:
        endpoint = server.wait_for(rf"Running on (http://{_HOST}:\d+)", seconds=_START_SECONDS)
        options = {
            "key": keys["AWS_ACCESS_KEY_ID"],
            "secret": keys["AWS_SECRET_ACCESS_KEY"],
            "endpoint_url": endpoint,
            "client_kwargs": {"region_name": "eu-west-1"},
        }
        _make_bucket("fatwood", options)
        yield S3(uri="s3://fatwood", options=options, endpoint=endpoint)
    finally:
        server.close()


def _make_bucket(name: str, options: Mapping[str, Any]) -> None:
    import fsspec

    fsspec.filesystem("s3", **options).mkdir(name)
