"""When a run's state is kept, and by whom: the replica's side of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["RunRecorder"]


class RunRecorder:
    """Keeps what a run needs to go on elsewhere; this one keeps nothing."""

    def is_due(self, agreements: int) -> bool:
        """Asked on the worker of the lowest rank, before each agreement: should all keep their state after it?

        Args:
            agreements: Their number after it, over the model's life.
        """
        del agreements
        return False

    def keep(self, agreements: int, ranks: Sequence[int], own: bytes, shared: bytes | None) -> None:
        """Keep the state after an agreement.

        Args:
            agreements: Over the model's life.
            ranks: Of the workers that keep theirs.
            own: This worker's :meth:`Replica.run_state`, packed.
            shared: On the worker of the lowest rank its :meth:`Replica.shared_state`.
        """
