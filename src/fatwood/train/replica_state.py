"""What of a replica must survive: a fit, a checkpoint, or the loss of another worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fatwood.codec.vectors import Update, computed, host, put, zeros
from fatwood.errors import OptionError
from fatwood.exchange import Buffer
from fatwood.train.header import Header
from fatwood.train.job import TrainingJob
from fatwood.train.kept import Best
from fatwood.train.ledger import Ledger
from fatwood.train.local import LocalTrainer
from fatwood.train.packing import pack, unpack
from fatwood.train.randomness import generator_state, load_generator_state, seed_generators
from fatwood.train.sharing import Sharing

__all__ = ["ReplicaState"]

Ahead = tuple[Header, Update, float]
"""What was computed and not sent yet, and the learning rate of it."""


class ReplicaState:
    """Reads and writes the parts of a replica.

    Args:
        job: Of the replica.
        local: Its network and optimizer.
        sharing: Its strategy's state.
        best: The best parameters that it keeps.
        rank: Its rank.
    """

    def __init__(
        self, job: TrainingJob, local: LocalTrainer, sharing: Sharing, best: Best, rank: int
    ) -> None:
        self._job = job
        self._local = local
        self._sharing = sharing
        self._best = best
        self._rank = rank

    def seed(self, *more: int) -> None:
        """Seed the random generators for this worker."""
        seed_generators([self._job.seed, self._rank, *more])

    def own(self, ledger: Ledger) -> dict[str, Any]:
        """What this worker needs to go on in a later fit."""
        return {
            "agreements": ledger.agreements,
            "steps": ledger.steps,
            "local": self._local.state(),
            "sharing": self._sharing.state(),
            "generators": generator_state(self._local.flat.device),
        }

    def of_run(self, ledger: Ledger, ahead: Ahead | None) -> dict[str, Any]:
        """What this worker needs to go on within an epoch."""
        told = None if ahead is None else (tuple(ahead[0]), host(computed(ahead[1])), ahead[2])
        return {
            **self.own(ledger),
            "buffers": self._saved_buffers(),
            "best": self._best.state(),
            "ahead": told,
        }

    def load(self, state: Mapping[str, Any], ledger: Ledger) -> Ahead | None:
        """Take up what :meth:`own` or :meth:`of_run` gave.

        Raises:
            OptionError: It does not fit.
        """
        try:
            ledger.agreements, ledger.steps = int(state["agreements"]), int(state["steps"])
            self._local.load_state(state["local"])
            self._sharing.load_state(state["sharing"])
            load_generator_state(state["generators"], self._local.flat.device)
            self._job.network.load_state_dict(dict(state.get("buffers", {})), strict=False)
            self._best.load_state(state.get("best", {}))
            ahead = state.get("ahead")
            if ahead is None:
                return None
            vector = zeros(len(ahead[1]), self._local.flat.device)
            put(vector, ahead[1])
            return Header(*ahead[0]), vector, float(ahead[2])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            text = f"state of an earlier fit: it does not fit this network, optimizer and strategy ({error})"
            raise OptionError(
                text, hint="call model.reset() to begin with a fresh optimizer and residual"
            ) from error

    def shared(self, ledger: Ledger) -> bytes:
        """What is the same on all workers after an agreement."""
        return pack({"network": dict(self._job.network.state_dict()), "ledger": ledger.to_json()})

    def snapshot(self, ledger: Ledger) -> bytes:
        """What a worker that takes over a lost rank needs."""
        return pack(
            {
                **self._sharing.snapshot(),
                "buffers": self._saved_buffers(),
                "local": self._local.state(),
                "best": self._best.state(),
                "ledger": ledger.to_json(),
            }
        )

    def restore(self, snapshot: Buffer) -> Ledger:
        """Take up another worker's :meth:`snapshot`."""
        content = unpack(bytes(snapshot))
        self._sharing.restore(content)
        self._job.network.load_state_dict(content["buffers"], strict=False)
        self._local.load_state(content["local"])
        self._best.load_state(content["best"])
        ledger = Ledger.from_json(content["ledger"])
        self.seed(ledger.agreements)
        return ledger

    def _saved_buffers(self) -> dict[str, torch.Tensor]:
        """What the network saves beside its parameters, copied."""
        named = {name for name, _ in self._job.network.named_parameters(remove_duplicate=False)}
        saved = self._job.network.state_dict()
        return {name: tensor.clone() for name, tensor in saved.items() if name not in named}
