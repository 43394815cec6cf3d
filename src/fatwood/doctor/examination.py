"""The examination of a session: one job, in which every slot tells what it is and whom it reaches.

::

    driver   facts of the session and of itself; listens (station)
       |  one task for each slot, a command beside the executor's JVM: Spark's Python, this package's probe
       v
    task     facts of its machine; calls the driver, waits for the others, calls them, tries the storage; prints JSON
       |
    driver   facts of all -> checks -> findings
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fatwood import storage
from fatwood.doctor import probe
from fatwood.doctor.checkup import CHECKS, Checkup, examine
from fatwood.doctor.errand import try_storage
from fatwood.doctor.finding import Facts, Finding
from fatwood.doctor.station import Station
from fatwood.errors import ClusterError, FatwoodError, OptionError, StorageError, WorldError
from fatwood.exchange import new_secret

__all__ = ["doctor", "examine_cluster", "gather_facts", "quick_facts", "quick_findings", "setting"]

_MARK = "fatwood-doctor:"
_EXECUTORS_SECONDS = 60.0
_GATHER_SECONDS = 15.0
_HOLD_SECONDS = 3.0
_MAX_TEXT = 500
_SHELL = r"""
"$0" -c "$1" "$PPID" 2>&1 || {
    code=$?
    executor=$(tr '\0' '\n' < /proc/$PPID/cmdline 2>/dev/null | sed -n '/^--executor-id$/{n;p;}')
    sleep HOLD
    printf '\nMARK{"code":%d,"hostname":"%s","executor":"%s"}\n' "$code" "$(uname -n)" "$executor"
}
""".replace("MARK", _MARK).replace("HOLD", f"{_HOLD_SECONDS:.0f}")
"""Always ends with code 0: one sick host must not end the job of all. Nor at once, or it would be given the next one's task, too."""
_BOOT = """
import json, os, sys
order = json.loads(sys.stdin.readline())
order["jvm"] = int(sys.argv[1])
sys.path[1:1] = [os.path.join(os.getcwd(), name) for name in order["includes"]]
space = {"__name__": "fatwood_probe"}
exec(compile(order.pop("source"), "fatwood_probe.py", "exec"), space)
print("\\nMARK" + json.dumps(space["report"](order)))
""".replace("MARK", _MARK)


def doctor(spark: Any, *, storage_uri: str | None = None, timeout_seconds: float = 180.0) -> Checkup:
    """Examine the driver, the executors and the ways between them.

    Args:
        spark: A classic session.
        storage_uri: A folder in which driver and executors try to write, read and delete a small file; None for none.
        timeout_seconds: How long the job may take.

    Returns:
        The findings, and the facts they come of.

    Raises:
        ClusterError: The session is one of Spark Connect, or was stopped.
        OptionError: The time is not positive.
    """
    facts = gather_facts(spark, storage_uri=storage_uri, timeout_seconds=timeout_seconds)
    return Checkup(findings=examine(facts), facts=facts)


def quick_findings(spark: Any) -> tuple[Finding, ...]:
    """What is not well with session and driver, in less than a second and without a job.

    Args:
        spark: A session of either kind.

    Returns:
        Warnings and what is wrong; empty where all is well.
    """
    found = examine(quick_facts(spark), (check for check in CHECKS if check.quick))
    return tuple(finding for finding in found if finding.status != "ok")


def quick_facts(spark: Any) -> dict[str, Any]:
    """What the quick checks ask for, as :func:`gather_facts` gives it; no job.

    Args:
        spark: A session of either kind.
    """
    from fatwood.spark.doctoring import session_facts

    session = session_facts(spark)
    driver = probe.gather({"quick": True, "local_dirs": _local_dirs(session)})
    return {
        "session": session,
        "driver": driver,
        "executors": [],
        "failures": [],
        "slots": 1,
        "job_error": None,
    }


def examine_cluster(
    master: str | None,
    settings: Mapping[str, str],
    *,
    storage_uri: str | None = None,
    timeout_seconds: float = 180.0,
) -> Checkup:
    """Start a session, examine it, and stop it.

    Args:
        master: As for ``spark-submit``; None for what the configuration says.
        settings: Of Spark, by name.
        storage_uri: A folder to try; None for none.
        timeout_seconds: How long the job may take.

    Raises:
        ClusterError: There is no Java or PySpark, or the session does not start.
        OptionError: The time is not positive.
    """
    try:
        from fatwood.spark.doctoring import start_session
    except ModuleNotFoundError as error:
        message = f"doctor: expected an installed PySpark, received {error}"
        raise ClusterError(message, hint='pip install "fatwood[spark]"') from error
    spark = start_session(master, dict(settings))
    try:
        return doctor(spark, storage_uri=storage_uri, timeout_seconds=timeout_seconds)
    finally:
        spark.stop()


def setting(text: str) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``.

    Raises:
        OptionError: It is not of that form.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        message = f"--conf: expected NAME=VALUE, received {text!r}"
        raise OptionError(message, hint="for example --conf spark.executor.memory=4g")
    return name, value


def gather_facts(
    spark: Any, *, storage_uri: str | None = None, timeout_seconds: float = 180.0
) -> dict[str, Any]:
    """Find out all that the checks ask for.

    Args:
        spark: A classic session.
        storage_uri: A folder to try; None for none.
        timeout_seconds: How long the job may take.

    Returns:
        JSON values: ``session``, ``driver``, ``executors``, ``failures``, ``slots``, ``job_error``.

    Raises:
        ClusterError: The session is one of Spark Connect, or was stopped.
        OptionError: The time is not positive.
    """
    from fatwood.spark.connect import require_classic
    from fatwood.spark.doctoring import session_facts, settled_slots

    if not timeout_seconds > 0:
        message = f"timeout_seconds: expected a positive number, received {timeout_seconds}"
        raise OptionError(message)
    require_classic(spark, "doctor")
    session = session_facts(spark)
    slots = settled_slots(spark, min(_EXECUTORS_SECONDS, timeout_seconds / 3))
    facts: dict[str, Any] = {
        "session": session,
        "driver": probe.gather({"local_dirs": _local_dirs(session)}),
        "executors": [],
        "failures": [],
        "slots": slots,
        "job_error": None,
    }
    sample = None
    if storage_uri is not None:
        facts["driver"]["storage"] = try_storage(storage_uri)
        sample = _leave_sample(storage_uri)
    try:
        if slots:
            answers = _ask(
                spark, session, slots, {"storage": storage_uri, "storage_sample": sample}, timeout_seconds
            )
            facts["executors"], facts["failures"] = _merged(answers)
    except WorldError as error:
        facts["job_error"] = error.message
    finally:
        if sample is not None:
            with suppress(StorageError):
                storage.delete(storage.join(str(storage_uri), sample))
    return facts


def _leave_sample(uri: str) -> str | None:
    """The name of a file that executors are to read; None where the driver cannot write, which is a finding already."""
    name = f"fatwood-doctor-sample-{secrets.token_hex(8)}"
    try:
        storage.write_atomic(storage.join(uri, name), lambda file: file.writelines([b"fatwood"]))
    except FatwoodError:
        return None
    return name


def _local_dirs(session: Facts) -> list[str]:
    return [path for path in session["conf"].get("spark.local.dir", "").split(",") if path]


def _ask(
    spark: Any, session: Facts, slots: int, order: Mapping[str, Any], timeout_seconds: float
) -> list[dict[str, Any]]:
    from fatwood.spark.doctoring import pipe_job, python_of_executors

    python, includes = python_of_executors(spark)
    secret = new_secret()
    bound = session["driver_bind"]
    station = Station(
        host=bound, secret=secret, expected=slots, gather_seconds=min(_GATHER_SECONDS, timeout_seconds / 4)
    )
    try:
        common = {
            **order,
            "source": Path(probe.__file__).read_text(encoding="utf-8"),
            "includes": includes,
            "host": session["driver_host"],
            "port": station.port,
            "secret": secret.hex(),
            "nonce": secrets.token_hex(8),
            "gather_seconds": min(_GATHER_SECONDS, timeout_seconds / 4),
            "hold_seconds": min(_HOLD_SECONDS, timeout_seconds / 4),
            "local_dirs": _local_dirs(session),
        }
        lines = [json.dumps({**common, "number": number}) for number in range(slots)]
        written = pipe_job(spark, ["sh", "-c", _SHELL, python, _BOOT], lines, timeout_seconds=timeout_seconds)
    finally:
        station.close()
    return _answers(written)


def _answers(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The JSON objects among the lines; what else was written before one goes with it as ``text``."""
    found: list[dict[str, Any]] = []
    text: list[str] = []
    for line in lines:
        if line.startswith(_MARK):
            answer = json.loads(line[len(_MARK) :])
            answer["text"] = "\n".join(text).strip()
            found.append(answer)
            text = []
        else:
            text.append(line)
    return found


def _merged(answers: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of the tasks, each executor's facts with what each of its tasks reached; and the hosts where none could start."""
    executors: dict[tuple[Any, Any], dict[str, Any]] = {}
    failures: dict[tuple[str, str], dict[str, Any]] = {}
    for answer in answers:
        if "code" in answer:
            failures.setdefault((answer["hostname"], answer["executor"]), _failure(answer))
            continue
        key = answer["hostname"], answer["jvm"]
        task = {"number": answer["number"], **(answer.pop("network", None) or {"driver": {}, "peers": {}})}
        known = executors.get(key)
        tasks = [*(known or {}).get("tasks", ()), task]
        if known is None or (answer.get("first") and not known.get("first")):
            executors[key] = {name: value for name, value in answer.items() if name != "text"}
        executors[key]["tasks"] = tasks
    return sorted(executors.values(), key=_place), list(failures.values())


def _place(process: Mapping[str, Any]) -> tuple[str, int, str]:
    number = str(process["executor"] or "")
    return process["hostname"], int(number) if number.isdigit() else -1, number


def _failure(answer: Mapping[str, Any]) -> dict[str, Any]:
    lines = [line for line in re.split(r"\n+", answer["text"]) if line.strip()]
    text = lines[-1][:_MAX_TEXT] if lines else f"ended with code {answer['code']}"
    return {"hostname": answer["hostname"], "executor": answer["executor"] or None, "text": text}
