"""Bytes out, peers' bytes in: how workers exchange messages and how the driver knows of them.

The room knows nothing of gradients and nothing of Spark. `Exchange` is the contract of the workers among each other,
with two implementations: threads of one process (`in_process_group`) and a TCP mesh (`TcpExchange`). `Coordinator` on
the driver and `Member` on a worker are the control channel: joining, the view of all, events, blobs, stopping. Every
connection begins with a mutual proof of the job's secret (`auth`).
"""

from __future__ import annotations

from fatwood.exchange.auth import new_secret
from fatwood.exchange.clock import ClockOffset
from fatwood.exchange.contract import Buffer, Exchange
from fatwood.exchange.coordinator import Coordinator
from fatwood.exchange.elastic import ElasticTeam
from fatwood.exchange.events import Event
from fatwood.exchange.inprocess import in_process_group
from fatwood.exchange.listener import Listener
from fatwood.exchange.lobby import Lobby
from fatwood.exchange.member import Member
from fatwood.exchange.mesh import TcpExchange
from fatwood.exchange.outcome import Outcome
from fatwood.exchange.roster import Roster
from fatwood.exchange.team import FixedTeam, Team, Trainee
from fatwood.exchange.tls import Identity, new_identity
from fatwood.exchange.view import Peer, View

__all__ = [
    "Buffer",
    "ClockOffset",
    "Coordinator",
    "ElasticTeam",
    "Event",
    "Exchange",
    "FixedTeam",
    "Identity",
    "Listener",
    "Lobby",
    "Member",
    "Outcome",
    "Peer",
    "Roster",
    "TcpExchange",
    "Team",
    "Trainee",
    "View",
    "in_process_group",
    "new_identity",
    "new_secret",
]
