"""The laws of memory: parts sum up, nothing gets less than it needs, and what does not fit says the figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fatwood.errors import OptionError
from fatwood.submission import DriverMemory, ExecutorMemory, parse_mib
from fatwood.submission.memory import worker_mib

WORKERS = st.integers(1, 64)
WORKER_MIB = st.integers(512, 200_000)
PARAMETERS = st.integers(0, 20_000_000_000)


@given(WORKERS, WORKER_MIB)
def test_an_executor_without_a_limit_takes_exactly_what_its_parts_need(workers: int, worker: int) -> None:
    memory = ExecutorMemory.of(workers, worker)
    assert memory.python == workers * worker
    assert memory.jvm >= max(384, memory.heap / 10)
    assert memory.heap >= 1024
    assert memory.spare == 0
    assert memory.heap + memory.overhead == memory.total


@given(WORKERS, WORKER_MIB, st.integers(1, 20_000_000))
def test_with_a_limit_the_parts_sum_up_to_it_or_it_is_refused_with_the_least_that_works(
    workers: int, worker: int, total: int
) -> None:
    least = workers * worker + 1024 + 384
    if total < least:
        with pytest.raises(
            OptionError, match=f"at least {least} MiB, received {total} MiB.* {workers} x {worker} "
        ):
            ExecutorMemory.of(workers, worker, total)
        total = least
    memory = ExecutorMemory.of(workers, worker, total)
    assert memory.heap + memory.overhead == memory.total == total
    assert memory.python == workers * worker
    assert memory.jvm >= max(384, memory.heap / 10)
    assert 1024 <= memory.heap <= ExecutorMemory.of(workers, worker).heap
    assert memory.spare >= 0


@given(WORKERS, WORKER_MIB)
def test_what_is_needed_given_as_the_limit_changes_nothing(workers: int, worker: int) -> None:
    needed = ExecutorMemory.of(workers, worker)
    assert ExecutorMemory.of(workers, worker, needed.total) == needed


@given(PARAMETERS, st.booleans())
def test_a_worker_needs_at_least_1_gib_and_every_vector_of_the_training_guide(
    parameters: int, cuda: bool
) -> None:
    vectors = 4 + 4 + 2  # network, gradients, Adam's two; DiLoCo with a threshold; while a mean is applied
    assert worker_mib(parameters, cuda=cuda) * 2**20 >= 2**30 + vectors * 4 * parameters
    assert worker_mib(parameters, cuda=True) > worker_mib(parameters, cuda=False)


@given(PARAMETERS, WORKERS)
def test_the_driver_holds_the_network_twice_in_its_heap_and_grows_with_workers(
    parameters: int, workers: int
) -> None:
    memory = DriverMemory.of(parameters, workers)
    assert memory.heap * 2**20 >= 2**30 + 8 * parameters
    assert memory.overhead == memory.jvm + memory.python
    assert memory.jvm >= max(384, memory.heap / 10)
    assert memory.python * 2**20 >= 2**30 + 24 * parameters
    assert DriverMemory.of(parameters, workers + 1).python > memory.python


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512m", 512), ("4g", 4096), ("1t", 1 << 20), ("2GiB", 2048), ("3GB", 3072), (" 1G ", 1024)],
)
def test_sizes_are_read_as_spark_reads_them(text: str, mib: int) -> None:
    assert parse_mib(text, "--x") == mib


@pytest.mark.parametrize("text", ["", "4", "4k", "0g", "-1g", "1.5g", "g", "4 g b", "9999999999g", "4g;rm"])
def test_other_sizes_are_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(OptionError, match=r"--memory-per-worker: expected a size such as 512m or 4g"):
        parse_mib(text, "--memory-per-worker")
