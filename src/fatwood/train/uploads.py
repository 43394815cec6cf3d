"""Checkpoints on their way from a worker to the driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType

from fatwood.errors import FatwoodError
from fatwood.exchange import Member
from fatwood.snapshots import Checkpoints
from fatwood.train.recorder import RunRecorder

__all__ = ["Uploads"]


class Uploads(RunRecorder):
    """Sends checkpoints to the driver, in a thread of its own so that training goes on meanwhile.

    Args:
        member: Of this worker.
        policy: When; None for never.
    """

    def __init__(self, member: Member, policy: Checkpoints | None) -> None:
        self._member = member
        self._policy = policy
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._failure: FatwoodError | None = None

    def is_due(self, agreements: int) -> bool:
        """See :class:`RunRecorder`."""
        policy = self._policy
        if policy is None:
            return False
        if policy.every_steps is not None:
            return agreements % policy.every_steps == 0
        idle = self._thread is None or not self._thread.is_alive()
        return idle and time.monotonic() - self._last >= (policy.every_seconds or 0.0)

    def keep(self, agreements: int, ranks: Sequence[int], own: bytes, shared: bytes | None) -> None:
        """See :class:`RunRecorder`; waits for the upload before, and raises what that one raised."""
        self._last = time.monotonic()
        self.finish()
        parts = {"own": own} if shared is None else {"shared": shared, "own": own}
        arguments = (agreements, list(ranks), parts)
        self._thread = threading.Thread(
            target=self._send, args=arguments, name=f"fatwood-checkpoint-{agreements}", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """Wait until everything has been sent.

        Raises:
            FatwoodError: The driver could not take it.
        """
        if self._thread is not None:
            self._thread.join()  # its sends are bounded
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Uploads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(FatwoodError):
            self.finish()

    def _send(self, agreements: int, ranks: list[int], parts: Mapping[str, bytes]) -> None:
        try:
            for name, body in parts.items():
                self._member.send_blob(f"checkpoint-{agreements}-{name}", body)
            self._member.report("checkpoint", {"agreements": agreements, "ranks": ranks})
        except FatwoodError as error:
            self._failure = error
