"""Mergeable reports: what a network did on rows that may lie on many machines.

A report starts empty, takes batches with ``update``, and joins another report with ``merge``. Whatever the
split of the rows, the merged report equals the report of one pass over all of them; the suite
:func:`fatwood.testing.merging.merging_suite` checks this for every report.
"""

from __future__ import annotations

from fatwood.evaluation.binary import BinaryClassification
from fatwood.evaluation.calibration import Calibration
from fatwood.evaluation.classification import Classification
from fatwood.evaluation.curves import ROC, ROCBinary, ROCMultiClass
from fatwood.evaluation.dl4j import from_dl4j
from fatwood.evaluation.loss import Loss
from fatwood.evaluation.regression import Regression
from fatwood.evaluation.report import Report
from fatwood.evaluation.reports import Reports
from fatwood.evaluation.torch_metric import TorchMetric

__all__ = [
    "ROC",
    "BinaryClassification",
    "Calibration",
    "Classification",
    "Loss",
    "ROCBinary",
    "ROCMultiClass",
    "Regression",
    "Report",
    "Reports",
    "TorchMetric",
    "from_dl4j",
]
