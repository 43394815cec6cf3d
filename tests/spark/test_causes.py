"""Typical failures are recognised: the error begins with the cause and what to do, and the original follows."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fatwood import AllReduce, SparkModel
from fatwood.errors import (
    ClusterError,
    DataError,
    FatwoodError,
    ShippingError,
    StorageError,
    UserCodeError,
    WorkerLost,
)
from fatwood.spark import job as job_module
from fatwood.spark.causes import CAUSES, cause_of, explained
from fatwood.spark.failures import describe_failure, failure_of_spark, rebuild_failure, spark_errors
from fatwood.testing.cluster import standalone_cluster

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "troubleshooting.md"

SAID = [
    # name, who says it, what, in the cause, in the hint
    (
        "python-version", "PySpark 4",
        "pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has different "
        "version: 3.12 than that in driver: 3.11, PySpark cannot run with different minor versions.",
        "run Python 3.12, the driver Python 3.11", "PYSPARK_PYTHON",
    ),
    (
        "python-version", "PySpark 3",
        "Exception: Python in worker has different version 3.6 than that in driver 3.9, PySpark cannot run with",
        "run Python 3.6, the driver Python 3.9", "PYSPARK_PYTHON",
    ),
    (
        "no-python", "Java",
        'java.io.IOException: Cannot run program "./environment/bin/python": error=2, No such file or directory',
        "./environment/bin/python, which Spark was told to run", "spark.archives",
    ),
    (
        "no-fatwood", "Python",
        "python3.12: Error while finding module specification for 'fatwood.spark.daemon' (ModuleNotFoundError: No module "
        "named 'fatwood')",
        "fatwood cannot be imported", "install the same fatwood",
    ),
    (
        "missing-module", "Python",
        "ModuleNotFoundError: No module named 'sklearn.tree'", "no module sklearn.tree", "fatwood pack",
    ),
    ("missing-module", "python -m", "/usr/bin/python3: No module named pyspark", "no module pyspark", "fatwood pack"),
    (
        "other-package", "pickle",
        "AttributeError: Can't get attribute 'Head' on <module 'models.heads' from '/opt/models/heads.py'>",
        "models.heads of the executors has no Head", "same environment",
    ),
    (
        "glibc", "ld.so",
        "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by libtorch_cpu.so)",
        "GLIBC_2.38 is missing", "oldest system",
    ),
    (
        "glibc", "ld.so",
        "OSError: /lib64/libstdc++.so.6: version `GLIBCXX_3.4.30' not found", "GLIBCXX_3.4.30", "oldest system",
    ),
    (
        "numpy-abi", "NumPy",
        "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.4.6 as it may crash.",
        "built for another NumPy", "numpy, torch and pyarrow",
    ),
    (
        "killed-by-yarn", "Spark's YarnAllocator",
        "ExecutorLostFailure (executor 2 exited caused by one of the running tasks) Reason: Container killed by YARN for "
        "exceeding physical memory limits. 9.1 GB of 9 GB physical memory used. Consider boosting "
        "spark.executor.memoryOverhead.",
        "its container has: 9.1 GB of 9 GB", "spark.executor.memoryOverhead",
    ),
    (
        "killed-by-yarn", "Spark 2",
        "Container killed by YARN for exceeding memory limits.  11.1 GB of 11 GB physical memory used.",
        "11.1 GB of 11 GB", "memoryOverhead",
    ),
    (
        "killed", "YARN",
        "ExecutorLostFailure (executor 7 exited caused by one of the running tasks) Reason: Container from a bad node: "
        "container_1666_0001_01_000008 on host: node-7. Exit status: 137. Diagnostics: Container killed on request.",
        "SIGKILL, exit code 137", "memoryOverhead",
    ),
    (
        "killed", "a standalone cluster",
        "ExecutorLostFailure (executor 6 exited caused by one of the running tasks) Reason: Command exited with code 137",
        "SIGKILL", "dmesg",
    ),
    (
        "killed", "Spark on Kubernetes",
        "The executor with id 13 exited with exit code 137(SIGKILL, possible container OOM).",
        "SIGKILL", "kubectl describe pod",
    ),
    ("killed", "Kubernetes", "termination reason: OOMKilled", "out of memory", "memoryOverhead"),
    (
        "cuda-memory", "PyTorch",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB",
        "memory of a GPU", "batch_size",
    ),
    ("java-memory", "Java", "java.lang.OutOfMemoryError: Java heap space", "Java heap space", "spark.executor.memory"),
    ("java-memory", "Kubernetes", "exited with exit code 52(JVM OOM).", "Java ran out of memory", "spark.driver.memory"),
    (
        "threads", "Java",
        "java.lang.OutOfMemoryError: unable to create native thread: possibly out of memory or process/resource limits",
        "another thread", "ulimit -u",
    ),
    (
        "result-size", "Spark's TaskSetManager",
        "Total size of serialized results of 12 tasks (1100.5 MiB) is bigger than spark.driver.maxResultSize (1024.0 MiB)",
        "12 tasks are 1100.5 MiB, more than spark.driver.maxResultSize (1024.0 MiB)", "write the DataFrame",
    ),
    (
        "cuda-driver", "CUDA",
        "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version", "too old", "nvidia-smi",
    ),
    (
        "cuda-driver", "PyTorch",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
        "too old", "newer driver",
    ),
    ("no-cuda", "PyTorch", "AssertionError: Torch not compiled with CUDA enabled", "has none", "CUDA build"),
    ("disk-full", "the system", "OSError: [Errno 28] No space left on device", "a disk is full", "spark.local.dir"),
    ("open-files", "the system", "OSError: [Errno 24] Too many open files", "another file", "ulimit -n"),
    (
        "java-version", "Java",
        "java.lang.UnsupportedClassVersionError: org/apache/spark/launcher/Main has been compiled by a more recent version "
        "of the Java Runtime (class file version 61.0)",
        "too old for this Spark", "Java 17",
    ),
    (
        "slots", "Spark",
        "[SPARK-24819]: Barrier execution mode does not allow run a barrier stage that requires more slots than the total "
        "number of slots in the cluster currently.",
        "fewer slots than workers", "fewer workers",
    ),
    (
        "python-start", "Spark's PythonWorkerFactory",
        "org.apache.spark.SparkException: Python worker failed to connect back.", "did not start", "PYSPARK_PYTHON",
    ),
    (
        "refused", "Python",
        "this worker cannot reach the driver: rank 1: cannot connect: [Errno 111] Connection refused",
        "a connection was refused", "fatwood doctor",
    ),
    (
        "refused", "Java",
        "java.io.IOException: Failed to connect to node-1/10.0.0.1:41000 Caused by: java.net.ConnectException: Connection "
        "refused", "refused", "spark.driver.host",
    ),
    ("unknown-host", "Java", "java.net.UnknownHostException: node-9", "where it is used: node-9", "SPARK_LOCAL_IP"),
    ("ended", "YARN", "Container from a bad node: c on host: h. Exit status: 143.", "SIGTERM", "Checkpoints"),
    (
        "crashed", "Spark's BasePythonRunner",
        "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed). Consider setting "
        "'spark.sql.execution.pyspark.udf.faulthandler.enabled'",
        "killed or crashed", "faulthandler",
    ),
    (
        "vanished", "Spark",
        "ExecutorLostFailure (executor 1 exited caused by one of the running tasks) Reason: Remote RPC client "
        "disassociated. Likely due to containers exceeding thresholds, or network issues.",
        "an executor is gone", "its log",
    ),
    (
        "vanished", "Spark's HeartbeatReceiver",
        "ExecutorLostFailure (executor 1 exited unrelated to the running tasks) Reason: Executor heartbeat timed out after "
        "140000 ms",
        "cut off", "memory",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "says", "hint"),
    [(name, *rest) for name, _, *rest in SAID],
    ids=[f"{case[0]} of {case[1]}" for case in SAID],
)
def test_a_known_text_is_recognised(name, text, says, hint) -> None:
    error = explained(ClusterError(f"the Spark job failed: {text}"))
    known, sentence = cause_of(text)
    assert known.name == name
    assert says in sentence
    assert hint in known.hint
    first, second, empty, original = str(error).split("\n", 3)
    assert (first, second, empty) == (sentence, f"hint: {known.hint}", "")
    assert original == f"the Spark job failed: {text}"
    assert error.message == f"{sentence}\n\n{original}"
    assert error.hint == known.hint


def test_every_cause_has_a_text_and_a_row_in_the_documentation() -> None:
    names = [cause.name for cause in CAUSES]
    assert len(set(names)) == len(names)
    assert {name for name, *_ in SAID} == set(names)
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == set(names)


def test_an_unknown_text_stays_as_it_is() -> None:
    error = ClusterError("the Spark job failed: it rains", hint="wait")
    assert explained(error, ["and it is dark"]) is error
    assert str(error) == "the Spark job failed: it rains\nhint: wait"


def test_what_else_was_said_is_added_where_it_told() -> None:
    error = explained(
        WorkerLost("worker 1 was lost: closed", hint="resume"),
        ["nothing of it", "a\nSpark: exited with code 137\nb"],
    )
    assert type(error) is WorkerLost
    assert error.message.split("\n\n")[1] == "worker 1 was lost: closed\nSpark: exited with code 137"
    assert error.hint.endswith("; resume")


def test_explaining_again_changes_nothing() -> None:
    error = explained(WorkerLost("exited with code 137", hint="resume"))
    before = str(error), error.message, error.hint
    assert (str(explained(error)), error.message, error.hint) == before


def test_an_explained_error_is_explained_anew_where_it_arrives() -> None:
    error = explained(
        UserCodeError("ModuleNotFoundError: No module named 'nltk'\nraised by the network's forward")
    )
    assert str(error).startswith("the Python of the executors has no module nltk\nhint: ")
    told = explained(rebuild_failure(describe_failure(error), "the cluster"))
    assert type(told) is UserCodeError
    assert told.message.count("has no module") == 1
    assert (
        "\n\nModuleNotFoundError: No module named 'nltk'\nraised by the network's forward\non the cluster"
        in str(told)
    )


@pytest.mark.parametrize(
    "error",
    [
        UserCodeError("ConnectionRefusedError: [Errno 111] Connection refused\nraised by the loss"),
        UserCodeError("ValueError: x\nraised by the loss\n\nTraceback: No module named 'x'"),
        DataError("row 3: expected a number, received 'No space left on device'"),
        ShippingError(
            "loss.lock: cannot be sent to the executors: TypeError: cannot pickle '_thread.lock' object"
        ),
    ],
    ids=lambda error: error.message[:20],
)
def test_the_users_own_errors_stay_as_they_are(error: FatwoodError) -> None:
    before = str(error)
    assert str(explained(error)) == before


def test_a_full_disk_of_a_worker_is_told() -> None:
    failure = {"type": "StorageError", "message": "spill: [Errno 28] No space left on device", "hint": None}
    error = explained(rebuild_failure(failure, "worker 1 on host h"))
    assert type(error) is StorageError
    assert str(error).startswith("a disk is full\nhint: workers keep their rows")


def test_another_python_is_not_the_users_fault() -> None:
    trace = (
        "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in main\n'
        "pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has different "
        "version: 3.9 than that in driver: 3.11, PySpark cannot run with different minor versions.\n\n\tat org.apache"
    )
    error = failure_of_spark(RuntimeError(trace))
    assert type(error) is ClusterError
    assert str(error).startswith(
        "the executors run Python 3.9, the driver Python 3.11\nhint: set PYSPARK_PYTHON"
    )


# --- real ones --------------------------------------------------------------------------------------------------


def fit(df, *, loss=None, **options):
    optimizer = partial(torch.optim.SGD, lr=0.1)
    loss = loss or nn.CrossEntropyLoss()
    model = SparkModel(nn.Linear(1, 2), loss=loss, optimizer=optimizer, strategy=AllReduce())
    options = {"workers": 2, "batch_size": 5, "progress": False} | options
    return model.fit(df, features="x", label="y", **options)


@pytest.fixture(scope="module")
def df(spark):
    return spark.range(0, 40, 1, 4).selectExpr("id / 40 x", "int(id % 2) y").cache()


@pytest.mark.spark
def test_a_module_that_only_the_driver_has(df, nothing_left, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    folder.joinpath("only_here.py").write_text("import torch\nloss = torch.nn.functional.cross_entropy\n")
    folder.joinpath("only_here.py").write_text(
        "import torch\ndef loss(output, label):\n    return torch.nn.functional.cross_entropy(output, label)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    import only_here

    with pytest.raises(ShippingError) as caught:
        fit(df, loss=only_here.loss)
    monkeypatch.delitem(sys.modules, "only_here")
    first, hint, _, original, *_ = str(caught.value).split("\n")
    assert first == "the Python of the executors has no module only_here"
    assert hint.startswith("hint: give driver and executors the same environment")
    assert original.startswith("network, loss, optimizer or strategy cannot be rebuilt on an executor")


@pytest.mark.spark
def test_a_closure_that_cannot_be_pickled_names_what_it_holds(df, nothing_left) -> None:
    with socket.socket() as held:

        def loss(output, label):
            return nn.functional.cross_entropy(output, label) * held.fileno()

        with pytest.raises(ShippingError) as caught:
            fit(df, loss=loss)
    first, hint, *_ = str(caught.value).split("\n")
    assert first.startswith(
        "loss (variable 'held' of the enclosing function): cannot be sent to the executors: TypeError"
    )
    assert hint.startswith("hint: locks, sessions, connections and open files stay on the driver")


@pytest.mark.spark
def test_a_refused_port(df, nothing_left, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = job_module.rendezvous_of
    monkeypatch.setattr(
        job_module, "rendezvous_of", lambda *args: replace(given(*args), address=("127.0.0.1", port))
    )
    with pytest.raises(ClusterError) as caught:
        fit(df, workers=1)
    first, hint, _, original, *_ = str(caught.value).split("\n")
    assert first == "a connection was refused: nothing listens at the port, or a firewall is between"
    assert "`fatwood doctor` tries them all" in hint
    assert original.startswith("this worker cannot reach the driver")
    assert "(4 times in a row, without a row trained in between)" in original
    assert "pass checkpoints=Checkpoints" in hint


def other_python() -> str | None:
    """A Python of another minor version on this machine."""
    beside = Path(sys.base_prefix).parent.glob("*/bin/python3.?*")
    found = [*(Path("/usr/bin").glob("python3.?*")), *beside]
    for path in sorted(path for path in found if re.fullmatch(r"python3\.(9|\d\d)", path.name)):
        if path.name != f"python3.{sys.version_info[1]}" and os.access(path, os.X_OK):
            return str(path)
    return None


@pytest.mark.spark
def test_a_python_that_is_not_there_or_another(spark, df, nothing_left, monkeypatch) -> None:
    context = spark.sparkContext

    def same(batches):
        yield from batches

    rows = df.mapInArrow(same, df.schema)
    assert rows.count() == 40
    monkeypatch.setattr(context, "pythonExec", "/nowhere/python")
    with (
        pytest.raises(ClusterError, match=r"^/nowhere/python, which Spark was told to run") as caught,
        spark_errors(),
    ):
        df.mapInArrow(same, df.schema).count()
    assert 'Cannot run program "/nowhere/python"' in str(caught.value)
    with pytest.raises(ClusterError, match=r"expected Python 3\.\d+, the driver's, received /nowhere/python"):
        fit(df)
    other = other_python()
    if other is None:
        pytest.skip("this machine has no other Python")
    monkeypatch.setattr(context, "pythonExec", other)
    conf = context._jsc.sc().conf()
    conf.set("spark.python.daemon.module", "pyspark.daemon")  # ours needs packages that it does not have
    try:
        with pytest.raises(ClusterError) as caught, spark_errors():
            df.mapInArrow(same, df.schema).count()
    finally:
        conf.set("spark.python.daemon.module", "fatwood.spark.daemon")
    own = f"3.{sys.version_info[1]}"
    assert re.match(
        rf"the executors run Python 3\.\d+, the driver Python {re.escape(own)}\nhint: ", str(caught.value)
    )
    with pytest.raises(ClusterError, match="which is Python 3"):
        fit(df)


KILLED = """
import os, signal, sys, time
from functools import partial
import psutil, torch
from pyspark.sql import SparkSession
from fatwood import AllReduce, SparkModel
from fatwood.errors import WorkerLost

def loss(output, label):
    daemon = psutil.Process(os.getppid())
    os.kill(daemon.ppid(), signal.SIGKILL)  # the executor, as the kernel does when memory ends
    time.sleep(60)  # this process ends with it

quick = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
options = {
    "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false", "spark.log.level": "OFF", "spark.executor.memory": "600m",
    "spark.driver.extraJavaOptions": quick, "spark.executor.extraJavaOptions": quick,
}
spark = SparkSession.builder.master(sys.argv[1]).config(map=options).getOrCreate()
df = spark.range(0, 40, 1, 4).selectExpr("id / 40 x", "int(id % 2) y")
model = SparkModel(
    torch.nn.Linear(1, 2), loss=loss, optimizer=partial(torch.optim.SGD, lr=0.1), strategy=AllReduce()
)
try:
    model.fit(df, features="x", label="y", workers=1, progress=False)
except WorkerLost as error:
    print(error)
spark.stop()
"""


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(450)
def test_an_executor_that_is_killed_for_its_memory(tmp_path) -> None:
    with standalone_cluster(1, parent=tmp_path) as cluster:
        environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
        done = subprocess.run(
            [sys.executable, "-c", KILLED, cluster.master],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines, done.stderr[-3000:]
    assert lines[0].startswith("an executor was killed (SIGKILL, exit code 137), most likely because")
    assert lines[1].startswith("hint: give executors more memory")
    assert "pass checkpoints=Checkpoints(uri=..., every_seconds=60)" in lines[1]
    assert lines[3].startswith("no worker is left that knows the state of the training: worker 0 on host")
    assert re.fullmatch(r"Spark on executor 0 at 127\.0\.0\.1:\d+: Command exited with code 137", lines[4])
