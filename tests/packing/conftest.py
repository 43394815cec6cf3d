"""Small environments that look as pip makes them, and this environment, packed once."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import requires
from pathlib import Path

import pytest

from fatwood.packing import Packed, pack
from fatwood.packing.distributions import SPARKS_OWN, Environment, installed
from fatwood.packing.interpreter import PYTHON
from fatwood.packing.pack import current_environment

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


def needed(name: str, there: set[str], known: set[str]) -> None:
    """Adds `name` to what is known, and what of it is there that it needs without extras."""
    if name in there - known:
        known.add(name)
        for line in requires(name) or []:
            found = re.match(r"[\w.-]+", line)
            if "extra ==" not in line and found is not None:
                needed(re.sub(r"[-_.]+", "-", found[0]).lower(), there, known)


@pytest.fixture(scope="session")
def unneeded() -> Sequence[str]:
    there = {one.name for one in installed(current_environment())}
    known: set[str] = set()
    needed("fatwood", there, known)
    needed("pandas", there, known)
    return sorted(there - known - SPARKS_OWN)


@pytest.fixture(scope="session")
def real(
    tmp_path_factory: pytest.TempPathFactory, unneeded: Sequence[str]
) -> Iterator[tuple[Path, Packed, list[str]]]:
    """The folder of ``environment.tar.gz``, what it is, and what was told."""
    folder, lines = tmp_path_factory.mktemp("packed"), []
    cache = folder / "cache"
    done = pack(
        folder / "environment.tar.gz", exclude=unneeded, drop_tests=True, cache=cache, tell=lines.append
    )
    yield folder, done, lines
    shutil.rmtree(folder)
