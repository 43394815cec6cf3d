"""Every exception Fatwood raises.

::

    FatwoodError
    ├── UserError (also a ValueError)   something the caller can change
    │   ├── OptionError                 an argument that cannot work
    │   ├── SchemaError                 a column that is missing or has the wrong type
    │   ├── DataError                   a row that cannot be used: null, NaN, wrong length, label out of range
    │   ├── ShippingError               a network, loss or optimizer that cannot be sent to the executors
    │   ├── NotFiniteError              an update with a NaN or an infinity
    │   └── UserCodeError               the user's own network, loss or optimizer raised on a worker
    └── WorldError (also a RuntimeError) something outside the program
        ├── ClusterError                the cluster cannot run the job: no Java, too few slots, a job that died
        ├── ExchangeError               workers could not exchange what they had to
        │   ├── PeerLost                a peer closed its connection or fell silent
        │   ├── AuthenticationError     the other side did not prove the job's secret
        │   └── ProtocolError           bytes that make no sense: magic, version, length, checksum
        ├── DivergenceError             replicas that must be equal are not
        ├── WorkerLost                  a worker of the job died or stopped answering
        └── StorageError                a file or store could not be read or written
            └── DamagedError            a file's bytes are not those that were written

A message says where, what was expected, what was received, and after ``hint:`` what to do.
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "ClusterError",
    "DamagedError",
    "DataError",
    "DivergenceError",
    "ExchangeError",
    "FatwoodError",
    "NotFiniteError",
    "OptionError",
    "PeerLost",
    "ProtocolError",
    "SchemaError",
    "ShippingError",
    "StorageError",
    "UserCodeError",
    "UserError",
    "WorkerLost",
    "WorldError",
]


class FatwoodError(Exception):
    """The root of all errors of this package.

    Args:
        message: Where, what was expected and what was received.
        hint: What the reader can do about it; printed on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message}\nhint: {hint}" if hint else message)
        self.message = message
        self.hint = hint


class UserError(FatwoodError, ValueError):
    """Something the caller can change."""


class OptionError(UserError):
    """An argument that cannot work."""


class SchemaError(UserError):
    """A column that is missing or has a type that cannot be used."""


class DataError(UserError):
    """A row that cannot be used; the message names its partition and row."""


class ShippingError(UserError):
    """A network, loss or optimizer that cannot be sent to the executors."""


class NotFiniteError(UserError):
    """An update has a NaN or an infinity; nothing of it was sent.

    Args:
        position: Of the first such number in the flat vector of parameters.
        n: How many parameters there are.
        value: What was found there.
        parameter: The name of the parameter and the element, when known.
    """

    def __init__(self, position: int, n: int, value: float, parameter: str | None = None) -> None:
        self.position = position
        self.n = n
        self.value = value
        self.parameter = parameter
        where = f"parameter {parameter}" if parameter else f"parameter {position} (of {n})"
        super().__init__(
            f"the update of {where}: expected a finite number, received {value}",
            hint="lower the learning rate, clip the gradients, or look for a division by zero or a log of zero in the loss",
        )


class UserCodeError(UserError):
    """The user's own network, loss or optimizer raised on a worker."""


class WorldError(FatwoodError, RuntimeError):
    """Something outside the program: a network, a disk, a cluster."""


class ClusterError(WorldError):
    """The cluster cannot run the job."""


class ExchangeError(WorldError):
    """Workers could not exchange what they had to."""


class PeerLost(ExchangeError):
    """A peer closed its connection or fell silent; the message names rank, host and port.

    Args:
        message: Which peer, and what was awaited.
        hint: What the reader can do about it.
        rank: Of the lost peer, where it is a worker.
        silent: Whether it fell silent, and its process may still be there.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, rank: int | None = None, silent: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.rank = rank
        self.silent = silent


class AuthenticationError(ExchangeError):
    """The other side did not prove that it knows the job's secret."""


class ProtocolError(ExchangeError):
    """Bytes that make no sense: wrong magic, version, length or checksum."""


class DivergenceError(WorldError):
    """Replicas that must be bitwise equal are not; the message names the ranks."""


class WorkerLost(WorldError):
    """A worker of the job died or stopped answering; the message names rank and host."""


class StorageError(WorldError):
    """A file or store could not be read or written; the message names the URI."""


class DamagedError(StorageError):
    """A file's bytes are not those that were written; reading it again, elsewhere, does not help."""
