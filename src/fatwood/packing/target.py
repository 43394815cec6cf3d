"""The machines that an archive is for: the CPU and the glibc that they have, as a tag of a wheel's platform says it."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from fatwood.errors import OptionError
from fatwood.packing.elf import Version

__all__ = ["Target", "check_binaries", "parse_target"]

_MACHINES = {
    "x86_64": "EM_X86_64",
    "aarch64": "EM_AARCH64",
    "ppc64le": "EM_PPC64",
    "s390x": "EM_S390",
    "riscv64": "EM_RISCV",
}
_OLD = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_ELSEWHERE = "run `fatwood pack` on a machine, or in a container image, with the operating system and CPU of the cluster"


@dataclass(frozen=True)
class Target:
    """What the machines have."""

    glibc: Version
    machine: str

    def __str__(self) -> str:
        """The tag, such as ``manylinux_2_28_x86_64``."""
        return f"manylinux_{'_'.join(map(str, self.glibc))}_{self.machine}"


def parse_target(tag: str | None) -> Target:
    """The machines that `tag` names; None for such as this one.

    Args:
        tag: Such as ``manylinux_2_28_x86_64`` or ``manylinux2014_x86_64``.

    Raises:
        OptionError: It is no such tag, or this machine has another operating system or CPU.
    """
    here, (library, version) = platform.machine(), platform.libc_ver()
    if sys.platform != "linux" or library != "glibc":
        message = f"packing: expected to run on Linux with glibc, received {sys.platform} {library}"
        raise OptionError(message, hint=_ELSEWHERE)
    if tag is None:
        # Of the running kernel's C library, not of the one that the interpreter was linked with.
        current = os.confstr("CS_GNU_LIBC_VERSION") or f"glibc {version}"
        return Target(tuple(map(int, current.split()[1].split(".")[:2])), here)
    found = re.fullmatch(r"(?:manylinux_(\d+)_(\d+)|(manylinux1|manylinux2010|manylinux2014))_(\w+)", tag)
    if found is None:
        message = f"platform: expected a tag such as manylinux_2_28_{here}, received {tag!r}"
        raise OptionError(message, hint=_ELSEWHERE)
    if found[4] != here:
        message = f"platform: expected {here}, the CPU of this machine, received {found[4]} in {tag}"
        raise OptionError(message, hint=_ELSEWHERE)
    return Target(_OLD[found[3]] if found[3] else (int(found[1]), int(found[2])), here)


def check_binaries(target: Target, parts: Iterable[tuple[str, dict[str, tuple[str, str]], set[str]]]) -> str:
    """Check that everything in the archive runs on the target.

    Args:
        target: What the machines have.
        parts: Of each part its name, its newest needs as ``{"GLIBC": ("2.28", file)}``, and the CPUs of its binaries.

    Returns:
        The glibc that is needed, such as ``2.28``.

    Raises:
        OptionError: A part is for another CPU, or needs a newer glibc; the worst ones are named.
    """
    newest: Version = (0, 0)
    wanted, too_new = _MACHINES.get(target.machine), []
    for name, needs, machines in parts:
        if wanted is not None and machines - {wanted}:
            message = f"{name}: expected binaries for {wanted}, received {', '.join(sorted(machines))}"
            raise OptionError(message, hint=_ELSEWHERE)
        if "GLIBC" in needs:
            text, file = needs["GLIBC"]
            version = tuple(map(int, text.split(".")))
            newest = max(newest, version[:2])
            if version > target.glibc:
                too_new.append((version, f"{name} ({file}) needs glibc {text}"))
    if too_new:
        lines = "; ".join(text for _, text in sorted(too_new, reverse=True)[:5])
        expected = ".".join(map(str, target.glibc))
        message = f"platform {target}: expected binaries that run with glibc {expected}, received: {lines}"
        hint = f"for the interpreter use a Python that was built for old systems; else {_ELSEWHERE}, or choose older wheels"
        raise OptionError(message, hint=hint)
    return ".".join(map(str, newest))
