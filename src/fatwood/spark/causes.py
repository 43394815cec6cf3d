"""What typical failures say of themselves: how each is recognised, its cause in a sentence, and what to do.

The texts are those of Spark, its cluster managers, Python, PyTorch, CUDA and the system; ``docs/how-to/troubleshooting.md`` has a
row for each. An error that is recognised reads::

    the executors run Python 3.9, the driver Python 3.11
    hint: set PYSPARK_PYTHON ...

    the Spark job failed: ...          <- the original, whole
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from fatwood.errors import FatwoodError, ShippingError, UserCodeError, UserError

__all__ = ["CAUSES", "Cause", "cause_of", "explained", "original_of"]

Error = TypeVar("Error", bound=FatwoodError)

_SAME = "give driver and executors the same environment: `fatwood pack` and spark.archives, or install it on every host"
_MORE_MEMORY = (
    "give executors more memory outside the JVM's heap (spark.executor.memoryOverhead, on Kubernetes and YARN; a smaller "
    "spark.executor.memory elsewhere), fewer cores, or a smaller batch_size"
)
_MAX_CHARACTERS = 200_000
_MAX_LINE = 1_000
_ORIGINAL = "_original"


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A failure that is known."""

    name: str
    """Of its row in the documentation."""
    pattern: re.Pattern[str]
    says: str
    """The cause in a sentence; ``{0}`` and so on are the pattern's groups that matched."""
    hint: str
    everywhere: bool = False
    """Whether it is meant also where the user's own code raised it; a refused connection there is another story."""


def _cause(name: str, pattern: str, says: str, hint: str, *, everywhere: bool = False) -> Cause:
    return Cause(name=name, pattern=re.compile(pattern), says=says, hint=hint, everywhere=everywhere)


CAUSES: tuple[Cause, ...] = (
    _cause(
        "python-version",
        r"Python in worker has different version:? \(?(\d+\.\d+)[^\n]*? than that in driver:? \(?(\d+\.\d+)",
        "the executors run Python {0}, the driver Python {1}",
        "set PYSPARK_PYTHON (spark.pyspark.python) to the driver's version of Python on every host; " + _SAME,
    ),
    _cause(
        "no-python",
        r'Cannot run program "([^"]+)"',
        "{0}, which Spark was told to run on the executors, cannot be run there",
        "PYSPARK_PYTHON (spark.pyspark.python) must name a Python of that host, or of an archive in spark.archives such as "
        "./environment/bin/python",
    ),
    _cause(
        "no-fatwood",
        r"No module named '?fatwood\b",
        "fatwood cannot be imported by the executors",
        "install the same fatwood in the Python of the executors",
    ),
    _cause(
        "missing-module",
        r"No module named '?([\w.]+)",
        "the Python of the executors has no module {0}",
        _SAME + "; a module of your own can be sent with SparkContext.addPyFile",
        everywhere=True,
    ),
    _cause(
        "other-package",
        r"Can't get attribute '([\w.]+)' on <module '([\w.]+)'",
        "{1} of the executors has no {0}: it is another version than the driver's",
        _SAME,
        everywhere=True,
    ),
    _cause(
        "glibc",
        r"version [`'](GLIBC(?:XX)?_[\d.]+)' not found",
        "a package was built for a newer system than the executors': {0} is missing there",
        "build the environment on the oldest system of the cluster, or let `fatwood pack` choose packages for its glibc",
        everywhere=True,
    ),
    _cause(
        "numpy-abi",
        r"compiled using NumPy 1\.x cannot be run in|_ARRAY_API not found|numpy\.dtype size changed",
        "a package on the executors was built for another NumPy",
        "install numpy, torch and pyarrow of the same time there; " + _SAME,
        everywhere=True,
    ),
    _cause(
        "killed-by-yarn",
        r"Container killed by YARN for exceeding (?:physical |virtual )?memory limits\.?(?: +([\d.]+ ?\w+ of [\d.]+ ?\w+))?",
        "YARN killed an executor that took more memory than its container has: {0}",
        _MORE_MEMORY,
    ),
    _cause(
        "killed",
        r"(?i:exit(?:ed with)?(?: exit)? (?:code|status):? ?137|exited with code 137|OOMKilled)",
        "an executor was killed (SIGKILL, exit code 137), most likely because its machine or container ran out of memory",
        _MORE_MEMORY + "; `dmesg` of the host or `kubectl describe pod` tells who killed it",
    ),
    _cause(
        "cuda-memory",
        r"CUDA out of memory|\bOutOfMemoryError: CUDA|CUDA error: out of memory",
        "the memory of a GPU is full",
        "a smaller batch_size with accumulate=..., precision='bfloat16', or fewer workers for each GPU "
        "(spark.task.resource.gpu.amount=1)",
        everywhere=True,
    ),
    _cause(
        "java-memory",
        r"java\.lang\.OutOfMemoryError: (Java heap space|GC overhead limit exceeded|Requested array size[^\n]*)"
        r"|exit code 52\b",
        "Java ran out of memory: {0}",
        "raise spark.executor.memory, or spark.driver.memory if it was the driver; read rows in more partitions",
    ),
    _cause(
        "threads",
        r"unable to create (?:new )?native thread|can't start new thread",
        "a process may not start another thread",
        "raise the limits of processes there: ulimit -u, pids.max of the container",
        everywhere=True,
    ),
    _cause(
        "result-size",
        r"Total size of serialized results of (\d+) tasks \(([^)]+)\) is bigger than (\S+ \([^)]+\))",
        "the results of {0} tasks are {1}, more than {2}",
        "it is not the training, which sends results another way: write the DataFrame instead of collecting it, or raise "
        "spark.driver.maxResultSize",
    ),
    _cause(
        "cuda-driver",
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old",
        "the NVIDIA driver of an executor is too old for this PyTorch",
        "install a newer driver there, or a PyTorch built for its CUDA version (`nvidia-smi` says which)",
        everywhere=True,
    ),
    _cause(
        "no-cuda",
        r"Torch not compiled with CUDA enabled|Found no NVIDIA driver on your system",
        "PyTorch was asked for a GPU where it has none",
        "install a CUDA build of PyTorch and the driver there, or train on the CPU",
        everywhere=True,
    ),
    _cause(
        "disk-full",
        r"No space left on device|Disk quota exceeded",
        "a disk is full",
        "workers keep their rows on local disk: make room, or name larger disks in spark.local.dir (on YARN "
        "yarn.nodemanager.local-dirs)",
        everywhere=True,
    ),
    _cause(
        "open-files",
        r"Too many open files",
        "a process may not open another file",
        "raise the limit where Spark's daemons start: ulimit -n 65536, LimitNOFILE of systemd",
        everywhere=True,
    ),
    _cause(
        "java-version",
        r"UnsupportedClassVersionError|compiled by a more recent version of the Java Runtime",
        "the Java of an executor is too old for this Spark",
        "Spark 4 needs Java 17 on every host: set JAVA_HOME (spark.executorEnv.JAVA_HOME)",
    ),
    _cause(
        "slots",
        r"\[SPARK-24819\]",
        "there are fewer slots than workers, which have to run at the same time",
        "train with fewer workers, or give the application more executors or cores",
    ),
    _cause(
        "python-start",
        r"Python worker failed to connect back|waiting for the Python worker to connect back",
        "the Python of an executor did not start in time, or ended at once",
        "run `PYSPARK_PYTHON -c 'import pyspark'` there as the executors' user; a firewall on loopback, a full disk and an "
        "overloaded machine do this, too",
    ),
    _cause(
        "refused",
        r"(?i:Connection refused)",
        "a connection was refused: nothing listens at the port, or a firewall is between",
        "open the ports between driver and executors, in both ways; spark.driver.host must be an address that executors reach: "
        "`fatwood doctor` tries them all",
    ),
    _cause(
        "unknown-host",
        r"UnknownHostException(?:: ([\w.-]+))?|Name or service not known|Temporary failure in name resolution",
        "a host's name is not known where it is used: {0}",
        "give hosts names that all others resolve, or addresses: spark.driver.host, SPARK_LOCAL_IP",
    ),
    _cause(
        "ended",
        r"(?i:exit(?:ed with)?(?: exit)? (?:code|status):? ?143|exited with code 143)",
        "an executor was told to end (SIGTERM, exit code 143): preempted, its host taken away, or over its memory",
        "run on capacity that is not taken away, pass checkpoints=Checkpoints(...), or give executors more memory",
    ),
    _cause(
        "crashed",
        r"Python worker exited unexpectedly \(crashed\)",
        "a Python worker was killed or crashed: most likely it ran out of memory, or native code failed",
        _MORE_MEMORY
        + "; `dmesg` there names what was killed, spark.python.worker.faulthandler.enabled=true shows a crash",
    ),
    _cause(
        "vanished",
        r"Remote RPC client disassociated|Executor heartbeat timed out",
        "an executor is gone: killed, or cut off from the driver",
        "its log and that of the cluster manager say why; memory is the usual cause: " + _MORE_MEMORY,
    ),
)
"""All that are known, the more telling first."""


def cause_of(text: str, *, everywhere: bool = False) -> tuple[Cause, str] | None:
    """What is known of a failure, and the cause in a sentence.

    Args:
        text: All that is said of it.
        everywhere: Whether it may be of the user's own code: then fewer are meant.
    """
    for cause in CAUSES:
        found = None if everywhere and not cause.everywhere else cause.pattern.search(text[:_MAX_CHARACTERS])
        if found is not None:
            groups = [group or "" for group in found.groups()]
            return cause, cause.says.format(*groups).rstrip(": ")
    return None


def explained(error: Error, more: Iterable[str] = ()) -> Error:
    """The same error, with cause and hint first if it is recognised; the original follows. Idempotent.

    Args:
        error: Changed in place. Of the user's errors only those are looked at that a machine can be the cause of.
        more: What else was said of it; the lines that told are added to the original.
    """
    if _ORIGINAL in vars(error):
        return error
    if isinstance(error, UserError):
        if not isinstance(error, UserCodeError | ShippingError):
            return error
        found = cause_of(error.message.partition("\n")[0], everywhere=True)
        more = ()
    else:
        more = [text for text in more if text and text not in error.message]
        found = cause_of("\n".join([error.message, *more]))
    if found is None:
        return error
    cause, says = found
    original, hint = error.message, error.hint or ""
    if original.startswith(says):  # it says so itself
        return error
    lines = () if cause.pattern.search(original) else (_line(cause.pattern, text) for text in more)
    whole = "\n".join([original, *filter(None, dict.fromkeys(lines))])
    vars(error)[_ORIGINAL] = whole, error.hint
    error.hint = "; ".join(filter(None, (cause.hint, hint)))
    error.message = f"{says}\n\n{whole}"
    error.args = (f"{says}\nhint: {error.hint}\n\n{whole}",)
    return error


def original_of(error: FatwoodError) -> tuple[str, str | None]:
    """Message and hint without what :func:`explained` has put first.

    Args:
        error: Explained or not.
    """
    message, hint = vars(error).get(_ORIGINAL, (error.message, error.hint))
    return message, hint


def _line(pattern: re.Pattern[str], text: str) -> str:
    """The line that the pattern matches in, or nothing."""
    found = pattern.search(text)
    if found is None:
        return ""
    line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0].strip()
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}..."
