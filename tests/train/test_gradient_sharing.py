"""Gradient sharing: every option does something or is refused, and one worker's half of the reduction."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from fatwood.codec import (
    AdaptiveThreshold,
    DensityWarmup,
    FixedThreshold,
    ResidualClipping,
    Sent,
    TargetSparsityThreshold,
    ThresholdState,
    decode,
)
from fatwood.errors import OptionError
from fatwood.exchange import Outcome, in_process_group
from fatwood.train import AllReduce, GradientSharing
from fatwood.train.header import HEADER_BYTES, Header, split
from fatwood.train.reduce import headers_of

N = 200


class HalvingThreshold:
    """A user's own rule: satisfies the protocol, inherits nothing."""

    start_density = None

    def init(self, tau: float | None = None) -> ThresholdState:
        return ThresholdState(tau or 8.0)

    def next(self, state: ThresholdState, last: Sent | None) -> tuple[float, ThresholdState]:
        return state.tau, ThresholdState(state.tau / 2)

    def merge(self, states: list[ThresholdState]) -> ThresholdState:
        return states[0]

    def __repr__(self) -> str:  # in a test's name, which must be the same in every process
        return "HalvingThreshold()"


def train(strategy: GradientSharing, steps: int = 6, rows: tuple[int, ...] = (3, 1)):
    """A few agreements on random updates: everybody's target, messages and records."""
    targets = [np.zeros(N, np.float32) for _ in rows]
    reducers = [strategy.reducer(N) for _ in rows]
    wires: list[list[bytes]] = [[] for _ in rows]
    records: list[list[object]] = [[] for _ in rows]
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        rng = np.random.default_rng(rank)
        try:
            with exchanges[rank] as exchange:
                for step in range(steps):
                    delta = rng.laplace(size=N).astype(np.float32)
                    reducers[rank].prepare(step, Header(rows[rank], 0.0, True), delta)
                    parts = reducers[rank].play(exchange, step)
                    outcome = Outcome(exchange.ranks, (), tuple(parts))
                    headers = headers_of(outcome)
                    assert [header.rows for header in headers] == list(rows)
                    wires[rank].append(bytes(split(rank, parts[rank])[1]))
                    assert reducers[rank].message_bytes(N) == HEADER_BYTES + len(wires[rank][-1])
                    reducers[rank].add_reduced(step, outcome, headers, targets[rank])
                    records[rank] += reducers[rank].take_records()
        except BaseException as error:
            errors.append(error)

    exchanges = in_process_group(len(rows))
    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]
    return targets, wires, records


BASE = GradientSharing(threshold=FixedThreshold(tau=2.0), clipping=None)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": AdaptiveThreshold(initial=2.0)},
        {"threshold": TargetSparsityThreshold(initial="quantile")},
        {"threshold": HalvingThreshold()},
        {"clipping": ResidualClipping(max_multiple=1, every=2)},
        {"warmup": DensityWarmup(steps=2)},
        {"warmup": DensityWarmup(steps=2, initial=1.0)},
    ],
    ids=str,
)
def test_every_option_changes_what_is_sent_and_targets_stay_equal(changes: dict[str, object]) -> None:
    (one, two), wires, _ = train(replace(BASE, **changes))
    assert one.tobytes() == two.tobytes()
    assert wires != train(BASE)[1]


def test_encoding_debug_measures_and_the_records_are_handed_out_once() -> None:
    (plain, _), wires, none = train(BASE)
    (debugged, _), same, records = train(replace(BASE, encoding_debug=True))
    assert plain.tobytes() == debugged.tobytes()
    assert wires == same
    assert none == [[], []]
    for rank in (0, 1):
        assert [record.step for record in records[rank]] == list(range(6))
        assert [record.bytes for record in records[rank]] == [len(wire) for wire in wires[rank]]
    assert AllReduce().reducer(N).take_records() == []


def test_the_mean_is_weighted_by_rows_and_a_worker_without_rows_sends_nothing() -> None:
    targets, wires, _ = train(BASE, steps=1)
    first, second = (decode(wire[0], N, 0).dense() for wire in wires)
    np.testing.assert_allclose(targets[0], 0.75 * first + 0.25 * second, rtol=1e-6)
    targets, wires, _ = train(BASE, steps=1, rows=(3, 0))
    assert wires[1] == [b""]
    assert np.array_equal(targets[0], decode(wires[0][0], N, 0).dense())


def test_a_dense_first_step_is_the_mean_of_the_updates_within_half_precision() -> None:
    targets, _, _ = train(replace(BASE, warmup=DensityWarmup(steps=1, initial=1.0)), steps=1)
    updates = [np.random.default_rng(rank).laplace(size=N) for rank in (0, 1)]
    np.testing.assert_allclose(targets[0], 0.75 * updates[0] + 0.25 * updates[1], atol=5e-3)


def test_the_kernel_gets_the_threads_of_the_task() -> None:
    assert BASE.reducer(N)._encoder.threads == torch.get_num_threads()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 1e-3}, "threshold: expected"),
        ({"threshold": None}, "threshold: expected"),
        ({"threshold": AdaptiveThreshold}, "pass an instance"),
        ({"clipping": 5}, "clipping: expected"),
        ({"warmup": 100}, "warmup: expected"),
        ({"encoding_debug": 1}, "encoding_debug: expected"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        GradientSharing(**options)  # type: ignore[arg-type]
