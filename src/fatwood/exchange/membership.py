"""Who trains together: the coordinator's decisions, without sockets, threads or a clock of its own.

A *rank* is a worker's number in the job and stays with its rows. A *member* is one process that asked for a rank;
of several that ask for one, one is seated and the others are spares. A *view* is a numbered list of the seated;
a later view replaces all earlier ones.

::

    join, ready ─┐                                ┌─> Seated        to every member of a new view
    leave ───────┤                                ├─> Held          no view can be formed now: let go of the present one
    suspect ─────┼─> Membership.take(now) ────────┼─> Evicted       to a member that must not go on
    waiting ─────┤                                └─> Notice        to the driver
    synced ──────┘

The rules:

1. The first view begins when every rank has a ready member. With ``min_workers`` it begins after `start_seconds` with
   at least so many.
2. Whenever the seated change, there is a new view: a lost member leaves at once, a ready spare or newcomer comes in.
3. With fewer than ``min_workers`` the seated are held until enough are back, at most `rejoin_seconds`.
4. A member that lost its connection to another says so. If the other's own connection to the coordinator stays up, the
   same members try again in a new view; if that does not get them one round further, the accused is evicted. Who
   cannot say whom it lost accuses itself.
5. When all rows but those of missing ranks are trained, the seated wait. After `rejoin_seconds` the missing ranks are
   abandoned if ``min_workers`` allows it, else the job has starved. Members that have joined for all of them and are
   getting ready are waited for as long as they live.
6. When no seated member has the training's state any more, the job is extinct. A newcomer may just have got it from
   one that is lost now: it says so, or that it cannot go on, and is waited for, at most `rejoin_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from fatwood.errors import OptionError

__all__ = ["Action", "Applicant", "Evicted", "Held", "Membership", "Notice", "Seated"]

_GRACE_SECONDS: Final = 0.2
"""How long after a suspicion the accused's own connection may still turn out to be closed."""


@dataclass(frozen=True)
class Applicant:
    """A process that asks for a rank."""

    member: int
    """Its number, never used again."""
    rank: int
    host: str
    port: int
    stateless: bool = False
    """It cannot begin the training from what it was given, and needs another's state."""


@dataclass(frozen=True)
class Seated:
    """These members are the view `number` from now on."""

    number: int
    members: tuple[Applicant, ...]
    """By rank."""
    newcomers: tuple[int, ...]
    """Ranks whose members have no state of the training yet."""
    abandoned: tuple[int, ...]
    """Ranks outside the view whose rows are not waited for."""


@dataclass(frozen=True)
class Held:
    """No view can be formed now; these members let go of views below `number` and wait."""

    number: int
    members: tuple[Applicant, ...]


@dataclass(frozen=True)
class Evicted:
    """This member must not go on."""

    member: Applicant
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something that the driver should know; see `coordinator.Event` for kinds and bodies."""

    kind: str
    body: dict[str, Any]
    member: Applicant | None = None


Action = Seated | Held | Evicted | Notice


@dataclass(eq=False)
class _Member:
    applicant: Applicant
    ready: bool = False
    seated: bool = False
    is_spare: bool = False
    has_state: bool = False


@dataclass
class _Deadline:
    """A moment that comes once, or not at all."""

    at: float | None = None
    what: str = ""


@dataclass
class _Blame:
    """Who accused whom in the present view."""

    accusers: dict[int, set[int]] = field(default_factory=dict)
    """Members, by accused member."""
    retry_at: float | None = None


class Membership:
    """The state machine; every input says what happened, `take` says what to do.

    Args:
        workers: Ranks of the job, 0 .. workers - 1.
        min_workers: How many must be there, at the start and later; None: all at the start, one later, and no rank's
            rows are ever abandoned.
        start_seconds: How long the first member waits for the others.
        rejoin_seconds: How long the seated wait for missing ones when they cannot go on without.
    """

    def __init__(
        self, workers: int, *, min_workers: int | None, start_seconds: float, rejoin_seconds: float
    ) -> None:
        if workers < 1 or not (min_workers is None or 1 <= min_workers <= workers):
            message = (
                f"expected workers >= 1 and 1 <= min_workers <= workers, received {workers} and {min_workers}"
            )
            raise OptionError(message)
        self._workers = workers
        self._min_workers = min_workers
        self._start_seconds = start_seconds
        self._rejoin_seconds = rejoin_seconds
        self._members: dict[int, _Member] = {}
        self._actions: list[Action] = []
        self._abandoned: frozenset[int] = frozenset()
        self._blame = _Blame()
        self._stuck: set[int] = set()  # who cannot go on in the present view
        self._accused_at: dict[int, int] = {}
        self._completed = 0
        self._deadline = _Deadline()
        self._held = False
        self._view: tuple[int, ...] = ()
        self.number = 0
        """Of the present view; 0 before the first."""
        self.ended = False
        """Whether the job is starved or extinct, or has not started in time."""

    @property
    def started(self) -> bool:
        """Whether there was a view."""
        return self.number > 0

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of the seated, increasing."""
        return tuple(sorted(m.applicant.rank for m in self._members.values() if m.seated))

    def next_deadline(self) -> float | None:
        """When `take` should be called next, if nothing happens before."""
        moments = [at for at in (self._deadline.at, self._blame.retry_at) if at is not None]
        return None if self.ended else min(moments, default=None)

    def join(self, applicant: Applicant, now: float) -> str | None:
        """A process asks for a rank; return why it cannot have it, or None."""
        if not 0 <= applicant.rank < self._workers:
            return f"expected a rank in 0 .. {self._workers - 1}, received {applicant.rank}"
        self._members[applicant.member] = _Member(applicant)
        if not self.started and self._deadline.at is None:
            self._deadline = _Deadline(now + self._start_seconds, "start")
        return None

    def ready(self, member: int) -> None:
        """The member has all that it needs to train."""
        self._members[member].ready = True
        self._tell_spares()

    def leave(self, member: int) -> None:
        """The member is gone, for whatever reason."""
        self._members.pop(member, None)
        self._accused_at.pop(member, None)

    def suspect(self, member: int, number: int, accused: int | None, now: float) -> None:
        """The member cannot go on in view `number`: it lost its connection to the accused rank, if it knows which."""
        if number != self.number or member not in self._view or self._held:
            return
        by_rank = {m.applicant.rank: m.applicant.member for m in self._members.values() if m.seated}
        self._stuck.add(member)
        lost = member if accused is None else by_rank.get(accused, member)
        self._blame.accusers.setdefault(lost, set()).add(member)
        if self._blame.retry_at is None:
            self._blame.retry_at = now + _GRACE_SECONDS

    def waiting(self, member: int, number: int, now: float) -> None:
        """The member has nothing to do in view `number` until missing ranks are back."""
        if number == self.number and member in self._view and self._deadline.at is None:
            self._deadline = _Deadline(now + self._rejoin_seconds, "rejoin")

    def synced(self, member: int, number: int, completed: int) -> None:
        """The member has the training's state, after so many rounds."""
        found = self._members.get(member)
        if found is not None and number <= self.number:
            found.has_state = True
            self._completed = max(self._completed, completed)

    def finish(self) -> None:
        """The training is over: whoever leaves now is not missed."""
        self.ended = True
        self._deadline = _Deadline()
        self._blame = _Blame()

    def take(self, now: float) -> list[Action]:
        """Decide what follows from all that has happened until now; return what to do, in order."""
        if not self.ended:
            if self.started:
                self._judge(now)
                self._settle(now)
            else:
                self._start(now)
        actions, self._actions = self._actions, []
        return actions

    def _start(self, now: float) -> None:
        chosen = self._chosen()
        late = self._deadline.at is not None and now >= self._deadline.at
        enough = self._workers if self._min_workers is None or not late else self._min_workers
        if len(chosen) >= enough and any(not m.applicant.stateless for m in chosen):
            for member in chosen:
                member.has_state = not member.applicant.stateless
            self._seat(chosen)
        elif late:
            missing = sorted(set(range(self._workers)) - {m.applicant.rank for m in chosen})
            self._end("missing", {"ranks": missing})

    def _settle(self, now: float) -> None:
        """Make the view that the members there allow, if it is not the present one."""
        chosen = self._chosen()
        late = self._deadline.at is not None and now >= self._deadline.at
        if not any(m.has_state for m in chosen):
            if late or not any(m.seated and m.applicant.member not in self._stuck for m in chosen):
                self._end("extinct", {"completed": self._completed})
            elif self._deadline.at is None:
                self._deadline = _Deadline(now + self._rejoin_seconds, "last word")
        elif len(chosen) < (self._min_workers or 1):
            self._hold(chosen, now)
        elif self._held or tuple(m.applicant.member for m in chosen) != self._view:
            self._seat(chosen)
        elif late:
            missing = self._missing(chosen)
            if self._are_on_their_way(missing - self._abandoned):
                self._deadline = _Deadline(now + self._rejoin_seconds, "rejoin")
            elif self._min_workers is None or not missing - self._abandoned:
                self._end("starved", {"ranks": sorted(missing), "seconds": self._rejoin_seconds})
            else:
                self._abandoned |= missing
                self._seat(chosen)

    def _hold(self, chosen: list[_Member], now: float) -> None:
        if not self._held:
            self._held = True
            self._deadline = _Deadline(now + self._rejoin_seconds, "rejoin")
            self._blame = _Blame()
            held = tuple(m.applicant for m in chosen if m.seated)
            self._actions.append(Held(self.number + 1, held))
            self._notice("held", {"ranks": [a.rank for a in held], "min_workers": self._min_workers})
        elif self._deadline.at is not None and now >= self._deadline.at:
            missing = self._missing(chosen)
            if self._are_on_their_way(missing):
                self._deadline = _Deadline(now + self._rejoin_seconds, "rejoin")
            else:
                self._end("starved", {"ranks": sorted(missing), "seconds": self._rejoin_seconds})

    def _missing(self, chosen: Iterable[_Member]) -> frozenset[int]:
        return frozenset(range(self._workers)) - {m.applicant.rank for m in chosen}

    def _are_on_their_way(self, missing: frozenset[int]) -> bool:
        """Whether every missing rank has a member that is not ready yet: it may take long to read its rows."""
        return bool(missing) and missing <= {m.applicant.rank for m in self._members.values() if not m.ready}

    def _judge(self, now: float) -> None:
        """Try again after a broken connection, or evict whom that did not help."""
        if self._blame.retry_at is None or now < self._blame.retry_at:
            return
        blame, self._blame = self._blame, _Blame()
        if not self._members.keys() >= set(self._view):
            return  # somebody is gone, which explains the broken connections: there will be a new view anyway
        again = {
            member: accusers
            for member, accusers in blame.accusers.items()
            if self._accused_at.get(member) == self._completed
        }
        self._accused_at.update(dict.fromkeys(blame.accusers, self._completed))
        if again:
            worst = max(again, key=lambda member: (len(again[member]), self._members[member].applicant.rank))
            evicted = self._members.pop(worst).applicant
            others = len(again[worst] - {worst})
            trouble = f"{others} other workers cannot reach it" if others else "it cannot reach the others"
            self._actions.append(Evicted(evicted, f"{trouble}, and trying again did not help"))
        else:
            self._view = ()  # the same members in a new view

    def _chosen(self) -> list[_Member]:
        """By rank, the member that is seated or may be: a ready one, the first that came."""
        by_rank: dict[int, _Member] = {}
        for member in self._members.values():
            known = by_rank.get(member.applicant.rank)
            if member.seated or (member.ready and known is None):
                by_rank[member.applicant.rank] = member
        return [by_rank[rank] for rank in sorted(by_rank)]

    def _seat(self, chosen: Iterable[_Member]) -> None:
        self.number += 1
        self._held = False
        self._deadline = _Deadline()
        self._blame = _Blame()
        self._stuck = set()
        chosen = list(chosen)
        for member in chosen:
            member.seated = True
        self._view = tuple(m.applicant.member for m in chosen)
        ranks = tuple(m.applicant.rank for m in chosen)
        self._abandoned -= set(ranks)
        seated = Seated(
            self.number,
            tuple(m.applicant for m in chosen),
            tuple(m.applicant.rank for m in chosen if not m.has_state),
            tuple(sorted(self._abandoned)),
        )
        self._actions.append(seated)
        body = {
            "number": self.number,
            "ranks": list(ranks),
            "members": list(self._view),
            "newcomers": list(seated.newcomers),
            "abandoned": list(seated.abandoned),
        }
        self._notice("view", body)
        self._tell_spares()

    def _tell_spares(self) -> None:
        """Tell once of every member that is ready and whose rank another has."""
        ranks = self.ranks
        for member in self._members.values():
            told = member.seated or member.is_spare
            if member.ready and not told and member.applicant.rank in ranks:
                member.is_spare = True
                self._notice("spare", {}, member.applicant)

    def _end(self, kind: str, body: dict[str, Any]) -> None:
        self.finish()
        self._notice(kind, body)

    def _notice(self, kind: str, body: dict[str, Any], member: Applicant | None = None) -> None:
        self._actions.append(Notice(kind, body, member))
