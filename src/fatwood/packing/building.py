"""What is built with pip: wheels of linked sources, and an environment from a file of requirements."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fatwood.errors import OptionError
from fatwood.packing.distributions import Environment
from fatwood.packing.interpreter import PYTHON

__all__ = ["build_wheel", "new_environment"]

_SECONDS = 3600.0
_SKIPPED = {"__pycache__", "build", "dist", "node_modules"}


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the distribution whose sources are in `source`, unless the sources are those of a wheel in `folder`.

    Fatwood's kernel must compile; without a compiler here the workers would do without it.

    Raises:
        OptionError: It cannot be built.
    """
    digest = hashlib.sha256(f"{PYTHON}\0{source}".encode())
    for file in _sources(source):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(source)}\0{len(content)}\0".encode() + content)
    place = folder / "wheels" / digest.hexdigest()[:20]
    if not any(place.glob("*.whl")):
        command = ["wheel", "--no-deps", "--wheel-dir", str(place), str(source)]
        _pip(command, f"could not build a wheel of {source}", "see pip's lines above; a C compiler is needed")
    wheel = next(place.glob("*.whl"))
    wheel.touch()
    return wheel


def new_environment(folder: Path, arguments: Sequence[str]) -> Environment:
    """A fresh virtual environment with what ``pip install`` does with `arguments`, as pip is set up on this machine.

    Raises:
        OptionError: pip ended with an error; its last lines are in the message.
    """
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "could not make an environment", None)
    command = ["--python", str(folder / "bin" / "python"), "install", "--no-compile", *arguments]
    _pip(command, "could not install", "try the same with pip install in an empty environment")
    return Environment(folder, (folder / "lib" / PYTHON / "site-packages",))


def _sources(source: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED
            and not name.startswith(".")
            and not Path(folder, name, "pyvenv.cfg").exists()
        )
        yield from (Path(folder, name) for name in sorted(names) if Path(folder, name).is_file())


def _pip(arguments: Sequence[str], failed: str, hint: str) -> None:
    quiet = ["--disable-pip-version-check", "--no-input", "--quiet"]
    _run([sys.executable, "-m", "pip", *quiet, *arguments], f"pip {failed}", hint)


def _run(command: Sequence[str], failed: str, hint: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["FATWOOD_REQUIRE_KERNEL"] = "1"
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{failed}: {error}"
        raise OptionError(message, hint=hint) from error
    if done.returncode != 0:
        message = f"{failed}:\n{(done.stderr or done.stdout).strip()[-2000:]}"
        raise OptionError(message, hint=hint)
