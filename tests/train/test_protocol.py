"""The protocol over random schedules of deliveries, deaths and returns, and whether the checks can fail."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from fatwood.errors import ExchangeError
from fatwood.exchange.contract import Exchange
from fatwood.exchange.elastic import ElasticTeam, _Status
from fatwood.exchange.membership import Applicant, Membership, Notice, Seated, _Member
from fatwood.exchange.outcome import Outcome
from fatwood.exchange.team import Move
from fatwood.testing.simulation import Fault, Plan, explore, explore_many
from fatwood.testing.simulation.__main__ import main
from fatwood.testing.simulation.baton import Theatre
from fatwood.testing.simulation.plan import draw
from fatwood.testing.simulation.training import Toy

CHUNK = 500
MUTANT_SEEDS = 1500


@pytest.mark.parametrize("first", range(0, 10_000, CHUNK))
def test_the_laws_hold_in_every_schedule(first: int) -> None:
    before = set(threading.enumerate())
    outcomes: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for report in explore_many(first, CHUNK):
        outcomes[report.outcome] += 1
        events += report.events
    assert outcomes.keys() <= {"over", "extinct", "starved", "missing"}
    assert outcomes["over"] > CHUNK / 2
    # what these schedules are for does come up in them
    assert min(events[e] for e in ("kill", "hang", "wake", "cut", "sever", "mute", "held", "evicted")) > 0
    assert min(events[e] for e in ("restored", "relayed", "waiting", "killed while levelling")) > 0
    assert set(threading.enumerate()) == before


def orphan(min_workers: int | None = None) -> Membership:
    """Of two members one is gone, and the other came without a state in the present view."""
    membership = Membership(2, min_workers=min_workers, start_seconds=10, rejoin_seconds=20)
    for member, rank in ((0, 0), (1, 1), (2, 1)):
        membership.join(Applicant(member, rank, "host", member), 0.0)
        membership.ready(member)
    assert [a.newcomers for a in membership.take(0.0) if isinstance(a, Seated)] == [()]
    membership.leave(1)
    assert [a.newcomers for a in membership.take(1.0) if isinstance(a, Seated)] == [(1,)]
    membership.leave(0)
    return membership


def kinds(membership: Membership, now: float) -> list[str]:
    return [action.kind for action in membership.take(now) if isinstance(action, Notice)]


def test_a_newcomer_that_has_just_got_the_state_goes_on_alone() -> None:
    membership = orphan()
    assert kinds(membership, 2.0) == []
    membership.synced(2, membership.number, 7)
    assert kinds(membership, 3.0) == ["view"]


def test_a_newcomer_that_did_not_get_the_state_ends_the_job() -> None:
    membership = orphan()
    assert kinds(membership, 2.0) == []
    membership.suspect(2, membership.number, 0, 3.0)
    assert kinds(membership, 3.0) == ["extinct"]


def test_a_newcomer_that_says_nothing_is_not_waited_for_longer_than_for_the_lost() -> None:
    membership = orphan()
    assert kinds(membership, 2.0) == []
    assert membership.next_deadline() == 22.0
    assert kinds(membership, 22.0) == ["extinct"]


def test_a_newcomer_that_got_the_state_waits_for_enough_others() -> None:
    membership = orphan(min_workers=2)
    assert kinds(membership, 2.0) == []
    membership.synced(2, membership.number, 7)
    assert kinds(membership, 3.0) == ["held"]
    assert membership.next_deadline() == 23.0


def test_a_seed_replays_its_schedule() -> None:
    for seed in range(30):
        first, second = (explore(seed, keep_trace=True) for _ in range(2))
        assert first == second
        assert len(first.trace) > 5
    assert explore(1, keep_trace=True).trace != explore(2, keep_trace=True).trace


def no_relay(patch: pytest.MonkeyPatch) -> None:
    """Whoever missed a round plays it again, although others have completed it."""
    read = ElasticTeam._read_status

    def read_status(team: ElasticTeam, body: bytes) -> _Status:
        status = read(team, body)
        return status._replace(completed=team.completed) if status.has_state and team._has_state else status

    patch.setattr(ElasticTeam, "_read_status", read_status)


def keep_what_came(patch: pytest.MonkeyPatch) -> None:
    """A message of a lost worker counts for those who have it."""
    play = ElasticTeam.play

    def patched(team: ElasticTeam, move: Move) -> Outcome:
        kept: dict[int, bytes] = {}

        def keeping(exchange: Exchange) -> list[bytes]:
            try:
                return [*move(exchange)]
            except ExchangeError:
                for position, inbox in exchange._inboxes.items():
                    if inbox and inbox[0] is not None and inbox[0][0] == exchange.tag:
                        kept[exchange.ranks[position]] = inbox[0][1]
                raise

        outcome = play(team, keeping)
        parts = dict(zip(outcome.ranks, outcome.parts, strict=False))
        lost = {rank: part for rank, part in kept.items() if rank not in parts}
        if not lost or len(outcome.parts) != len(outcome.ranks):
            return outcome
        parts = dict(sorted({**parts, **lost}.items()))
        return Outcome(tuple(parts), outcome.abandoned, tuple(parts.values()))

    patch.setattr(ElasticTeam, "play", patched)


def newcomers_begin_at_the_first_row(patch: pytest.MonkeyPatch) -> None:
    restore = Toy.restore

    def restore_but_position(toy: Toy, snapshot: bytes) -> None:
        restore(toy, snapshot)
        toy._epoch, toy._next_row = toy.ledger.epoch, 0

    patch.setattr(Toy, "restore", restore_but_position)


def snapshots_are_a_round_old(patch: pytest.MonkeyPatch) -> None:
    snapshot, complete = Toy.snapshot, Toy._complete

    def keep_then_complete(toy: Toy, outcome: Outcome) -> None:
        toy.stale = snapshot(toy)
        complete(toy, outcome)

    patch.setattr(Toy, "_complete", keep_then_complete)
    patch.setattr(Toy, "snapshot", lambda toy: getattr(toy, "stale", None) or snapshot(toy))


def the_present_view_says_who_is_abandoned(patch: pytest.MonkeyPatch) -> None:
    play = ElasticTeam.play

    def patched(team: ElasticTeam, move: Move) -> Outcome:
        return dataclasses.replace(play(team, move), abandoned=team.abandoned)

    patch.setattr(ElasticTeam, "play", patched)


def newcomers_do_not_get_the_last_outcome(patch: pytest.MonkeyPatch) -> None:
    missing = ElasticTeam._missing

    def without_last(team: ElasticTeam, status: _Status, top: int) -> bytes:
        if status.has_state:
            return missing(team, status, top)
        return Outcome((), (), (team._trainee.snapshot(),)).pack()

    patch.setattr(ElasticTeam, "_missing", without_last)


def the_job_is_extinct_before_newcomers_have_spoken(patch: pytest.MonkeyPatch) -> None:
    settle = Membership._settle

    def at_once(membership: Membership, now: float) -> None:
        membership._stuck = set(membership._members)
        settle(membership, now)

    patch.setattr(Membership, "_settle", at_once)


def nobody_hears_of_broken_links(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "suspect", lambda *_: None)


def spares_stay_spares(patch: pytest.MonkeyPatch) -> None:
    """Who takes over a lost rank's place does not change the view."""
    seat = Membership._seat

    def same_ranks(membership: Membership, chosen: list[_Member]) -> None:
        ranks = [membership_.applicant.rank for membership_ in chosen]
        if ranks != getattr(membership, "seated_ranks", None) or all(m.seated for m in chosen):
            membership.seated_ranks = ranks
            seat(membership, chosen)

    patch.setattr(Membership, "_seat", same_ranks)


def crowded(seed: int) -> Plan:
    """Everybody has a spare, so newcomers are there as soon as somebody dies."""
    return dataclasses.replace(
        draw(random.Random(seed)),
        workers=3,
        min_workers=None,
        rows=(3, 5, 4),
        epochs=2,
        late=(0.0,) * 3,
        returns=(),
        faults=(
            *[Fault("spare", 25, after_view=False)] * 3,
            Fault("kill", seed % 40, after_view=False),
            Fault("kill levelling", 15 + seed % 40, after_view=True),
        ),
        interference=0.05,
        delivery=3.0,
        tick=0.0,
        paces=(1.0,),
        stop_after=None,
        time=None,
    )


def lonely(seed: int) -> Plan:
    """The lost come back after they were abandoned."""
    return dataclasses.replace(
        draw(random.Random(seed)),
        workers=3,
        min_workers=1,
        rows=(3, 5, 4),
        epochs=2,
        late=(0.0,) * 3,
        returns=(200.0,) * 8,
        faults=(
            Fault("kill", seed % 40, after_view=False),
            Fault("kill", seed % 30, after_view=True),
        ),
        delivery=1.0,
        validate_every=None,
        stop_after=None,
        time=None,
    )


def widowed(seed: int) -> Plan:
    """Of two workers one is lost, and then the other while it hands on its state."""
    return dataclasses.replace(
        draw(random.Random(seed)),
        workers=2,
        min_workers=None,
        rows=(3, 2),
        late=(0.0,) * 2,
        returns=(),
        faults=(
            Fault("kill", 10 + seed % 40, after_view=False),
            Fault("spare", 0, after_view=True),
            Fault("kill levelling", 10 + seed % 30, after_view=False),
        ),
        interference=1.0,
    )


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[int], Plan] | None, str]] = [
    (no_relay, None, "ProtocolError"),
    (keep_what_came, None, "has parameters"),
    (newcomers_begin_at_the_first_row, None, "rows trained twice"),
    (snapshots_are_a_round_old, None, "rounds completed"),
    (the_present_view_says_who_is_abandoned, lonely, "has parameters"),
    (newcomers_do_not_get_the_last_outcome, crowded, "expected a completed round"),
    (the_job_is_extinct_before_newcomers_have_spoken, widowed, "have the state"),
    (nobody_hears_of_broken_links, None, "nothing can happen any more"),
    (spares_stay_spares, None, "nothing can happen any more"),
]


@pytest.mark.parametrize(("mutant", "plan", "complaint"), MUTANTS, ids=[m[0].__name__ for m in MUTANTS])
def test_a_wrong_protocol_is_caught(
    mutant: Callable[[pytest.MonkeyPatch], None],
    plan: Callable[[int], Plan] | None,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = set(threading.enumerate())
    mutant(monkeypatch)
    complaints = []
    with Theatre() as theatre:
        for seed in range(MUTANT_SEEDS):
            try:
                explore(seed, plan=plan and plan(seed), theatre=theatre)
            except AssertionError as error:
                complaints.append(str(error))
                if complaint in complaints[-1]:
                    break
    assert set(threading.enumerate()) == before
    assert complaints
    assert complaints[-1].startswith(f"seed {seed}: ")
    assert complaint in complaints[-1]


@pytest.mark.parametrize("plan", [crowded, lonely], ids=["crowded", "lonely"])
def test_the_laws_hold_where_it_is_crowded_or_lonely(plan: Callable[[int], Plan]) -> None:
    events: Counter[str] = Counter()
    with Theatre() as theatre:
        for seed in range(300):
            events += explore(seed, plan=plan(seed), theatre=theatre).events
    assert min(events["restored"], events["kill"]) > 10
    assert events["relayed"] > 3
    if plan is lonely:
        assert min(events["abandoned"], events["returned"]) > 10


def test_the_command_counts_what_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schedules", "40", "--first-seed", "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["failed_seeds"] == []
    assert sum(result["outcomes"].values()) == result["schedules"] == 40
    assert result["rounds"] > 40
    assert result["events"]["kill"] > 0


def test_the_command_names_a_seed_that_fails_and_shows_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomers_begin_at_the_first_row(monkeypatch)
    assert main(["--schedules", "400", "--json"]) == 1
    output = capsys.readouterr()
    seed = json.loads(output.out)["failed_seeds"][0]
    assert output.err.startswith(f"seed {seed}: ")
    assert "rows trained twice" in output.err
    assert "kill" in output.err


def test_the_trace_is_printed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schedules", "1", "--first-seed", "3", "--trace"]) == 0
    lines = capsys.readouterr().out.splitlines()
    trace = explore(3, keep_trace=True).trace
    assert tuple(lines[: len(trace)]) == trace
