"""``fatwood pack``: what belongs into the archive, whether it will run where it goes, and the writing of it."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, BinaryIO

from fatwood import storage
from fatwood.errors import DamagedError, OptionError, StorageError
from fatwood.packing.building import build_wheel, new_environment
from fatwood.packing.distributions import SPARKS_OWN, Environment, Installed, installed, torch_build
from fatwood.packing.interpreter import interpreter_part
from fatwood.packing.part import Entry, PackedPart, Part, forget_old, pack_part, write_entries
from fatwood.packing.target import Target, check_binaries, parse_target

__all__ = ["FORMAT", "MANIFEST", "Packed", "current_environment", "pack", "pack_parts"]

FORMAT = "fatwood-environment"
MANIFEST = "manifest.json"
_ENDINGS = (".tar.gz", ".tgz")
_LEFT_OUT = SPARKS_OWN | {"pip"}
_END = bytes(1024)
_LIBC = (
    "ld-linux",
    "libc.so",
    "libm.so",
    "libdl.so",
    "libpthread.so",
    "librt.so",
    "libutil.so",
    "libresolv.so",
)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An archive that was written."""

    uri: str
    sha256: str
    bytes: int
    seconds: float
    parts: tuple[PackedPart, ...]
    manifest: dict[str, Any]


def pack(
    output: storage.URI,
    *,
    requirements: Path | None = None,
    platform: str | None = None,
    torch: str | None = None,
    exclude: Sequence[str] = (),
    drop_tests: bool = False,
    level: int = 1,
    cache: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Packed:
    """Pack this environment, or a new one, with its interpreter and with Fatwood.

    Args:
        output: Where to write; ends with ``.tar.gz`` or ``.tgz``, of which alone Spark keeps modes and links.
        requirements: A file of requirements for pip, to pack what it names instead of this environment.
        platform: The machines it is for, such as ``manylinux_2_28_x86_64``; None for such as this one.
        torch: ``"cpu"`` or ``"cuda"``, to check which build of torch it is; None for either.
        exclude: Names of distributions to leave out.
        drop_tests: Leave out folders of tests.
        level: Of gzip, 0 to 9. Higher ones take many times longer for little.
        cache: Where packed parts are kept; None for ``fatwood/pack`` in the user's folder of caches.
        tell: Called with a line for each part.

    Returns:
        What was written.

    Raises:
        OptionError: An option cannot work, or the archive would not on the machines it is for.
        ClusterError: A tool failed, or a binary is broken.
        StorageError: A file cannot be read or written.
    """
    if not str(storage.absolute(output)).endswith(_ENDINGS):
        message = f"output: expected a name that ends with .tar.gz or .tgz, received {output}"
        raise OptionError(
            message, hint="Spark unpacks .tar and .zip in Java, and the interpreter cannot be run then"
        )
    if not 0 <= level <= 9 or torch not in (None, "cpu", "cuda"):
        message = f"expected level 0 to 9 and torch cpu or cuda, received {level} and {torch}"
        raise OptionError(message)
    began = time.perf_counter()
    target, cache = parse_target(platform), cache or default_cache()
    with tempfile.TemporaryDirectory(prefix="fatwood-pack-") as temporary:
        folder = Path(temporary)
        try:
            chosen = _chosen(requirements, exclude, folder, cache, tell)
            build = _checked_build(torch, chosen)
            folder.joinpath("python").mkdir()
            parts = [interpreter_part(folder / "python")]
            parts += [one.part(drop_tests=drop_tests) for one in chosen]
        except OSError as error:
            raise _storage_error(error) from error
        packed = pack_parts(
            output, parts, target=target, torch_build=build, cache=cache, level=level, tell=tell
        )
    return replace(packed, seconds=time.perf_counter() - began)


def pack_parts(
    output: storage.URI,
    parts: Sequence[Part],
    *,
    target: Target,
    torch_build: str | None,
    cache: Path,
    level: int,
    tell: Callable[[str], None],
) -> Packed:
    """Write an archive of `parts`; the arguments are those of :func:`pack`, parsed.

    Raises:
        OptionError: A part would not work on the machines it is for.
        StorageError: A file cannot be read or written.
    """
    began, packed = time.perf_counter(), []
    try:
        forget_old(cache)
        for part in parts:
            done = pack_part(part, cache, level=level)
            how = "reused" if done.reused else f"{done.seconds:.1f} s"
            tell(
                f"{done.name} {done.version}: {done.bytes / 1e6:.1f} MB, packed {done.packed_bytes / 1e6:.1f} MB, {how}"
            )
            packed.append(done)
    except OSError as error:
        raise _storage_error(error) from error
    needs = [(part.name, part.needs, set(part.machines)) for part in packed]
    glibc = check_binaries(target, needs)
    manifest = _manifest(packed, target, glibc, torch_build)
    sha256, size = hashlib.sha256(), 0

    def write(file: BinaryIO) -> None:
        nonlocal size
        content = json.dumps(manifest, indent=1, sort_keys=True).encode()
        write_entries([Entry(MANIFEST, content=content)], file, level=9)
        for part in packed:
            _append(part, cache, file)
        write_entries([], file, level=9, end=_END)
        size = file.tell()
        file.flush()

    storage.write_atomic(output, lambda file: write(_Tee(file, sha256)))  # type: ignore[arg-type]
    return Packed(
        uri=str(output),
        sha256=sha256.hexdigest(),
        bytes=size,
        seconds=time.perf_counter() - began,
        parts=tuple(packed),
        manifest=manifest,
    )


def current_environment() -> Environment:
    """The environment that runs this code."""
    paths = sysconfig.get_paths()
    return Environment(Path(sys.prefix), (Path(paths["purelib"]), Path(paths["platlib"])))


def default_cache() -> Path:
    """Where packed parts are kept; the folder may be removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fatwood" / "pack"


def _chosen(
    requirements: Path | None,
    exclude: Sequence[str],
    folder: Path,
    cache: Path,
    tell: Callable[[str], None],
) -> list[Installed]:
    """The distributions to pack, by name; linked ones as built wheels."""
    here = {one.name: one for one in installed(current_environment())}
    if "fatwood" not in here:
        message = f"fatwood: expected it to be installed in {sys.prefix}, received none"
        raise OptionError(
            message, hint="install it there with pip, and run that environment's `fatwood pack`"
        )
    found = here
    if requirements is not None:
        needed = [line for line in distribution("fatwood").requires or [] if "extra ==" not in line]
        arguments = ["--requirement", str(requirements), *needed]
        began = time.perf_counter()
        new = installed(new_environment(folder / "environment", arguments))
        tell(
            f"pip installed {len(new)} distributions of {requirements} in {time.perf_counter() - began:.1f} s"
        )
        found = {one.name: one for one in new} | {"fatwood": here["fatwood"]}
    unknown = sorted(set(exclude) - set(found) - _LEFT_OUT)
    if unknown:
        near = difflib.get_close_matches(unknown[0], found, n=1)
        message = f"exclude: expected names of distributions that are there, received {', '.join(unknown)}"
        raise OptionError(message, hint=f"did you mean {near[0]}?" if near else "`pip list` shows the names")
    for name in sorted(_LEFT_OUT & set(found)):
        why = (
            "Spark brings its own, which a second one could hide"
            if name != "pip"
            else "workers install nothing"
        )
        tell(f"{name} {found[name].version}: left out: {why}")
    kept = [one for name, one in found.items() if name not in _LEFT_OUT and name not in exclude]
    linked = [one for one in kept if one.editable is not None]
    if linked:
        wheels = [str(build_wheel(one.editable, cache)) for one in linked if one.editable is not None]
        built = installed(new_environment(folder / "built", ["--no-deps", *wheels]))
        kept = [one for one in kept if one.editable is None] + built
    return sorted(kept, key=lambda one: one.name)


def _checked_build(wanted: str | None, chosen: Sequence[Installed]) -> str | None:
    build = torch_build(chosen)
    if wanted is not None and (build is None or (build == "cpu") != (wanted == "cpu")):
        received = (
            "no torch" if build is None else f"the build for {'CUDA ' if build != 'cpu' else ''}{build}"
        )
        message = f"torch: expected a build for {wanted}, received {received}"
        hint = "install the other build of torch first; one for CUDA also runs on machines without a GPU, and is larger"
        raise OptionError(message, hint=hint)
    return build


def _manifest(
    parts: Sequence[PackedPart], target: Target, glibc: str, torch_build: str | None
) -> dict[str, Any]:
    inside = {name for part in parts for name in part.provides}
    outside = {name for part in parts for name in part.libraries} - inside
    return {
        "format": FORMAT,
        "format_version": 1,
        "python": next((part.version for part in parts if part.name == "python"), None),
        "platform": str(target),
        "glibc_needed": glibc,
        "torch_build": torch_build,
        "libraries_needed": sorted(name for name in outside if not name.startswith(_LIBC)),
        "parts": [
            {
                "name": part.name,
                "version": part.version,
                "bytes": part.bytes,
                "sha256": part.sha256,
                "files": part.files,
            }
            for part in parts
        ],
    }


def _append(part: PackedPart, cache: Path, file: BinaryIO) -> None:
    digest = hashlib.sha256()
    with cache.joinpath(part.file).open("rb") as packed:
        while data := packed.read(1 << 20):
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != part.packed_sha256:
        message = f"{cache / part.file}: expected SHA-256 {part.packed_sha256}, received {digest.hexdigest()}"
        raise DamagedError(message, hint=f"remove the folder {cache}: it is made again")


class _Tee:
    """A file whose bytes are digested while they are written."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()


def _storage_error(error: OSError) -> StorageError:
    return StorageError(f"packing: {error}", hint="is the disk full, or a file not readable?")
