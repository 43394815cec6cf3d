"""What this worker shares at an agreement, and what becomes of its parameters with the outcome.

::

    updates      vector = parameters - agreed [, moments]     agreed <- outer(agreed, mean); parameters <- agreed
                 (ahead: parameters - the point where the local steps began)
    gradients    vector = gradient                            one optimizer step on the mean gradient
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fatwood.codec import EncodingRecord
from fatwood.codec.vectors import Difference, Update, Vector, copy, host, put, subtract, zeros
from fatwood.errors import NotFiniteError
from fatwood.exchange import Buffer, Exchange, Outcome
from fatwood.train.header import Header
from fatwood.train.local import LocalTrainer
from fatwood.train.lookahead import Velocity
from fatwood.train.moments import Moments
from fatwood.train.recipe import Recipe
from fatwood.train.reduce import Sparsity
from fatwood.train.strategy import Strategy

__all__ = ["Sharing"]


class Sharing:
    """A strategy's state on one worker: agreed parameters, codec, outer step.

    Args:
        strategy: Of the job.
        local: This worker's network and optimizer.
        recipe: How the optimizer was made.
    """

    def __init__(self, strategy: Strategy, local: LocalTrainer, recipe: Recipe) -> None:
        self._local = local
        flat = local.flat
        self.steps_alone = strategy.shares == "updates"
        self.agreed = copy(flat.values) if self.steps_alone else flat.values
        """``(n,)``: the parameters after the last agreement."""
        averages = strategy.average_optimizer and self.steps_alone
        self._moments = Moments(recipe.optimizer, local.optimizer, local.network) if averages else None
        self.size = flat.size + (0 if self._moments is None else self._moments.size)
        """Numbers of a vector."""
        self._reducer = strategy.reducer(self.size, flat.device)
        self._velocity = None if strategy.ahead is None else Velocity(strategy.ahead, flat.size, flat.device)
        self._outer = strategy.outer(flat.size, flat.device) if self.steps_alone else None
        # with staleness one is on its way while the other is filled
        read_once = self._reducer.reads_once and self.steps_alone and self._moments is None
        kept = 0 if read_once and not strategy.staleness else 1 + strategy.staleness
        self._vectors = [zeros(self.size, flat.device) for _ in range(kept)]
        self._returned = False
        """The parameters are the agreed ones again, since the message was made."""

    @property
    def sparsity(self) -> Sparsity | None:
        """Of the last message."""
        return self._reducer.sparsity

    def begin(self) -> None:
        """Go from the agreed parameters to where this worker computes next."""
        if self._velocity is not None:
            self._velocity.go_ahead(self.agreed, self._residual, self._local.flat.values)

    def vector(self) -> Update:
        """What this worker has to share since :meth:`begin`, ``(size,)``; valid until the next but ``staleness`` call.

        Where nothing keeps it, it is a difference, valid until the parameters change.
        """
        if not self._vectors:
            return Difference(self._local.flat.values, self._start, put_back=self._start is self.agreed)
        self._vectors.append(self._vectors.pop(0))
        vector, flat = self._vectors[0], self._local.flat
        if self.steps_alone:
            subtract(flat.values, self._start, vector[: flat.size])
            if self._moments is not None:
                self._moments.read(vector[flat.size :])
        else:
            put(vector, flat.gradient())
        return vector

    def prepare(self, number: int, header: Header, vector: Update) -> int:
        """Make the message of an agreement.

        Returns:
            Its bytes.

        Raises:
            NotFiniteError: The vector has a NaN or an infinity; names the parameter.
        """
        try:
            self._reducer.prepare(number, header, vector)
        except NotFiniteError as error:
            raise self._located(error) from None
        self._returned = isinstance(vector, Difference) and vector.put_back and header.share > 0
        return self._reducer.message_bytes(self.size)

    def play(self, exchange: Exchange, number: int) -> Sequence[Buffer]:
        """Exchange the message; see :meth:`fatwood.train.reduce.Reducer.play`."""
        return self._reducer.play(exchange, number)

    def records(self) -> list[EncodingRecord]:
        """What was measured of the messages since the last call."""
        return self._reducer.take_records()

    def apply(self, number: int, outcome: Outcome, headers: Sequence[Header]) -> None:
        """Change the parameters by an outcome in which somebody trained rows."""
        local, n = self._local, self._local.flat.size
        if self._velocity is not None:
            self._velocity.decay()
        if self.steps_alone and self._outer is None and self._moments is None:
            # what is sparse touches what was sent alone, of each of these
            ahead = () if self._velocity is None else (self._velocity.array,)
            network = (local.flat.values,) if self._returned else ()
            self._reducer.add_reduced(number, outcome, headers, self.agreed, *ahead, *network)
            if self._returned:
                return
        else:
            if self._velocity is not None:
                self._reducer.add_reduced(number, outcome, headers, self._velocity.array)
            mean = zeros(self.size, local.flat.device)
            self._reducer.add_reduced(number, outcome, headers, mean)
            if not self.steps_alone:
                local.flat.set_gradient(mean)
                local.descend()
            elif self._outer is None:
                self.agreed += mean[:n]
            else:
                self._outer.apply(self.agreed, mean[:n])
            if self._moments is not None:
                self._moments.write(mean[n:])
        self.return_to_agreed()

    def return_to_agreed(self) -> None:
        """Undo local steps that were not agreed on."""
        if self.steps_alone:
            put(self._local.flat.values, self.agreed)
        self._returned = False

    def state(self) -> dict[str, Any]:
        """What must survive this fit."""
        return {"reducer": self._reducer.state(), **self._common_state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that :meth:`state` gave."""
        self._reducer.load_state(state["reducer"])
        self._load_common_state(state)

    def snapshot(self) -> dict[str, Any]:
        """What a worker that takes over a rank needs: all but the residual, and the agreed parameters."""
        return {
            "parameters": host(self.agreed),
            "reducer": self._reducer.common_state(),
            **self._common_state(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take up another worker's :meth:`snapshot`."""
        put(self.agreed, snapshot["parameters"])
        self.return_to_agreed()
        self._reducer.load_common_state(snapshot["reducer"])
        self._load_common_state(snapshot)

    @property
    def _start(self) -> Vector:
        """Where the local steps began, ``(n,)``."""
        return self.agreed if self._velocity is None else self._velocity.point

    @property
    def _residual(self) -> Vector:
        residual = self._reducer.residual
        assert residual is not None  # noqa: S101  # strategies that train ahead have one
        return residual

    def _common_state(self) -> dict[str, Any]:
        """What is equal on all workers beside the parameters."""
        return {
            "outer": {} if self._outer is None else self._outer.state(),
            "velocity": {} if self._velocity is None else self._velocity.state(),
        }

    def _load_common_state(self, state: Mapping[str, Any]) -> None:
        if self._outer is not None:
            self._outer.load_state(state["outer"])
        if self._velocity is not None:
            self._velocity.load_state(state["velocity"])

    def _located(self, error: NotFiniteError) -> NotFiniteError:
        flat = self._local.flat
        name = flat.locate(error.position) if error.position < flat.size else "of the optimizer's state"
        return NotFiniteError(error.position, error.n, error.value, name)
