"""Find ``spark-submit`` and run it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from fatwood.errors import ClusterError, OptionError
from fatwood.submission.command import Command

__all__ = ["find_spark_submit", "run"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def find_spark_submit(environ: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """The path of ``spark-submit``: in SPARK_HOME, else of the installed PySpark, else on PATH.

    Args:
        environ: The environment.

    Returns:
        The path, and the variables it needs beside `environ`.

    Raises:
        OptionError: SPARK_HOME has none.
        ClusterError: There is none anywhere.
    """
    home = environ.get("SPARK_HOME")
    if home:
        program = Path(home, "bin", "spark-submit")
        if not program.is_file():
            text = f"SPARK_HOME: expected a folder with bin/spark-submit, received {home!r}"
            raise OptionError(
                text, hint="set it to where Spark is unpacked, or unset it to use the installed PySpark"
            )
        return str(program), {}
    found = find_spec("pyspark")
    if found is not None and found.origin is not None:
        folder = Path(found.origin).parent
        # Without SPARK_HOME the script looks for it with the python3 of PATH.
        return str(folder / "bin" / "spark-submit"), {"SPARK_HOME": str(folder)}
    on_path = shutil.which("spark-submit", path=environ.get("PATH"))
    if on_path is None:
        text = "spark-submit: there is none in SPARK_HOME, nor with an installed PySpark, nor on PATH"
        raise ClusterError(text, hint='pip install "fatwood[spark]", or set SPARK_HOME')
    return on_path, {}


def run(command: Command) -> int:
    """Run the command to its end, with this process's input and output. Signals to stop it are passed on.

    Returns:
        Its exit code; 128 and the number where a signal ended it.

    Raises:
        ClusterError: It cannot be started.
    """
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            _signal(child, number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        # A group of its own: spark-submit's JVM, stopped alone, leaves the script's Python running.
        child = subprocess.Popen(  # noqa: S603
            command.arguments, env={**os.environ, **command.environment}, start_new_session=True
        )
        for number in early:
            _signal(child, number)
        code = child.wait()
        if code != 0:
            _signal(child, signal.SIGTERM)
    except OSError as error:
        text = f"{command.program}: cannot be started: {error.strerror}"
        raise ClusterError(text) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):  # all of its group have ended
        os.killpg(child.pid, number)
