"""What is wrong with a cluster, before a job finds out: facts of every host, checks of them, findings with a hint.

::

    probe     what a process knows of its machine       examination   the job that asks all slots
    quick     the checks at the start of every fit      finding       a row of the table
    station   who reaches whom, how fast
    errand    what a task does with fatwood itself      checks_*      pure functions: facts -> findings
                                                        checkup       all checks, as a table or JSON
"""

from __future__ import annotations

from fatwood.doctor.checkup import CHECKS, Checkup, examine
from fatwood.doctor.examination import doctor, gather_facts, quick_findings
from fatwood.doctor.finding import Check, Finding

__all__ = ["CHECKS", "Check", "Checkup", "Finding", "doctor", "examine", "gather_facts", "quick_findings"]
