"""Reading ahead changes neither minibatches nor their order, tells errors at their place, and leaves no thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fatwood.data.ahead as ahead_module
from fatwood.data import Batch, Lookahead
from fatwood.data.ahead import Prefetched, _nbytes
from fatwood.errors import OptionError


def _batch(number: int) -> Batch:
    return Batch(features=torch.full((1, 1), float(number)), label=None, row_ids=np.array([number]))


def _source(n: int, fails_at: int | None = None) -> Generator[Batch]:
    for number in range(n):
        if number == fails_at:
            message = f"no batch {number}"
            raise OSError(message)
        yield _batch(number)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fatwood-prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    yield
    assert _threads() == []


def _numbers(batches: Iterator[Batch]) -> list[int]:
    return [int(batch.row_ids[0]) for batch in batches]


@given(n=st.integers(0, 12), ahead=st.integers(1, 4))
@settings(deadline=None)
def test_all_batches_come_in_order(n: int, ahead: int) -> None:
    batches = Prefetched(_source(n), ahead)
    assert _numbers(batches) == list(range(n))
    assert _numbers(batches) == []  # the end stays the end
    batches.close()


@given(n=st.integers(0, 6), ahead=st.integers(0, 3))
@settings(deadline=None)
def test_a_lookahead_knows_the_last_one(n: int, ahead: int) -> None:
    source = Prefetched(_source(n), ahead) if ahead else _source(n)
    batches = Lookahead(source)
    seen = 0
    while batches.has_more():
        assert int(next(batches).row_ids[0]) == seen
        seen += 1
    assert seen == n
    with pytest.raises(StopIteration):
        next(batches)
    source.close()


@given(n=st.integers(1, 8), ahead=st.integers(1, 4), data=st.data())
@settings(deadline=None)
def test_an_error_comes_where_its_batch_would(n: int, ahead: int, data: st.DataObject) -> None:
    fails_at = data.draw(st.integers(0, n - 1))
    batches = Prefetched(_source(n, fails_at), ahead)
    seen = [int(next(batches).row_ids[0]) for _ in range(fails_at)]
    assert seen == list(range(fails_at))
    for _ in range(2):
        with pytest.raises(OSError, match=f"no batch {fails_at}"):
            next(batches)
    batches.close()


@pytest.mark.parametrize(("ahead", "room", "max_bytes"), [(1, 1, None), (3, 3, None), (9, 2, 23), (9, 1, 7)])
def test_no_more_than_announced_are_read_ahead(ahead: int, room: int, max_bytes: int | None) -> None:
    """A minibatch here has 8 bytes in its tensors."""
    begun: list[int] = []
    idle = threading.Condition()

    def source() -> Generator[Batch]:
        for number in range(10):
            with idle:
                begun.append(number)
                idle.notify_all()
            yield replace(_batch(number), weight=torch.ones(1))

    batches = Prefetched(source(), ahead, max_bytes=max_bytes)
    try:
        for taken in range(5):
            with idle:
                assert idle.wait_for(lambda taken=taken: len(begun) >= taken + room, timeout=10)
                assert not idle.wait_for(lambda taken=taken: len(begun) > taken + room, timeout=0.05)
            next(batches)
    finally:
        batches.close()


@given(sizes=st.lists(st.integers(1, 9), max_size=12), ahead=st.integers(1, 4), bound=st.integers(1, 12))
@settings(deadline=None)
def test_all_sizes_pass_within_the_bound(sizes: list[int], ahead: int, bound: int) -> None:
    """Also those that are larger than the bound: each waits alone."""
    with patch.object(ahead_module, "deque", Waiting):
        batches = Prefetched(_sized(sizes), ahead, max_bytes=4 * bound)
    seen = batches._waiting
    assert [len(batch.label) for batch in batches] == sizes
    assert isinstance(seen, Waiting)
    assert all(len(held) <= ahead and (len(held) == 1 or sum(held) <= 4 * bound) for held in seen.held)
    batches.close()


class Waiting(deque):
    """Remembers what waited, in bytes, after each addition."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[list[int]] = []

    def append(self, waiting: tuple[Batch, int]) -> None:
        super().append(waiting)
        self.held.append([batch.label.nbytes for batch, _ in self])


def _sized(sizes: list[int]) -> Generator[Batch]:
    """Minibatches with so many numbers each, all of them in the label."""
    for size in sizes:
        yield Batch(features=torch.empty(size, 0), label=torch.zeros(size))


def test_masks_and_inputs_by_name_count() -> None:
    first = Batch(
        features={"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)},
        label=(torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
        feature_mask={"a": torch.ones(2, 3, dtype=torch.bool)},
    )
    assert _nbytes(first) == 24 + 8 + 8 + 16 + 6


@pytest.mark.parametrize("taken", [0, 2])
def test_closing_ends_the_thread_and_the_source(taken: int) -> None:
    closed = threading.Event()

    def source() -> Generator[Batch]:
        try:
            yield from _source(100)
        finally:
            closed.set()

    batches = Prefetched(source(), 2)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert closed.is_set()
    assert _threads() == []
    batches.close()
    with pytest.raises(OptionError, match="received a call after its end"):
        next(batches)


def test_closing_waits_for_a_batch_under_way() -> None:
    reading, go_on = threading.Event(), threading.Event()

    def source() -> Generator[Batch]:
        reading.set()
        assert go_on.wait(10)
        yield _batch(0)

    batches = Prefetched(source(), 1)
    assert reading.wait(10)
    timer = threading.Timer(0.1, go_on.set)
    timer.start()
    batches.close()
    assert go_on.is_set()
    timer.join()


def test_a_thread_without_room_is_refused() -> None:
    with pytest.raises(OptionError, match="prefetch: expected at least 1"):
        Prefetched(_source(1), 0)
    with pytest.raises(OptionError, match="prefetch of bytes: expected at least 1"):
        Prefetched(_source(1), 1, max_bytes=0)


def test_pinning_keeps_the_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA there is nothing to pin; the call is seen where it is made up."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor + 1

    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
        batches = Prefetched(_source(2), 1, pin=True)
        assert [(int(b.row_ids[0]), float(b.features)) for b in batches] == [(0, there), (1, 1 + there)]
        assert len(pinned) == 2 * there
        batches.close()
