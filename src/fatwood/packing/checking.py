"""``fatwood pack --check``: every byte of an archive, and whether its interpreter starts where nothing else is."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fatwood import storage
from fatwood.errors import ClusterError, DamagedError, OptionError, StorageError
from fatwood.packing.pack import FORMAT, MANIFEST

__all__ = ["Checked", "check", "read_manifest", "unpack"]

_BLOCK = tarfile.BLOCKSIZE
_MAX_MANIFEST_BYTES = 16 << 20
_PIECE = 1 << 20
_START_SECONDS = 300.0
_PACK_AGAIN = "pack it again"
_PROBE = """
import importlib, json, platform, sys
versions = {"python": platform.python_version()}
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    versions[name] = str(getattr(module, "__version__", "?"))
kernel = None
if "fatwood" in versions:
    from fatwood.codec import kernel as kernels
    kernel = type(kernels.active()).__name__
loaded = sorted({line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "/" in line})
print(json.dumps({"prefix": sys.prefix, "path": sys.path, "versions": versions, "kernel": kernel, "loaded": loaded}))
"""
_PROBED = ("torch", "pyarrow", "pandas", "fatwood")
_SYSTEM = ("/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/", "/dev/", "/memfd:")
_DRIVER = ("libcuda.so", "libnvidia-")
"""The GPU's driver, which is always the machine's."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An archive that is well."""

    manifest: dict[str, Any]
    versions: dict[str, str]
    """What its interpreter says of itself and of the modules it imported."""
    kernel: str | None
    """The class of the kernel that Fatwood's codec uses there; None without Fatwood."""


def check(uri: storage.URI) -> Checked:
    """Read an archive's checksums, unpack it in a fresh folder, start its interpreter with no environment variable and import.

    Args:
        uri: Of the archive.

    Raises:
        StorageError: It cannot be read, or there is no room to unpack it.
        DamagedError: Its bytes are not those that were packed.
        ClusterError: It does not start, or uses files of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="fatwood-check-") as temporary:
        root = Path(temporary).resolve() / "unpacked"
        root.mkdir()
        manifest = unpack(uri, root)
        names = {part["name"] for part in manifest["parts"]}
        found = _start(root, [name for name in _PROBED if name in names])
    return Checked(manifest=manifest, versions=found["versions"], kernel=found["kernel"])


def read_manifest(uri: storage.URI) -> dict[str, Any]:
    """The manifest of an archive, without reading the rest.

    Raises:
        StorageError: The archive cannot be read.
        DamagedError: It has no manifest of this kind.
    """
    with _opened(uri) as stream:
        return _manifest(stream, uri)


def unpack(uri: storage.URI, folder: Path) -> dict[str, Any]:
    """Check every byte of an archive, then unpack it.

    Args:
        uri: Of the archive.
        folder: An empty folder.

    Returns:
        Its manifest.

    Raises:
        StorageError: It cannot be read, or there is no room for it.
        DamagedError: Its bytes are not those that were packed.
    """
    with _opened(uri) as stream:
        manifest = _manifest(stream, uri)
        for part in manifest["parts"]:
            _check_part(stream, part, uri)
        if stream.read(2 * _BLOCK + 1) != bytes(2 * _BLOCK):
            raise _damaged(uri, "the end of an archive after its last part", "something else")
    size, free = sum(part["bytes"] for part in manifest["parts"]), shutil.disk_usage(folder).free
    if size > free:
        message = (
            f"{folder}: expected {size / 1e9:.1f} GB of room to unpack {uri}, received {free / 1e9:.1f} GB"
        )
        raise StorageError(message, hint="set TMPDIR to a folder on a larger disk")
    with _opened(uri) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        tar.extractall(folder, filter="data")
    return manifest


def _start(root: Path, modules: list[str]) -> dict[str, Any]:
    program = root / "bin" / "python"
    try:
        done = subprocess.run(  # noqa: S603
            [str(program), "-c", _PROBE, *modules],
            env={},
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"the interpreter of the archive could not be run: {error}"
        raise ClusterError(message, hint=_PACK_AGAIN) from error
    if done.returncode != 0:
        message = f"the interpreter of the archive ended with code {done.returncode}:\n{done.stderr.strip()[-2000:]}"
        raise ClusterError(message, hint="install what is missing, then pack again")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    used = [*found["loaded"], *found["path"], found["prefix"]]
    foreign = [name for name in used if name and not _may_use(Path(name), root)]
    if foreign:
        message = f"the interpreter of the archive: expected it to use its own files, received {', '.join(foreign[:5])}"
        raise ClusterError(message, hint=_PACK_AGAIN)
    return found


def _may_use(file: Path, root: Path) -> bool:
    return file.is_relative_to(root) or str(file).startswith(_SYSTEM) or file.name.startswith(_DRIVER)


@contextmanager
def _opened(uri: storage.URI) -> Iterator[BinaryIO]:
    try:
        with storage.open_read(uri) as file, gzip.GzipFile(fileobj=file, mode="rb") as stream:
            yield stream  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
        raise _damaged(uri, "a tar compressed with gzip", str(error)) from error
    except OSError as error:
        message = f"{uri} cannot be unpacked: {error}"
        raise StorageError(message) from error


def _manifest(stream: BinaryIO, uri: storage.URI) -> dict[str, Any]:
    header = stream.read(_BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _damaged(uri, "a tar compressed with gzip", str(error)) from error
    if info.name != MANIFEST or not info.isreg() or info.size > _MAX_MANIFEST_BYTES:
        message = f"{uri}: expected an archive of `fatwood pack`, which begins with {MANIFEST}, received {info.name!r}"
        raise OptionError(message)
    padded = -(-info.size // _BLOCK) * _BLOCK
    content = stream.read(padded)[: info.size]
    try:
        manifest = json.loads(content)
        right = manifest["format"] == FORMAT and manifest["format_version"] == 1
        right = right and all(_is_part(part) for part in manifest["parts"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(uri, "a manifest of an environment", repr(error)) from error
    if not right:
        raise _damaged(uri, "a manifest of an environment, version 1", "another")
    checked: dict[str, Any] = manifest
    return checked


def _is_part(part: Any) -> bool:
    texts = all(isinstance(part[name], str) for name in ("name", "version", "sha256"))
    return texts and type(part["bytes"]) is int and part["bytes"] >= 0


def _check_part(stream: BinaryIO, part: dict[str, Any], uri: storage.URI) -> None:
    digest, left = hashlib.sha256(), part["bytes"]
    while left and (data := stream.read(min(left, _PIECE))):
        digest.update(data)
        left -= len(data)
    if left or digest.hexdigest() != part["sha256"]:
        received = f"{left} bytes less" if left else digest.hexdigest()
        raise _damaged(uri, f"SHA-256 {part['sha256']} of the part {part['name']}", received)


def _damaged(uri: storage.URI, expected: str, received: str) -> DamagedError:
    return DamagedError(f"{uri}: expected {expected}, received {received}", hint=_PACK_AGAIN)
