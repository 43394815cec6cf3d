"""The protocol of docs/protocol.md, explored over random schedules of deliveries, deaths and returns.

Everything that decides is real: `Membership` on the driver's side, `ElasticTeam` on a worker's, the ledger, the headers,
the exchange's calls. Simulated are the sockets (`network`), the processes around the real code (`process`), the driver's
loop around the real membership (`coordinator`), the clock, and a toy that trains (`training`). One thread runs at a time
(`baton`); who is next, what arrives and what fails is drawn from a seed (`plan`, `world`, `faults`), so every schedule
can be run again. What must hold is in `laws`.

From a shell: ``python -m fatwood.testing.simulation --schedules 1000``.
"""

from fatwood.testing.simulation.exploring import Report, explore, explore_many
from fatwood.testing.simulation.plan import Fault, Plan

__all__ = ["Fault", "Plan", "Report", "explore", "explore_many"]
