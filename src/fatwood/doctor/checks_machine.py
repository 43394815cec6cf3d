"""Checks of the machines: disks, memory, limits, clocks, cores, and what ends processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fatwood.doctor.finding import (
    Check,
    Facts,
    Finding,
    Status,
    is_local,
    places,
    size,
    spark_bytes,
    version,
    where,
)

__all__ = ["MACHINE", "WORKER_BYTES"]

WORKER_BYTES = 600 << 20
"""What a Python worker with PyTorch takes before there is a network; `fatwood plan` measures what a network adds."""
_LOW_DISK_BYTES, _SMALL_DISK_BYTES = 1 << 30, 5 << 30
_SHM_BYTES = 64 << 20
_FILES, _FILES_BASE, _FILES_PER_TASK = 1024, 64, 4
_CLOCK_WARN_SECONDS, _CLOCK_WRONG_SECONDS = 1.0, 30.0


def _disks(facts: Facts) -> Iterator[Finding]:
    for place, process in places(facts):
        for disk in process["disks"]:
            kind, path, free = disk["kind"], disk["path"], disk["free_bytes"]
            status: Status = "wrong"
            full = "Errno 28" in (disk["error"] or "")
            if not disk["writable"] and not full:
                expected, received = "that can be written to", disk["error"] or "it cannot"
                hint = f"let the executors' user write to {path}, or name another folder in spark.local.dir (or TMPDIR)"
            elif full or (free is not None and free < _SMALL_DISK_BYTES):
                status = "wrong" if full or free < _LOW_DISK_BYTES else "warn"
                expected, received = f"with {size(_SMALL_DISK_BYTES)} free", f"{size(free or 0)} free"
                hint = f"workers keep their rows on local disk: make room in {path}, or name another folder in spark.local.dir (or TMPDIR)"
            else:
                continue
            yield Finding(
                title="disks",
                status=status,
                where=place,
                expected=f"{kind}, {path}, {expected}",
                received=received,
                hint=hint,
            )


def _shm(facts: Facts) -> Iterator[Finding]:
    for place, process in places(facts):
        found = process["shm_bytes"]
        if process["system"] == "linux" and (found is None or found <= _SHM_BYTES):
            yield Finding(
                title="shared memory",
                status="warn",
                where=place,
                expected=f"more than {size(_SHM_BYTES)} in /dev/shm",
                received="missing" if found is None else size(found),
                hint="PyTorch shares tensors between processes there: docker run --shm-size=1g; in Kubernetes mount an emptyDir "
                "with medium Memory at /dev/shm",
            )


def _open_files(facts: Facts) -> Iterator[Finding]:
    needed = _FILES_BASE + _FILES_PER_TASK * int(facts["slots"])
    for place, process in places(facts):
        found = process["open_files"]
        if found is not None and found < max(needed, _FILES):
            yield Finding(
                title="open files",
                status="wrong" if found < needed else "warn",
                where=place,
                expected=f"a limit of {max(needed, _FILES)} or more",
                received=str(found),
                hint="raise it where Spark's daemons start: ulimit -n 65536, LimitNOFILE of systemd, or /etc/security/limits.conf",
            )


def _clocks(facts: Facts) -> Iterator[Finding]:
    for process in facts["executors"]:
        measured = _best(process)
        if measured is None:
            continue
        ahead, error = measured["clock_ahead_seconds"], measured["clock_error_seconds"]
        off = abs(ahead) - error
        if off > _CLOCK_WARN_SECONDS:
            direction = "ahead of" if ahead > 0 else "behind"
            yield Finding(
                title="clocks",
                status="wrong" if off > _CLOCK_WRONG_SECONDS else "warn",
                where=where(process),
                expected="the driver's time",
                received=f"{abs(ahead):.1f} s {direction} the driver (give or take {error:.3f} s)",
                hint="run a time service there (chrony, systemd-timesyncd): certificates, Kerberos and cloud stores refuse "
                "clocks that are off",
            )


def _best(process: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The measurement with the shortest round trip to the driver."""
    found = [task["driver"] for task in process.get("tasks", ()) if "clock_ahead_seconds" in task["driver"]]
    return min(found, key=lambda one: float(one["clock_error_seconds"]), default=None)


def _clock_summary(facts: Facts) -> str:
    found = [best for best in map(_best, facts["executors"]) if best is not None]
    if not found:
        return "not measured"
    return f"at most {max(abs(one['clock_ahead_seconds']) for one in found) * 1000:.1f} ms off"


def _logind(facts: Facts) -> Iterator[Finding]:
    for process in facts["executors"]:
        if process["kill_user_processes"] == "yes" and not is_local(facts):
            yield Finding(
                title="logind",
                status="warn",
                where=where(process),
                expected="KillUserProcesses=no",
                received="KillUserProcesses=yes: executors die when their user logs out",
                hint=f"loginctl enable-linger {process['user']} there, or KillUserProcesses=no in /etc/systemd/logind.conf",
            )


def _threads(facts: Facts) -> Iterator[Finding]:
    for process in facts["executors"]:
        slots = max(1, len(process.get("tasks", ())))
        for name, text in process["threads"].items():
            count = int(text) if (text or "").isdigit() else 0
            if count > 1 and count * slots > process["cores"]:
                yield Finding(
                    title="threads",
                    status="warn",
                    where=where(process),
                    expected=f"at most {process['cores']} threads, as there are cores, for {slots} workers",
                    received=f"{name}={count} for each",
                    hint=f"unset {name}: each worker takes as many threads as its task has cores",
                )


def _memory(facts: Facts) -> Iterator[Finding]:
    conf = facts["session"]["conf"]
    local = is_local(facts)
    heap = spark_bytes(conf.get("spark.driver.memory" if local else "spark.executor.memory"), "1g")
    for process in facts["executors"]:
        limits = [found for found in (process["ram_bytes"], process["cgroup_bytes"]) if found]
        slots = max(1, len(process.get("tasks", ())))
        need = heap + slots * WORKER_BYTES
        if limits and min(limits) < need:
            yield Finding(
                title="memory",
                status="warn",
                where=where(process),
                expected=f"{size(need)}: {size(heap)} of heap, {slots} workers of {size(WORKER_BYTES)}",
                received=f"{size(min(limits))} in all",
                hint="give executors fewer cores or a smaller spark.executor.memory, or take larger machines",
            )


def _overhead(facts: Facts) -> Iterator[Finding]:
    session, conf = facts["session"], facts["session"]["conf"]
    master = session.get("master") or ""
    if not master.startswith(("yarn", "k8s")):
        return
    heap = spark_bytes(conf.get("spark.executor.memory"), "1g")
    default = "0.1" if master.startswith("yarn") else conf.get("spark.kubernetes.memoryOverheadFactor", "0.4")
    factor = float(conf.get("spark.executor.memoryOverheadFactor", default))
    given = conf.get("spark.executor.memoryOverhead")
    overhead = spark_bytes(given, "0") if given else max(384 << 20, int(factor * heap))
    overhead += spark_bytes(conf.get("spark.executor.pyspark.memory"), "0")
    for process in facts["executors"]:
        slots = max(1, len(process.get("tasks", ())))
        need = slots * WORKER_BYTES
        if overhead < need:
            yield Finding(
                title="memory overhead",
                status="wrong",
                where=where(process),
                expected=f"{size(need)} or more outside the heap, for {slots} workers with PyTorch",
                received=f"{size(overhead)}",
                hint=f"--conf spark.executor.memoryOverhead={(need >> 20) + 256}m: else the cluster kills executors (exit code 137)",
            )


def _speculation(facts: Facts) -> Iterator[Finding]:
    if facts["session"]["conf"].get("spark.speculation", "false").lower() == "true":
        yield Finding(
            title="speculation",
            status="warn",
            where=where(facts["driver"], "driver"),
            expected="spark.speculation=false",
            received="true: Spark starts a second copy of a slow worker, which takes a slot and waits",
            hint="--conf spark.speculation=false",
        )


def _allocation(facts: Facts) -> Iterator[Finding]:
    conf = facts["session"]["conf"]
    if conf.get("spark.dynamicAllocation.enabled", "false").lower() != "true":
        return
    bound = conf.get("spark.dynamicAllocation.maxExecutors", "infinity")
    if not bound.isdigit() or int(bound) >= 2**31 - 1:
        yield Finding(
            title="dynamic allocation",
            status="warn",
            where=where(facts["driver"], "driver"),
            expected="a bound: spark.dynamicAllocation.maxExecutors",
            received="none",
            hint="--conf spark.dynamicAllocation.maxExecutors=N, or pass workers=N to fit",
        )


def _slots(facts: Facts) -> Iterator[Finding]:
    error = facts.get("job_error")
    slots = int(facts["slots"])
    if slots and error is None:
        return
    yield Finding(
        title="slots",
        status="wrong",
        where=where(facts["driver"], "driver"),
        expected="one task at once or more, and a job that ends",
        received=error or "no executor",
        hint="see the master's page: are there free cores and enough memory for spark.executor.memory, and can executors "
        "reach the driver's spark.driver.host?",
    )


def _caches(facts: Facts) -> Iterator[Finding]:
    for cache in facts["session"]["caches"]:
        yield Finding(
            title="caches",
            status="warn",
            where=where(facts["driver"], "driver"),
            expected="rows cached at a level that is right for training",
            received=f"{cache['name']} at {cache['level']}: {cache['harm']}",
            hint="call unpersist() and then fatwood.spark.persist(...)",
        )


def _known(name: str, default: str) -> Any:
    return lambda facts: facts["session"]["conf"].get(name, default)


def _least(name: str) -> Any:
    def text(facts: Facts) -> str:
        found = [process[name] for _, process in places(facts) if process[name] is not None]
        return (
            f"at least {size(min(found)) if name.endswith('bytes') else min(found)}" if found else "no limit"
        )

    return text


def _disk_summary(facts: Facts) -> str:
    free = [disk["free_bytes"] for _, process in places(facts) for disk in process["disks"]]
    known = [count for count in free if count is not None]
    return f"at least {size(min(known))} free" if known else "not known"


def _java_memory(facts: Facts) -> str:
    conf = facts["session"]["conf"]
    return f"heap {conf.get('spark.executor.memory', '1g')}, overhead {conf.get('spark.executor.memoryOverhead', 'by default')}"


def _slots_summary(facts: Facts) -> str:
    spark = ".".join(map(str, version(facts["session"]["spark"])[:2]))
    return f"{facts['slots']} on {len(facts['executors'])} executors of Spark {spark}"


MACHINE = (
    Check(title="slots", expected="one or more", problems=_slots, received=_slots_summary),
    Check(
        title="disks",
        expected=f"writable, {size(_SMALL_DISK_BYTES)} free",
        problems=_disks,
        quick=True,
        received=_disk_summary,
    ),
    Check(
        title="shared memory",
        expected=f"more than {size(_SHM_BYTES)} in /dev/shm",
        problems=_shm,
        quick=True,
        received=_least("shm_bytes"),
    ),
    Check(
        title="open files",
        expected=f"{_FILES} or more",
        problems=_open_files,
        quick=True,
        received=_least("open_files"),
    ),
    Check(title="clocks", expected="the driver's time", problems=_clocks, received=_clock_summary),
    Check(title="logind", expected="lets executors live", problems=_logind, received=lambda _: "it does"),
    Check(
        title="threads",
        expected="no more than cores",
        problems=_threads,
        received=_known("spark.executorEnv.OMP_NUM_THREADS", "by the task's cores"),
    ),
    Check(
        title="memory", expected="room for heap and workers", problems=_memory, received=_least("ram_bytes")
    ),
    Check(
        title="memory overhead",
        expected="room for Python and PyTorch",
        problems=_overhead,
        received=_java_memory,
    ),
    Check(
        title="speculation",
        expected="off",
        problems=_speculation,
        quick=True,
        received=lambda _: "off",
    ),
    Check(
        title="dynamic allocation",
        expected="off, or bounded",
        problems=_allocation,
        quick=True,
        received=_known("spark.dynamicAllocation.enabled", "off"),
    ),
    Check(
        title="caches",
        expected="none at a level that does harm",
        problems=_caches,
        quick=True,
        received=lambda _: "none",
    ),
)
