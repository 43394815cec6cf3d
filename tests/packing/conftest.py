"""Small environments that look as pip makes them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fatwood.packing.distributions import Environment
from fatwood.packing.interpreter import PYTHON

Install = Callable[..., Environment]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Puts a distribution with these files in an environment under `tmp_path`."""
    prefix = tmp_path / "made"
    site = prefix / "lib" / PYTHON / "site-packages"

    def put(
        name: str, files: Mapping[str, bytes], *, version: str = "1.0", unlisted: tuple[str, ...] = ()
    ) -> Environment:
        info = f"{name}-{version}.dist-info"
        everything = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        }
        lines = []
        for path, content in everything.items():
            place = site / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            if path not in unlisted:
                lines.append(f"{path},sha256={digest},{len(content)}\n")
        lines.append(f"{info}/RECORD,,\n")
        (site / info / "RECORD").write_text("".join(lines))
        return Environment(prefix, (site,))

    return put
