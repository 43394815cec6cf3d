"""What must hold in every schedule, at every moment and at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from fatwood.exchange.membership import Seated
from fatwood.train.ledger import Ledger, Stage

if TYPE_CHECKING:
    from fatwood.testing.simulation.plan import Plan
    from fatwood.testing.simulation.process import Process
    from fatwood.testing.simulation.training import Toy

__all__ = ["Laws"]


@dataclass
class _Agreed:
    """The parameters after some number of rounds, and who has or had them."""

    parameters: int
    holders: list[Process] = field(default_factory=list)


@final
class Laws:
    """Watches all processes of one schedule; every method raises `AssertionError` where a law is broken."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._agreed: dict[int, _Agreed] = {}
        self._number = 0

    def of(self, process: Process) -> Callable[[int, int, Ledger], None]:
        """The callback of a process's replica."""

        def on_round(completed: int, parameters: int, ledger: Ledger) -> None:
            assert not ledger.rows_twice, f"{process}: {ledger.rows_twice} rows trained twice"
            assert not ledger.rows_passed_over, f"{process}: {ledger.rows_passed_over} rows passed over"
            if process.removed:
                process.world.count("round of a zombie")
                return  # it does not know yet that nobody counts on it
            agreed = self._agreed.setdefault(completed, _Agreed(parameters))
            if agreed.parameters != parameters:
                others = [p for p in agreed.holders if not p.dead and not p.removed]
                assert not others, (
                    f"after {completed} rounds {process} has parameters {parameters:08x}, "
                    f"{others} have {agreed.parameters:08x}"
                )
                agreed = self._agreed[completed] = _Agreed(parameters)
            agreed.holders.append(process)

        return on_round

    def seated(self, seated: Seated, processes: list[Process], min_workers: int | None) -> None:
        """A new view."""
        ranks = [a.rank for a in seated.members]
        assert ranks == sorted(set(ranks)), f"view {seated.number} has ranks {ranks}"
        assert seated.number > self._number, f"view {seated.number} after view {self._number}"
        assert not set(ranks) & set(seated.abandoned), f"view {seated.number} abandons its own ranks"
        assert len(ranks) >= (min_workers or 1), f"view {seated.number} of only {len(ranks)}"
        assert all(not processes[a.member].removed for a in seated.members), "a removed member is seated"
        for applicant in seated.members:
            toy = processes[applicant.member].toy
            state = toy.rounds > 0 or bool(toy.computed)
            told = applicant.rank not in seated.newcomers
            assert told or not state or processes[applicant.member].views, "a newcomer with a state"
        self._number = seated.number

    def finished(self, processes: list[Process], finishers: Sequence[int]) -> None:
        """The job is over: all that are there have the same end, every row was trained once an epoch."""
        there = [processes[member] for member in finishers]
        first = there[0].toy
        for process in there:
            assert process.toy.ledger.stage is Stage.OVER, f"{process} has not finished"
            assert process.toy.parameters == first.parameters, f"{process} ends with other parameters"
            assert process.toy.applied == first.applied, f"{process} has applied other rows"
            own, other = (
                json.dumps(toy.ledger.to_json()) for toy in (process.toy, first)
            )  # NaN is not itself
            assert own == other, f"{process} has the ledger {own}, {there[0]} has {other}"
        self._rows(first)
        for process in processes:
            self._costs(process, first, allowed=0 if process in there else 1)

    def _rows(self, toy: Toy) -> None:
        plan = self._plan
        stopped = toy.ledger.stopped is not None
        assert stopped or len(toy.ledger.records) == plan.epochs, f"{len(toy.ledger.records)} epochs"
        for epoch, record in enumerate(toy.ledger.records):
            for rank in range(plan.workers):
                spans = [(a.first, a.stop) for a in toy.applied if (a.epoch, a.rank) == (epoch, rank)]
                rows = [row for first, stop in spans for row in range(first, stop)]
                expected = list(range(plan.rows[rank]))
                broken_off = stopped and epoch == len(toy.ledger.records) - 1
                if broken_off or [epoch, rank] in toy.abandoned:
                    expected = expected[: len(rows)]
                assert rows == expected, f"epoch {epoch}: of rank {rank} rows {rows} were trained"
                trained = sum(not plan.is_bad(rank, row) for row in rows)
                counted = record.rows_of_worker[rank]
                assert counted == trained, f"epoch {epoch}: {counted} rows of rank {rank} counted"

    def _costs(self, process: Process, end: Toy, *, allowed: int) -> None:
        """At most the minibatch in flight is lost with a process, and the one before if nobody else completed it."""
        toy = process.toy
        if process.removed and not process.dead and allowed:
            return  # it trained for itself until it found itself out
        applied = set(end.applied)
        lost = [minibatch for minibatch in toy.computed if minibatch not in applied]
        agreed = self._agreed.get(toy.rounds)
        alone = toy.rounds > 0 and (agreed is None or agreed.parameters != toy.parameters)
        assert len(lost) <= allowed + alone, f"{process} computed {lost} for nothing"
