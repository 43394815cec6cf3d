"""Garbage is collected between steps, at most so often, and Python's own setting comes back."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from fatwood.errors import OptionError
from fatwood.train.garbage import GarbageCollection, checked_gc_every_seconds


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    frozen = gc.get_freeze_count()
    assert gc.isenabled()
    yield
    gc.enable()
    if not frozen:
        gc.unfreeze()


def test_cycles_live_until_it_is_time() -> None:
    with GarbageCollection(0.05) as garbage:
        assert not gc.isenabled()
        garbage.freeze()
        dead = weakref.ref(Cycle())
        garbage.between_steps()
        assert dead() is not None
        assert garbage.collections == 0
        time.sleep(0.06)
        garbage.between_steps()
        assert dead() is None
        garbage.between_steps()
        assert garbage.collections == 1
    assert gc.isenabled()


def test_what_was_frozen_is_python_s_again() -> None:
    gc.unfreeze()
    with GarbageCollection(5.0) as garbage:
        dead = weakref.ref(Cycle())
        garbage.freeze()
        assert gc.get_freeze_count() > 1000
        gc.collect()
        assert dead() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert dead() is None


def test_what_others_froze_stays_so() -> None:
    gc.freeze()  # as the daemon does before it forks
    count = gc.get_freeze_count()
    try:
        with GarbageCollection(5.0) as garbage:
            garbage.freeze()
        assert gc.get_freeze_count() == count
    finally:
        gc.unfreeze()


def test_none_leaves_it_to_python() -> None:
    before = gc.get_freeze_count()
    with GarbageCollection(None) as garbage:
        garbage.freeze()
        garbage.between_steps()
        assert gc.isenabled()
        assert gc.get_freeze_count() == before
        assert garbage.collections == 0


def test_a_setting_of_the_user_s_is_kept_and_an_error_restores() -> None:
    gc.disable()
    with GarbageCollection(5.0):
        pass
    assert not gc.isenabled()
    gc.enable()

    def fails() -> None:
        with GarbageCollection(5.0) as garbage:
            garbage.freeze()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert gc.isenabled()


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), True, "5"], ids=str)
def test_other_values_are_refused(seconds: object) -> None:
    with pytest.raises(OptionError, match="gc_every_seconds: expected a number of seconds above 0, or None"):
        checked_gc_every_seconds(seconds)


def test_values() -> None:
    assert checked_gc_every_seconds(2) == 2.0
    assert checked_gc_every_seconds(None) is None
