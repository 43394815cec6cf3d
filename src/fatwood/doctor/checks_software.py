"""Checks of what is installed: Python, Java, Spark, packages, and what they make of GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fatwood.doctor.finding import Check, Facts, Finding, Status, places, version, where

__all__ = ["SOFTWARE"]

_SAME = "give driver and executors the same environment: `fatwood pack`, then spark.archives, or install it on every host"
_LEAST = {"cloudpickle": (3, 0), "numpy": (1, 26), "pyarrow": (15,), "torch": (2, 6)}
_GLIBC = (2, 28)
_MAX_NAMED = 5
_CLASHES = (
    # package, its versions below which it clashes, with which package from which version on
    ("torch", (2, 3), "numpy", (2,)),
    ("pandas", (2, 2, 2), "numpy", (2,)),
    ("pyarrow", (16,), "numpy", (2,)),
    ("pyspark", (3, 5), "pandas", (2,)),
    ("pyspark", (4,), "numpy", (2,)),
)


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _starts(facts: Facts) -> Iterator[Finding]:
    title, expected = "Python starts", "the Python of the executors runs"
    for failed in facts["failures"]:
        yield Finding(
            title=title,
            status="wrong",
            where=where(failed),
            expected=expected,
            received=failed["text"],
            hint="PYSPARK_PYTHON or spark.pyspark.python must name a Python of that host, or of an archive in spark.archives "
            "such as ./environment/bin/python",
        )


def _python(facts: Facts) -> Iterator[Finding]:
    driver = facts["driver"]["python"]
    for place, process in places(facts):
        if version(process["python"])[:2] != version(driver)[:2]:
            yield Finding(
                title="Python",
                status="wrong",
                where=place,
                expected=f"Python {_text(version(driver)[:2])}, the driver's",
                received=f"{process['python']} at {process['executable']}",
                hint="set PYSPARK_PYTHON (spark.pyspark.python) to the same Python on every host; " + _SAME,
            )


def _java(facts: Facts) -> Iterator[Finding]:
    session = facts["session"]
    needed = 17 if version(session["spark"])[:1] >= (4,) else 8
    entries = [(where(facts["driver"], "driver"), session["java"])]
    entries += [(where(process), process["java"]) for process in facts["executors"]]
    for place, java in entries:
        major = _major(java)
        if java is not None and major < needed:
            yield Finding(
                title="Java",
                status="wrong",
                where=place,
                expected=f"Java {needed} or later for Spark {session['spark']}",
                received=java,
                hint=f"install Java {needed} there and set JAVA_HOME (spark.executorEnv.JAVA_HOME)",
            )
        elif java is not None and session["java"] is not None and major != _major(session["java"]):
            yield Finding(
                title="Java",
                status="warn",
                where=place,
                expected=f"Java {_major(session['java'])}, the driver's",
                received=java,
                hint="run one version of Java on all hosts",
            )


def _major(java: str | None) -> int:
    numbers = version(java)
    return 0 if not numbers else numbers[1] if numbers[0] == 1 and len(numbers) > 1 else numbers[0]


def _spark(facts: Facts) -> Iterator[Finding]:
    client, driver = facts["session"]["pyspark"], facts["session"]["spark"]
    if version(driver) != version(client):
        hint = f"pip install pyspark=={driver} where the driver runs, or run the cluster with Spark {client}"
        expected = f"Spark {client}, the version of the driver's PySpark"
        yield _other_spark(where(facts["driver"], "driver"), driver, client, expected, hint)
    for process in facts["executors"]:
        if process["spark"] is not None and version(process["spark"]) != version(driver):
            hint = f"run Spark {driver} on that host too: see SPARK_HOME there"
            yield _other_spark(
                where(process), process["spark"], driver, f"Spark {driver}, the driver's", hint
            )


def _other_spark(place: str, found: str, needed: str, expected: str, hint: str) -> Finding:
    other = version(found)[:2] != version(needed)[:2]
    status: Status = "wrong" if other else "warn"
    return Finding(title="Spark", status=status, where=place, expected=expected, received=found, hint=hint)


def _packages(facts: Facts) -> Iterator[Finding]:
    own = facts["driver"]["packages"]
    for place, process in places(facts):
        for name in ("fatwood", "torch", "numpy", "pyarrow", "cloudpickle", "pandas"):
            found, driver = process["packages"].get(name), own.get(name)
            if found is None:
                if name != "pandas":
                    yield _package(
                        place, name, "wrong", "installed", "missing", f"pip install {name} there; {_SAME}"
                    )
            elif version(found) < _LEAST.get(name, ()):
                hint = f"pip install '{name}>={_text(_LEAST[name])}' there; {_SAME}"
                yield _package(place, name, "wrong", f"{_text(_LEAST[name])} or later", found, hint)
            elif driver is not None and found != driver:
                yield _package(place, name, _distance(name, found, driver), f"{driver}, the driver's", found)


def _package(
    place: str, name: str, status: Any, expected: str, received: str, hint: str = f"{_SAME}"
) -> Finding:
    return Finding(
        title="packages",
        status=status,
        where=place,
        expected=f"{name} {expected}",
        received=f"{name} {received}",
        hint=hint,
    )


def _distance(name: str, found: str, driver: str) -> str:
    """How bad it is that a package of an executor is another than the driver's."""
    if name == "fatwood":
        return "wrong"
    digits = 2 if name == "torch" else 1
    other = version(found)[:digits] != version(driver)[:digits]
    return "wrong" if other and name in ("torch", "numpy", "cloudpickle") else "warn"


def _clashes(facts: Facts) -> Iterator[Finding]:
    for place, process in places(facts):
        have = {name: version(found) for name, found in process["packages"].items()}
        for name, below, other, since in _CLASHES:
            if have.get(name) and have.get(other) and have[name] < below and have[other] >= since:
                yield Finding(
                    title="clashing packages",
                    status="wrong",
                    where=place,
                    expected=f"{name} {_text(below)} or later beside {other} {_text(since)} or later",
                    received=f"{name} {process['packages'][name]}, {other} {process['packages'][other]}",
                    hint=f"pip install '{name}>={_text(below)}', or '{other}<{_text(since)}'",
                )


def _imports(facts: Facts) -> Iterator[Finding]:
    for place, process in places(facts):
        error = (process.get("imports") or {}).get("error")
        missing = [name for name in ("torch", "numpy", "pyarrow") if process["packages"].get(name) is None]
        if error and not missing:
            hint = "install the packages there anew, for that host's Python and processor; " + _SAME
            if "GLIBC" in error:
                hint = "the environment was built for a newer system: build it on the oldest system of the cluster, or `fatwood pack` for its glibc"
            elif "numpy" in error.lower():
                hint = "a package was built for another NumPy: install numpy and torch of the same time"
            yield Finding(
                title="imports",
                status="wrong",
                where=place,
                expected="numpy, pyarrow and torch can be imported",
                received=error,
                hint=hint,
            )


def _glibc(facts: Facts) -> Iterator[Finding]:
    for place, process in places(facts):
        found = version(process["glibc"])
        if process["system"] == "linux" and found and found < _GLIBC:
            yield Finding(
                title="glibc",
                status="wrong",
                where=place,
                expected=f"glibc {_text(_GLIBC)} or later, for which PyTorch is built",
                received=process["glibc"],
                hint="upgrade the system of that host, or run executors in containers of a newer one",
            )


def _environment(facts: Facts) -> Iterator[Finding]:
    own = facts["driver"].get("distributions")
    for process in facts["executors"]:
        other = process.get("distributions")
        if not own or other is None or other == own:
            continue
        names = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        named = [
            f"{name} {other.get(name, 'missing')} (driver: {own.get(name, 'missing')})"
            for name in names[:_MAX_NAMED]
        ]
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        yield Finding(
            title="environment",
            status="warn",
            where=where(process),
            expected=f"the driver's {len(own)} packages",
            received=", ".join(named) + more,
            hint=_SAME,
        )


def _cuda(facts: Facts) -> Iterator[Finding]:
    asked = float(facts["session"]["conf"].get("spark.task.resource.gpu.amount", "0") or 0) > 0
    for place, process in places(facts):
        if asked and place.endswith("(driver)"):
            continue
        yield from _cuda_of(place, process, asked=asked)


def _cuda_of(place: str, process: Mapping[str, Any], *, asked: bool) -> Iterator[Finding]:
    nvidia, imports = process.get("nvidia"), process.get("imports") or {}
    built = imports.get("cuda")
    problem: tuple[Any, str, str, str] | None = None
    if nvidia and built and version(built)[:1] > version(nvidia["cuda"])[:1] != ():
        problem = (
            "wrong",
            f"a driver for CUDA {built}, for which PyTorch is built",
            f"driver {nvidia['driver']}, for CUDA {nvidia['cuda']}",
            f"install a newer driver, or a PyTorch built for CUDA {version(nvidia['cuda'])[0]}",
        )
    elif asked and imports and not imports.get("cuda_available"):
        received = "no driver of NVIDIA" if nvidia is None else f"PyTorch {process['packages'].get('torch')}"
        problem = (
            "wrong",
            "a GPU that PyTorch can use: spark.task.resource.gpu.amount asks for one",
            f"none ({received})",
            "install the driver and a CUDA build of PyTorch there, or train with device='cpu'",
        )
    elif nvidia and imports and not imports.get("error") and built is None:
        problem = (
            "warn",
            "a CUDA build of PyTorch where there is a GPU",
            "a build for CPU",
            "install a CUDA build of PyTorch there to train on the GPU",
        )
    if problem is not None:
        status, expected, received, hint = problem
        yield Finding(
            title="CUDA", status=status, where=place, expected=expected, received=received, hint=hint
        )


def _drivers(facts: Facts, name: str) -> str:
    return str(facts["driver"]["packages"].get(name))


def _cuda_summary(facts: Facts) -> str:
    gpus = sum((process.get("imports") or {}).get("gpus", 0) for process in facts["executors"])
    return f"{gpus} GPUs in use, PyTorch {_drivers(facts, 'torch')}"


SOFTWARE = (
    Check(
        title="Python starts",
        expected="on every executor",
        problems=_starts,
        received=lambda facts: f"{len(facts['executors'])} executors answered",
    ),
    Check(
        title="Python",
        expected="the same on all hosts",
        problems=_python,
        quick=True,
        received=lambda facts: str(facts["driver"]["python"]),
    ),
    Check(
        title="Java",
        expected="recent enough, the same on all hosts",
        problems=_java,
        quick=True,
        received=lambda facts: str(facts["session"]["java"]),
    ),
    Check(
        title="Spark",
        expected="PySpark and cluster alike",
        problems=_spark,
        quick=True,
        received=lambda facts: str(facts["session"]["spark"]),
    ),
    Check(
        title="packages",
        expected="recent enough, the same on all hosts",
        problems=_packages,
        quick=True,
        received=lambda facts: f"fatwood {_drivers(facts, 'fatwood')}, torch {_drivers(facts, 'torch')}",
    ),
    Check(
        title="clashing packages",
        expected="none",
        problems=_clashes,
        quick=True,
        received=lambda _: "none",
    ),
    Check(
        title="imports",
        expected="numpy, pyarrow and torch can be imported",
        problems=_imports,
        received=lambda _: "imported",
    ),
    Check(
        title="glibc",
        expected=f"{_text(_GLIBC)} or later",
        problems=_glibc,
        quick=True,
        received=lambda facts: str(facts["driver"]["glibc"]),
    ),
    Check(
        title="environment",
        expected="the driver's on all hosts",
        problems=_environment,
        received=lambda facts: f"{len(facts['driver'].get('distributions') or ())} packages",
    ),
    Check(title="CUDA", expected="build and driver agree", problems=_cuda, received=_cuda_summary),
)
