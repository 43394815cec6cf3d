"""The merge law as a conformance suite: a mergeable report joins it with one line.

In a test module::

    TestClassification = merging_suite(lambda: Classification.empty(4), classification_chunks(classes=4))

It needs hypothesis, which only tests need: ``pip install hypothesis``.

What must hold, for chunks of rows ``c1 ... cn`` and any split of them:

1. merging the reports of the split gives the report of one pass over all chunks, in whatever order and grouping;
2. the empty report changes nothing, on either side;
3. merging leaves both operands as they were, and the result shares no state with them;
4. a report that went through JSON equals the original, and merges and updates like it.

Equality means ``==`` and equal ``to_json()`` text, so no part of the state can be forgotten in a merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Protocol, TypeVar

import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor

__all__ = ["Chunk", "Mergeable", "classification_chunks", "merging_suite", "regression_chunks"]

Chunk = tuple[Tensor, Tensor, float]
"""Outputs (B, ...), labels (B, ...) and the sum of the loss over the B rows: the arguments of ``update``."""

_MAX_CHUNKS = 6
_MAX_ROWS = 5
_EXAMPLES = 20


class Mergeable(Protocol):
    """What a report must have to join the suite."""

    def update(self, outputs: Tensor, labels: Tensor, loss_sum: float, /) -> Any:
        """Count one chunk of rows, in place."""

    def merge(self, other: Any, /) -> Any:
        """The report of both reports' rows, a new one."""

    def to_json(self) -> str:
        """The whole state as text."""

    @classmethod
    def from_json(cls, text: str, /) -> Any:
        """The inverse of ``to_json``."""


R = TypeVar("R", bound=Mergeable)


def classification_chunks(classes: int) -> st.SearchStrategy[Chunk]:
    """Chunks of 0 to 5 rows for a classifier.

    Args:
        classes: C, the number of classes.

    Returns:
        A strategy of outputs (B, C) float32, labels (B,) int64 and a loss.
    """

    def chunk(labels: list[int], seed: int, loss_sum: float) -> Chunk:
        outputs = torch.randn(len(labels), classes, generator=torch.Generator().manual_seed(seed))
        return outputs, torch.tensor(labels, dtype=torch.int64), loss_sum

    labels = st.lists(st.integers(0, classes - 1), max_size=_MAX_ROWS)
    return st.builds(chunk, labels, st.integers(0, 2**32), _losses())


def regression_chunks(width: int = 1) -> st.SearchStrategy[Chunk]:
    """Chunks of 0 to 5 rows for a regression.

    Args:
        width: k, the number of outputs of a row.

    Returns:
        A strategy of outputs and labels (B, k) float32 and a loss.
    """

    def chunk(rows: int, seed: int, loss_sum: float) -> Chunk:
        generator = torch.Generator().manual_seed(seed)
        outputs, labels = torch.randn(2, rows, width, generator=generator).unbind()
        return outputs, labels, loss_sum

    return st.builds(chunk, st.integers(0, _MAX_ROWS), st.integers(0, 2**32), _losses())


def _losses() -> st.SearchStrategy[float]:
    """Losses whose float sum depends on the order: any sign, 30 orders of magnitude."""
    return st.floats(-1e15, 1e15, allow_subnormal=False)


def merging_suite(
    empty: Callable[[], R], chunks: st.SearchStrategy[Chunk], *, effort: settings | None = None
) -> type:
    """The conformance suite of one report; bind it to a name that starts with ``Test``.

    Args:
        empty: Makes a report of no rows, a new one at every call.
        chunks: A strategy of what ``update`` takes.
        effort: Hypothesis settings of every law; None for 20 examples.

    Returns:
        A class of tests for pytest.
    """
    lists = st.lists(chunks, max_size=_MAX_CHUNKS)
    run = effort or settings(max_examples=_EXAMPLES, deadline=None)

    class MergingSuite:
        """The merge law."""

        @run
        @given(lists, st.data())
        def test_any_split_merged_equals_one_pass(self, all_chunks: list[Chunk], data: st.DataObject) -> None:
            """Law 1: chunks dealt to workers at random, workers merged as a random tree."""
            owners = data.draw(
                st.lists(st.integers(0, 3), min_size=len(all_chunks), max_size=len(all_chunks))
            )
            dealt = list(zip(owners, all_chunks, strict=True))
            reports = [
                _pass(empty, [chunk for owner, chunk in dealt if owner == worker]) for worker in range(4)
            ]
            while len(reports) > 1:
                left = reports.pop(data.draw(st.integers(0, len(reports) - 1)))
                right = reports.pop(data.draw(st.integers(0, len(reports) - 1)))
                reports.append(left.merge(right))
            _assert_equal(reports[0], _pass(empty, all_chunks))

        @run
        @given(lists)
        def test_order_of_chunks_and_of_merging_changes_nothing(self, all_chunks: list[Chunk]) -> None:
            """Law 1: backwards, and one chunk at a time from either end."""
            expected = _pass(empty, all_chunks)
            singles = [_pass(empty, [chunk]) for chunk in all_chunks]
            _assert_equal(_pass(empty, all_chunks[::-1]), expected)
            _assert_equal(reduce(lambda left, right: left.merge(right), singles, empty()), expected)
            _assert_equal(reduce(lambda left, right: right.merge(left), singles, empty()), expected)

        @run
        @given(lists)
        def test_empty_is_neutral(self, all_chunks: list[Chunk]) -> None:
            """Law 2."""
            report = _pass(empty, all_chunks)
            _assert_equal(report.merge(empty()), report)
            _assert_equal(empty().merge(report), report)

        @run
        @given(lists, lists, chunks)
        def test_operands_and_result_are_independent(
            self, some: list[Chunk], others: list[Chunk], more: Chunk
        ) -> None:
            """Law 3: merging changes no operand, and updating any of the three changes no other."""
            left, right = _pass(empty, some), _pass(empty, others)
            merged = left.merge(right)
            _assert_equal(left, _pass(empty, some))
            _assert_equal(right, _pass(empty, others))
            left.update(*more)
            right.update(*more)
            _assert_equal(merged, _pass(empty, [*some, *others]))
            merged.update(*more)
            _assert_equal(left, _pass(empty, [*some, more]))
            _assert_equal(right, _pass(empty, [*others, more]))

        @run
        @given(lists, lists, chunks)
        def test_json_keeps_the_whole_state(
            self, some: list[Chunk], others: list[Chunk], more: Chunk
        ) -> None:
            """Law 4."""
            report = _pass(empty, some)
            copy = type(report).from_json(report.to_json())
            _assert_equal(copy, report)
            copy.update(*more)
            report.update(*more)
            _assert_equal(copy.merge(_pass(empty, others)), report.merge(_pass(empty, others)))

        def test_a_report_with_rows_differs_from_an_empty_one(self) -> None:
            """Guards the others: an equality that sees nothing would pass them all."""
            found = _first_with_rows(chunks)
            assert _pass(empty, [found]) != empty()
            assert _pass(empty, [found]).to_json() != empty().to_json()

    return MergingSuite


def _pass(empty: Callable[[], R], chunks: Sequence[Chunk]) -> R:
    """The report of one pass over the chunks."""
    report = empty()
    for outputs, labels, loss_sum in chunks:
        report.update(outputs, labels, loss_sum)
    return report


def _assert_equal(received: Mergeable, expected: Mergeable) -> None:
    assert received == expected
    assert received.to_json() == expected.to_json()
    assert str(received) == str(expected)


def _first_with_rows(chunks: st.SearchStrategy[Chunk]) -> Chunk:
    return find(
        chunks, lambda chunk: len(chunk[0]) > 0, settings=settings(database=None, phases=[Phase.generate])
    )
