"""Threads of which only one runs at a time, in an order that somebody else decides.

Blocking code runs as it is, each actor in a thread of its own. An actor that pauses asks who is next and hands over;
so there is no thread in the middle, and a thread that is next itself goes on without a switch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import final

__all__ = ["Aborted", "Actor", "Theatre"]


class Aborted(BaseException):
    """Ends an actor's thread at the point where it paused; nothing but the theatre catches it."""


@final
class Actor:
    """A thread that plays one part after another."""

    def __init__(self, theatre: Theatre) -> None:
        self.aborted = False
        """Set it, and the actor ends at its next turn instead of going on."""
        self._theatre = theatre
        self._part: Callable[[], None] | None = None
        self._turn = threading.Lock()
        self._turn.acquire()
        self._thread = threading.Thread(target=self._live, name="fatwood-actor", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Let others run, until it is this actor's turn again. Called from the part.

        Raises:
            Aborted: The part is to end here.
        """
        if self.aborted:
            raise Aborted
        if self._theatre._hand_over(self):
            self._turn.acquire()
        if self.aborted:
            raise Aborted

    def _cast(self, part: Callable[[], None] | None) -> None:
        self._part, self.aborted = part, False

    def _live(self) -> None:
        while True:
            self._turn.acquire()
            if self._part is None:
                return
            try:
                if not self.aborted:
                    self._part()
            except Aborted:
                pass
            self._theatre._ended(self)

    def _leave(self) -> None:
        self._cast(None)
        self._turn.release()
        self._thread.join()


@final
class Theatre:
    """Actors, kept from one play to the next. One play at a time; use it as a context manager."""

    def __init__(self) -> None:
        self._idle: list[Actor] = []
        self._playing: dict[int, Actor] = {}
        self._next: Callable[[], Actor | None] = lambda: None
        self._failure: BaseException | None = None
        self._over = threading.Lock()
        self._over.acquire()

    def hire(self, part: Callable[[], None]) -> Actor:
        """An actor for this part, which begins at its first turn. A part must raise nothing but `Aborted`."""
        actor = self._idle.pop() if self._idle else Actor(self)
        actor._cast(part)
        self._playing[id(actor)] = actor
        return actor

    def play(self, choose: Callable[[], Actor | None]) -> None:
        """Run actors until `choose` returns None, then abort those that have not ended.

        Args:
            choose: Says whose turn is next. Called in any thread, by one at a time.

        Raises:
            Exception: What `choose` raised.
        """
        self._next, self._failure = choose, None
        first = self._choose()
        if first is not None:
            first._turn.release()
            self._over.acquire()
        self._next = lambda: None
        for actor in list(self._playing.values()):
            actor.aborted = True
            actor._turn.release()
            self._over.acquire()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End all threads."""
        for actor in self._idle:
            actor._leave()
        self._idle.clear()

    def __enter__(self) -> Theatre:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _choose(self) -> Actor | None:
        try:
            return self._next()
        except BaseException as error:
            self._failure, self._next = error, lambda: None
            return None

    def _hand_over(self, actor: Actor | None) -> bool:
        """Wake who is next; False when that is this actor itself."""
        chosen = self._choose()
        if chosen is actor and actor is not None:
            return False
        (self._over if chosen is None else chosen._turn).release()
        return True

    def _ended(self, actor: Actor) -> None:
        del self._playing[id(actor)]
        self._idle.append(actor)
        self._hand_over(None)
