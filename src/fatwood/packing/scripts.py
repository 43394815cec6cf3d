"""Scripts that pip made for one place, changed so that they start from any."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fatwood.errors import OptionError
from fatwood.packing.interpreter import PYTHON

__all__ = ["relative_script"]

_EVERYWHERE = (b"/bin/sh", b"/bin/bash", b"/usr/bin/env")
_BODY = re.compile(rb"\A#!/bin/sh\n'''exec' (?P<program>.+) \"\$0\" \"\$@\"\n' '''\n")
"""What pip writes when the path is too long for a first line."""
# To the shell two words and the rest; to Python a string, and then the script.
_HEAD = f"""#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/{PYTHON}" "$0" "$@"
' '''
"""


def relative_script(name: str, place: Path, prefix: Path) -> bytes | None:
    """The script at `place` with a head that starts the interpreter beside it.

    Args:
        name: Of the distribution, for messages.
        place: The file.
        prefix: Of the environment that it was made for.

    Returns:
        None for a file that can stay as it is.

    Raises:
        OptionError: It names a program that other machines do not have.
    """
    content = place.read_bytes()
    if not content.startswith(b"#!"):
        return None
    found = _BODY.match(content)
    first, _, rest = content[2:].partition(b"\n")
    if found is not None:
        first, rest = found["program"].strip(b'"'), content[found.end() :]
    program = first.strip().split(b" ")[0] if found is None else first
    if found is None and program in _EVERYWHERE:
        return None
    ours = {str(prefix), sys.prefix, sys.base_prefix}
    if any(program.decode(errors="replace").startswith(f"{one}/") for one in ours):
        return _HEAD.encode() + rest
    message = f"{name}: expected {place} to start this environment's Python, received {program.decode(errors='replace')}"
    raise OptionError(
        message, hint=f"install {name} again in this environment, or leave it out with --exclude"
    )
