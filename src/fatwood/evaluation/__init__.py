"""Mergeable reports: what a network did on rows that may lie on many machines.

A report starts empty, takes batches with ``update``, and joins another report with ``merge``. Whatever the
split of the rows, the merged report equals the report of one pass over all of them; the suite
:func:`fatwood.testing.merging.merging_suite` checks this for every report.
"""

from __future__ import annotations

from fatwood.evaluation.classification import Classification
from fatwood.evaluation.loss import Loss
from fatwood.evaluation.report import Report

__all__ = ["Classification", "Loss", "Report"]
