"""Several transforms, one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fatwood.data.fields import Dtype
from fatwood.data.preprocessing.counts import is_list
from fatwood.data.preprocessing.numbers import damaged, entries
from fatwood.data.preprocessing.transform import Tally, Transform, named
from fatwood.errors import OptionError

__all__ = ["Chain"]

_MAX_MEMBERS = 64


@named("chain")
@dataclass(frozen=True, init=False)
class Chain(Transform):
    """The first transform, then the second of what it gives, and so on.

    Each member that must be fitted is fitted with what those before it give, so it takes a pass of its own over the rows.

    Args:
        members: At least one; another chain stands for its members. Only the first may take texts.

    Example:
        >>> from fatwood.data.preprocessing import ImageScale, MinMax, Numbers
        >>> chain = Chain(ImageScale(mean=0.5, std=0.5), MinMax(least=Numbers.of(-1.0), greatest=Numbers.of(3.0), per="all"))
        >>> chain.apply(torch.tensor([[[[0.5, 1.0]]]]))
        tensor([[[[0.2500, 0.5000]]]])
    """

    members: tuple[Transform, ...]

    def __init__(self, *members: Transform) -> None:
        flat: list[Transform] = []
        for member in members:
            if not isinstance(member, Transform):
                message = f"Chain: expected transforms, received {member!r:.80}"
                raise OptionError(message, hint="Chain(ImageScale(...), Standardize()), one after another")
            flat.extend(member.members if isinstance(member, Chain) else [member])
        if not 1 <= len(flat) <= _MAX_MEMBERS:
            message = f"Chain: expected 1 to {_MAX_MEMBERS} transforms, received {len(flat)}"
            raise OptionError(message)
        for member in flat[1:]:
            if not member.takes_numbers or member.encodes:
                message = f"Chain: expected {member.name} of texts as the first member, received it later"
                raise OptionError(message, hint="what a transform gives are numbers")
        object.__setattr__(self, "members", tuple(flat))

    @property
    def takes_text(self) -> bool:  # type: ignore[override]  # a fact of the first member
        """Whether the first member does."""
        return self.members[0].takes_text

    @property
    def takes_numbers(self) -> bool:  # type: ignore[override]  # likewise
        """Whether the first member does."""
        return self.members[0].takes_numbers

    @property
    def fitted(self) -> bool:
        """Whether all members are."""
        return all(member.fitted for member in self.members)

    def tally(self) -> Tally | None:
        """Of the first member that is not fitted, which counts what those before it give."""
        before, member = self._split()
        tally = None if member is None else member.tally()
        return tally if tally is None or not before else _Behind(Chain(*before), tally)

    def fitted_by(self, tally: Tally) -> Chain:
        """The same with one member more fitted; see `Transform.fitted_by`."""
        before, member = self._split()
        if member is None:
            message = "Chain: expected a member to fit, received a tally though all are fitted"
            raise OptionError(message)
        own = tally.tally if isinstance(tally, _Behind) else tally
        return Chain(*before, member.fitted_by(own), *self.members[len(before) + 1 :])

    def _split(self) -> tuple[tuple[Transform, ...], Transform | None]:
        """The fitted members at the beginning, and the one after them."""
        n = next((i for i, member in enumerate(self.members) if not member.fitted), len(self.members))
        return self.members[:n], self.members[n] if n < len(self.members) else None

    @property
    def encodes(self) -> bool:
        """Whether the first member does."""
        return self.members[0].encodes

    def encode(self, column: Any) -> Any:
        """See `Transform.encode`."""
        return self.members[0].encode(column)

    def complaint(self, value: Any) -> str | None:
        """See `Transform.complaint`."""
        return self.members[0].complaint(value)

    def apply(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See `Transform.apply`."""
        for member in self.members:
            values = member.apply(values, mask)
        return values

    def inverse(self, values: torch.Tensor) -> torch.Tensor:
        """See `Transform.inverse`."""
        for member in reversed(self.members):
            values = member.inverse(values)
        return values

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """See `Transform.output_shape`."""
        for member in self.members:
            shape = member.output_shape(shape)
        return shape

    def output_dtype(self, dtype: Dtype) -> Dtype:
        """See `Transform.output_dtype`."""
        for member in self.members:
            dtype = member.output_dtype(dtype)
        return dtype

    def require_fits(self, shape: tuple[int, ...]) -> None:
        """See `Transform.require_fits`; as far as the members are fitted."""
        for member in self.members:
            member.require_fits(shape)
            if not member.fitted:
                return
            shape = member.output_shape(shape)

    def state(self) -> dict[str, Any]:
        """See `Transform.state`."""
        return {"members": [member.to_json() for member in self.members]}

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Chain:
        """See `Transform.from_state`."""
        members = entries(state, where, {"members": list})["members"]
        if len(members) > _MAX_MEMBERS or any(
            isinstance(member, dict) and member.get("transform") == cls.kind for member in members
        ):
            raise damaged(
                where, f"at most {_MAX_MEMBERS} transforms, none of them a chain", f"{len(members)}"
            )
        return cls(*(Transform.from_json(member) for member in members))


class _Behind(Tally):
    """Counts what fitted transforms give; in JSON, and merged, it is the tally behind them."""

    def __init__(self, before: Chain, tally: Tally) -> None:
        self.before = before
        self.tally = tally
        self.kind = tally.kind  # type: ignore[misc]  # for messages

    def update(self, values: Any) -> None:
        """See `Tally.update`."""
        if self.before.encodes and not isinstance(values, np.ndarray):
            ids = self.before.encode(values)
            values = np.asarray((ids.flatten() if is_list(ids.type) else ids).to_numpy(zero_copy_only=False))
        # a copy: torch warns of arrays that cannot be written
        tensor = torch.from_numpy(np.array(values))
        self.tally.update(self.before.apply(tensor).numpy())

    def merge(self, other: Tally) -> Tally:
        """See `Tally.merge`."""
        return self.tally.merge(other.tally if isinstance(other, _Behind) else other)

    def state(self) -> dict[str, Any]:
        """See `Tally.state`."""
        return self.tally.state()

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Tally:
        """Never called: JSON names the tally behind."""
        raise NotImplementedError
