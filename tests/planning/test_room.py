"""What memory is known of a cluster, and that less than the least is refused with the figures."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
import torch

from fatwood.data import Batch
from fatwood.errors import OptionError
from fatwood.planning.measuring import measure
from fatwood.testing.threads import training_job
from fatwood.train import AllReduce, DiLoCo, GradientSharing, ParameterAveraging, Strategy, TrainingJob
from fatwood.train.memory import PYTORCH_BYTES, least_worker_bytes

pytest.importorskip("pyspark")
from fatwood.spark.room import cgroup_limit, require_cgroup, require_settings

MIB = 1 << 20
N = 5_000_000
"""Parameters."""


def job(strategy: Strategy | None = None, optimizer: object = None, width: int = 2000) -> TrainingJob:
    return training_job(
        network=torch.nn.Linear(N // width, width, bias=False),
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=optimizer or partial(torch.optim.Adam, lr=1e-3),
        strategy=strategy or AllReduce(),
        batch_size=4,
        epochs=1,
    )


@pytest.mark.parametrize(
    ("strategy", "optimizer", "vectors"),
    [
        # pickled, network, gradients, Adam's two, the gradient to send; three times Adam's two while they are packed
        (AllReduce(), torch.optim.Adam, 6 + 6),
        # no state: the mean of two workers (3) and the packed network (3)
        (AllReduce(), partial(torch.optim.SGD, lr=0.1), 4 + 3),
        (AllReduce(staleness=1), partial(torch.optim.SGD, lr=0.1, momentum=0.9), 6 + 3),
        # a residual and what is agreed, and no vector to send: the message is made of a difference
        (GradientSharing(), partial(torch.optim.SGD, lr=0.1), 5 + 3),
        (GradientSharing(staleness=1), partial(torch.optim.SGD, lr=0.1), 7 + 3),
        (ParameterAveraging(), torch.optim.Adam, 9 + 9),
        (DiLoCo(), partial(torch.optim.SGD, lr=0.1), 6 + 3),
    ],
    ids=["adam", "sgd", "stale", "sharing", "sharing-stale", "averaging", "diloco"],
)
def test_the_least_is_counted_in_vectors(strategy: Strategy, optimizer: object, vectors: int) -> None:
    assert least_worker_bytes(job(strategy, optimizer), 2) == PYTORCH_BYTES + 4 * N * vectors


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_least_is_less_than_what_a_worker_really_takes() -> None:
    strategies = [AllReduce(), GradientSharing(), ParameterAveraging(), DiLoCo()]
    optimizer = partial(torch.optim.Adam, lr=1e-3)
    measured = measure(
        network=job().network,
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=optimizer,
        strategies=strategies,
        batch=Batch(features=torch.randn(4, N // 2000), label=torch.zeros(4, dtype=torch.int64)),
        rows=4,
        workers=2,
        threads=1,
        steps=2,
        timeout_seconds=200,
    )
    for strategy, found in zip(strategies, measured.together, strict=True):
        least = least_worker_bytes(job(strategy, optimizer), 2)
        assert 0.4 * found.peak_bytes < least < found.peak_bytes


def test_without_known_limits_nothing_is_refused() -> None:
    require_settings({"spark.master": "spark://h:7077", "spark.executor.memory": "1m"}, job(), 2)
    require_settings({"spark.master": "local[2]"}, job(), 2)
    require_cgroup(job(), 2, None)


def test_pyspark_memory_is_divided_by_cores_and_refused_with_the_figures() -> None:
    least = least_worker_bytes(job(), 2) // MIB
    conf = {"spark.executor.cores": "2", "spark.executor.pyspark.memory": f"{2 * least - 2}m"}
    text = (
        f"at least {least} MiB for a Python worker, received {least - 1} MiB .spark.executor.pyspark.memory"
    )
    with pytest.raises(OptionError, match=text):
        require_settings(conf, job(), 2)
    require_settings(conf | {"spark.executor.pyspark.memory": f"{2 * least + 2}m"}, job(), 2)


@pytest.mark.parametrize(
    ("conf", "total"),
    [
        ({"spark.master": "yarn"}, 1024 + 384),
        ({"spark.master": "yarn", "spark.executor.memory": "10g"}, 10240 + 1024),
        ({"spark.master": "k8s://h", "spark.executor.memory": "2g"}, 2048 + 819),
        ({"spark.master": "yarn", "spark.executor.memoryOverhead": "700"}, 1024 + 700),
        ({"spark.master": "yarn", "spark.executor.memoryOverheadFactor": "0.5"}, 1024 + 512),
        ({"spark.master": "yarn", "spark.executor.minMemoryOverhead": "600m"}, 1024 + 600),
        (
            {
                "spark.master": "yarn",
                "spark.memory.offHeap.enabled": "true",
                "spark.memory.offHeap.size": "1g",
            },
            1024 + 384 + 1024,
        ),
    ],
    ids=str,
)
def test_a_container_is_as_large_as_spark_asks_for(
    conf: dict[str, str], total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fatwood.spark.room.least_worker_bytes", lambda *_: 1 << 42)
    with pytest.raises(OptionError, match=rf"received {total} MiB"):
        require_settings(conf, job(), 2)


def test_a_container_that_fits_only_with_an_empty_heap_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    conf = {"spark.master": "yarn", "spark.executor.memory": "4g", "spark.executor.memoryOverhead": "390m"}
    with caplog.at_level(logging.WARNING, "fatwood.memory"):
        require_settings(conf, job(), 2)
    assert "390 MiB beside its heap" in caplog.text
    caplog.clear()
    require_settings(conf | {"spark.executor.memoryOverhead": "2g"}, job(), 2)
    assert not caplog.text


def test_30_percent_less_than_the_least_of_a_control_group_is_refused() -> None:
    least = least_worker_bytes(job(), 2)
    require_cgroup(job(), 2, least)
    text = f"at least {least >> 20} MiB for a Python worker, received {least * 7 // 10 >> 20} MiB, the limit of its control group"
    with pytest.raises(OptionError, match=text):
        require_cgroup(job(), 2, least * 7 // 10)


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_limit_of_the_group_and_those_above_counts(tmp_path: Path, version: int) -> None:
    base, name = (tmp_path / "memory", "memory.limit_in_bytes") if version == 1 else (tmp_path, "memory.max")
    inner = base / "pod" / "container"
    inner.mkdir(parents=True)
    (inner / name).write_text("3000\n")
    (base / "pod" / name).write_text("2000\n")
    (base / name).write_text("9223372036854771712\n" if version == 1 else "max\n")
    own = tmp_path / "own"
    own.write_text("5:cpu:/x\n4:memory:/pod/container\n" if version == 1 else "0::/pod/container\n")
    assert cgroup_limit(tmp_path, own) == 2000
    own.write_text("4:memory:/\n" if version == 1 else "0::/elsewhere\n")
    assert cgroup_limit(tmp_path, own) is None
    assert cgroup_limit(tmp_path, tmp_path / "missing") is None
