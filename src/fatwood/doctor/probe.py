"""What one process knows of itself and its machine: plain values, gathered with the standard library alone.

The source of this file is sent to the executors and run by their Python, so that it tells what is wrong also where
fatwood, PyTorch or Arrow is missing there, or Python is older than PySpark allows. Nothing here raises because a machine
lacks something; what cannot be known is None.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

__all__ = ["PACKAGES", "gather", "report"]

PACKAGES = ("cloudpickle", "fatwood", "numpy", "pandas", "pyarrow", "pyspark", "torch")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CGROUPS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
_LOGIND = ("usr/lib/systemd/logind.conf.d", "run/systemd/logind.conf.d", "etc/systemd/logind.conf.d")
_NO_LIMIT_BYTES = 1 << 60
_IMPORTS_SECONDS = 90.0
_NVIDIA_SECONDS = 10.0
_IMPORTS = """
import json, numpy, pyarrow, torch
cuda = torch.cuda.is_available()
numpy.zeros(1); torch.zeros(1).numpy()
print("fatwood:" + json.dumps({
    "cuda_available": cuda, "gpus": torch.cuda.device_count() if cuda else 0, "cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version() if cuda else None,
}))
"""


def gather(order: dict[str, Any], root: str = "/") -> dict[str, Any]:
    """The facts of this process.

    Args:
        order: ``quick`` leaves out what takes more than some milliseconds; ``jvm`` is the process of the executor's JVM
            and ``local_dirs`` are folders to look at besides those of the environment.
        root: Where the system's files are.
    """
    jvm = _jvm(order.get("jvm"), root)
    facts: dict[str, Any] = {
        "hostname": socket.gethostname(),
        "executor": jvm["executor"],
        "address": jvm["address"],
        "jvm": order.get("jvm"),
        "java": jvm["java"],
        "spark": _spark_of_the_environment(),
        "pid": os.getpid(),
        "user": _user(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "platform": platform.platform(),
        "system": sys.platform,
        "machine": platform.machine(),
        "glibc": platform.libc_ver()[1] or None,
        "packages": {name: _version(name) for name in PACKAGES},
        "disks": [_disk(kind, path) for kind, path in _folders(order.get("local_dirs", ()))],
        "shm_bytes": _size(os.path.join(root, "dev/shm")),
        "open_files": _open_files(),
        "ram_bytes": _ram(),
        "cgroup_bytes": _cgroup(root),
        "cores": _cores(),
        "threads": {name: os.environ.get(name) for name in _THREADS},
        "kill_user_processes": _kill_user_processes(root),
        "time": time.time(),
    }
    if not order.get("quick"):
        facts["distributions"] = _distributions()
        facts["nvidia"] = _nvidia()
        facts["imports"] = _imports()
    return facts


def report(order: dict[str, Any]) -> dict[str, Any]:
    """What a task answers: the facts, then what its own fatwood finds out about the network and the storage.

    Of the tasks of one executor, which run side by side, the first tells all and the others only how they reach whom.
    """
    marker = os.path.join(_temporary(), "fatwood-doctor-{nonce}-{jvm}".format(**order))
    began = time.monotonic()
    first = True
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        first = False
    except OSError:
        marker = ""
    try:
        # the errand first: all tasks wait for each other in it, and importing PyTorch takes long
        found: dict[str, Any] = {"first": first, "number": order["number"]}
        try:
            from fatwood.doctor.errand import run

            found.update(run(order))
        except Exception as error:
            found["errand_error"] = f"{type(error).__name__}: {error}"
        facts = dict(gather(dict(order, quick=not first)), **found)
        # so that the tasks spread: a slot that is free at once would be given the next one, too
        time.sleep(max(0.0, order["hold_seconds"] - (time.monotonic() - began)))
        return facts
    finally:
        if first and marker:
            with contextlib.suppress(OSError):
                os.unlink(marker)


def _read(path: str) -> str | None:
    try:
        with open(path, errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return None


def _jvm(pid: int | None, root: str) -> dict[str, str | None]:
    """What the command line of the executor's JVM says, and the release file of its Java."""
    found: dict[str, str | None] = {"executor": None, "address": None, "java": None}
    if pid is None:
        return found
    words = (_read(os.path.join(root, f"proc/{pid}/cmdline")) or "").split("\0")
    for option, name in (("--executor-id", "executor"), ("--hostname", "address")):
        if option in words[:-1]:
            found[name] = words[words.index(option) + 1]
    with contextlib.suppress(OSError):
        java = os.path.realpath(os.path.join(root, f"proc/{pid}/exe"))
        release = _read(os.path.join(os.path.dirname(os.path.dirname(java)), "release")) or ""
        version = re.search(r'JAVA_VERSION="([^"]+)"', release)
        found["java"] = version.group(1) if version else None
    return found


def _spark_of_the_environment() -> str | None:
    try:
        names = os.listdir(os.path.join(os.environ["SPARK_HOME"], "jars"))
    except (KeyError, OSError):
        return None
    found = [re.match(r"spark-core_[\d.]+-([\d.]+)", name) for name in names]
    return next((match.group(1).rstrip(".") for match in found if match), None)


def _user() -> str | None:
    try:
        import getpass

        return getpass.getuser()
    except Exception:
        return None


def _version(name: str) -> str | None:
    try:
        from importlib.metadata import version

        return version(name)
    except Exception:
        return None


def _distributions() -> dict[str, str]:
    try:
        from importlib.metadata import distributions

        named = ((found.metadata["Name"], found.version) for found in distributions())
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in named if name}
    except Exception:
        return {}


def _folders(local_dirs: Any) -> list[tuple[str, str]]:
    named = [("temporary files", _temporary())]
    given = [os.environ.get(name, "") for name in ("SPARK_EXECUTOR_DIRS", "LOCAL_DIRS", "SPARK_LOCAL_DIRS")]
    paths = next((re.split("[,:]", value) for value in given if value), list(local_dirs))
    return named + [("spark.local.dir", path) for path in paths if path]


def _temporary() -> str:
    """The folder for temporary files that was asked for; `tempfile` would silently take another when it is full."""
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108


def _disk(kind: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": kind, "path": path, "free_bytes": None, "writable": False, "error": None}
    try:
        import shutil

        found["free_bytes"] = shutil.disk_usage(path).free
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"fatwood" * 1000)
            file.flush()
        found["writable"] = True
    except OSError as error:
        found["error"] = str(error)
    return found


def _size(path: str) -> int | None:
    try:
        import shutil

        return shutil.disk_usage(path).total
    except OSError:
        return None


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else int(soft)


def _ram() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup(root: str) -> int | None:
    for name in _CGROUPS:
        text = (_read(os.path.join(root, name)) or "").strip()
        if text.isdigit() and int(text) < _NO_LIMIT_BYTES:
            return int(text)
    return None


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _kill_user_processes(root: str) -> str | None:
    """Logind's setting as its files say it, the last one first; None where there is no logind."""
    main = os.path.join(root, "etc/systemd/logind.conf")
    paths = []
    for folder in _LOGIND:
        full = os.path.join(root, folder)
        if os.path.isdir(full):
            paths += [os.path.join(full, name) for name in sorted(os.listdir(full)) if name.endswith(".conf")]
    if not paths and not os.path.exists(main):
        return None
    found = "no"
    for path in [main, *paths]:
        for value in re.findall(r"(?mi)^\s*KillUserProcesses\s*=\s*(\S+)", _read(path) or ""):
            found = "yes" if value.lower() in ("yes", "true", "1", "on") else "no"
    lingers = os.path.exists(os.path.join(root, "var/lib/systemd/linger", _user() or "nobody"))
    return "lingering" if found == "yes" and lingers else found


def _run(command: list[str], seconds: float) -> tuple[int | None, str]:
    try:
        done = subprocess.run(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no end within {seconds:.0f} s"
    except OSError as error:
        return None, str(error)
    return done.returncode, done.stdout.decode(errors="replace")


def _nvidia() -> dict[str, Any] | None:
    """What the driver of the GPUs says; None where there is none."""
    code, text = _run(["nvidia-smi"], _NVIDIA_SECONDS)
    if code != 0:
        return None
    found = {
        name: re.search(pattern, text)
        for name, pattern in (
            ("driver", r"Driver Version:\s*([\d.]+)"),
            ("cuda", r"CUDA Version:\s*([\d.]+)"),
        )
    }
    return {name: match.group(1) if match else None for name, match in found.items()}


def _imports() -> dict[str, Any]:
    """Import what a fit needs, in a process of its own: it may crash, and its memory is given back."""
    code, text = _run([sys.executable, "-c", _IMPORTS], _IMPORTS_SECONDS)
    answer = re.findall(r"(?m)^fatwood:(.*)$", text)
    if code == 0 and answer:
        return dict(json.loads(answer[-1]), error=None)
    lines = text.strip().splitlines() or [f"ended with code {code}"]
    return {"error": lines[-1][:500]}
