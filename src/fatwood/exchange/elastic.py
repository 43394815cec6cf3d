"""Rounds that survive the loss of workers: a worker's side of the protocol of docs/protocol.md.

`ElasticTeam.play` returns a round's outcome, whatever happens to other workers meanwhile::

    play:   move(exchange)                      all messages came: that is the outcome
            PeerLost, or a newer view           the exchange of this view is worthless
              -> the newest view                from the roster (the coordinator), mesh connected anew
              -> level                          all tell how many rounds they have completed, and who has no state
                   one round behind:            gets the outcome of that round from one that completed it
                   no state:                    gets a snapshot
              -> the outcome that was relayed, or move(exchange) again with the same messages

Nobody completes round k + 1 without a message of everybody in the view, so survivors are never more than one round
apart; and a message of a lost worker counts if a survivor completed the round with it, else for nobody.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, final

from fatwood.errors import ExchangeError, ProtocolError
from fatwood.exchange.contract import Buffer, Exchange
from fatwood.exchange.outcome import Outcome
from fatwood.exchange.roster import Roster
from fatwood.exchange.team import Move, Team, Trainee
from fatwood.exchange.view import View

__all__ = ["ElasticTeam"]

_STATUS: Final = struct.Struct("<QB")  # rounds completed; 1 with a state of the training


class _Status(NamedTuple):
    completed: int
    has_state: bool


@final
class ElasticTeam(Team):
    """A team that goes on when workers are lost or come.

    Args:
        roster: Says who belongs to the team.
        connect: Makes the exchange of a view, with this worker's end; must return or raise soon after the view is over.
    """

    def __init__(self, roster: Roster, connect: Callable[[View], Exchange]) -> None:
        self._roster = roster
        self._trainee: Trainee
        self._connect = connect
        self._view: View | None = None
        self._exchange: Exchange | None = None
        self._swapping_exchanges = threading.Lock()
        self._completed = 0
        self._last: Outcome | None = None
        self._has_state = False
        self._bytes_sent = 0  # of exchanges of earlier views, as the waits
        self._waited: Counter[int] = Counter()

    @property
    def rank(self) -> int:
        """See `Team`."""
        return self._roster.rank

    @property
    def ranks(self) -> tuple[int, ...]:
        """See `Team`."""
        return () if self._view is None else self._view.ranks

    @property
    def bytes_sent(self) -> int:
        """See `Team`."""
        return self._bytes_sent + (0 if self._exchange is None else self._exchange.bytes_sent)

    @property
    def waited_seconds(self) -> Mapping[int, float]:
        """See `Team`."""
        return self._waited + (
            Counter() if self._exchange is None else Counter(self._exchange.waited_seconds)
        )

    @property
    def abandoned(self) -> tuple[int, ...]:
        """See `Team`."""
        return () if self._view is None else self._view.abandoned

    @property
    def completed(self) -> int:
        """Rounds that this worker has completed, or was given as completed."""
        return self._completed

    def start(self, trainee: Trainee) -> bool:
        """Wait for the first view with this worker and be level with its members; a newcomer has its state then.

        Returns:
            False when the job was over before that.
        """
        self._trainee = trainee
        self._roster.on_change(self._let_go)
        return self._regroup(None)

    def play(self, move: Move) -> Outcome:
        """See `Team`."""
        before = self._completed
        error: ExchangeError | None = None
        while self._completed == before:
            if error is not None and not self._regroup(error):
                message = f"rank {self.rank}: the job was over before round {before}"
                raise ExchangeError(message) from error
            if self._completed == before:
                try:
                    exchange = self._current()
                    parts = tuple(move(exchange))
                    self._last = Outcome(exchange.ranks, self.abandoned, parts)
                    self._completed += 1
                except ExchangeError as failure:
                    error = failure
        return self._outcome()

    def wait(self, *, for_missing: bool) -> bool:
        """See `Team`."""
        if for_missing and self._view is not None:
            self._roster.waiting(self._view.number)
        return self._regroup(None)

    def close(self) -> None:
        """Leave the exchange; idempotent, from any thread."""
        exchange = self._exchange
        if exchange is not None:
            exchange.close()

    def _let_go(self, number: int) -> None:
        """Break off whatever runs in a view below `number`; from the roster's thread."""
        with self._swapping_exchanges:
            if self._exchange is not None and self._view is not None and self._view.number < number:
                self._exchange.close()

    def _regroup(self, error: ExchangeError | None) -> bool:
        """Be in the newest view and level with its members; False when the job is over."""
        while True:
            number = 0 if self._view is None else self._view.number
            if error is not None and self._roster.is_current(number):
                if isinstance(error, ProtocolError):
                    raise error
                if self._has_state:  # how far this view has got decides whether somebody is to blame
                    self._roster.synced(number, self._completed)
                self._roster.suspect(number, getattr(error, "rank", None))
            self.close()
            view = self._roster.view_after(number)
            if view is None:
                return False
            try:
                self._level(self._enter(view))
            except ExchangeError as failure:
                error = failure
            else:
                self._roster.synced(view.number, self._completed)
                return True

    def _enter(self, view: View) -> Exchange:
        if self._view is None:
            self._has_state = not self._roster.is_newcomer(view.number)
        self._bytes_sent, self._waited = self.bytes_sent, Counter(self.waited_seconds)
        self._view, self._exchange = view, None
        exchange = self._connect(view)
        with self._swapping_exchanges:  # a change that was announced meanwhile did not see this exchange
            self._exchange = exchange
            if not self._roster.is_current(view.number):
                exchange.close()
        return exchange

    def _level(self, exchange: Exchange) -> None:
        """Bring everybody to the same number of completed rounds, with a state."""
        status = _STATUS.pack(self._completed, self._has_state)
        statuses = [self._read_status(body) for body in exchange.swap(0, [status] * exchange.size)]
        top = max((s.completed for s in statuses if s.has_state), default=None)
        if top is None:
            message = f"rank {self.rank}: none of ranks {exchange.ranks} has the training's state any more"
            raise ExchangeError(message)
        if all(s.has_state and s.completed == top for s in statuses):
            return
        sponsor = next(i for i, s in enumerate(statuses) if s.has_state and s.completed == top)
        outgoing = [b""] * exchange.size
        if sponsor == exchange.position:
            missing = {status: self._missing(status, top) for status in set(statuses)}
            outgoing = [missing[status] for status in statuses]
        received = exchange.swap(1, outgoing)[sponsor]
        if not self._has_state:
            snapshot, *last = Outcome.unpack(received).parts
            self._trainee.restore(snapshot)
            self._last = Outcome.unpack(last[0]) if last else None
            self._has_state, self._completed = True, top
        elif self._completed < top:
            self._last = Outcome.unpack(received)
            self._completed = top

    def _missing(self, status: _Status, top: int) -> bytes:
        """What a worker with this status lacks."""
        if not status.has_state:
            # with the last outcome: this worker may be the next who is asked for it
            last = () if self._last is None else (self._last.pack(),)
            return Outcome((), (), (self._trainee.snapshot(), *last)).pack()
        if status.completed == top:
            return b""
        if status.completed != top - 1:
            message = f"rank {self.rank} has completed {top} rounds, another only {status.completed}"
            raise ProtocolError(message)
        return self._outcome().pack()

    def _current(self) -> Exchange:
        if self._exchange is None:
            message = f"rank {self.rank}: expected a team that has started"
            raise ExchangeError(message)
        return self._exchange

    def _outcome(self) -> Outcome:
        """Of the last completed round."""
        if self._last is None:
            message = f"rank {self.rank}: expected a completed round, received none"
            raise ProtocolError(message)
        return self._last

    def _read_status(self, body: Buffer) -> _Status:
        try:
            completed, has_state = _STATUS.unpack(body)
        except struct.error as error:
            message = f"rank {self.rank}: expected a status of {_STATUS.size} bytes, received {len(body)}"
            raise ProtocolError(message) from error
        return _Status(completed, bool(has_state))
