"""Reads reports that Deeplearning4j wrote as JSON.

What its own ``merge`` loses is known: of ``RegressionEvaluation`` the field ``sumLabels`` (its R2 after Spark is wrong), which is a copy of
``labelsSumPerColumn`` and is not needed here; of ``EvaluationCalibration`` all but the reliability diagram, whose first part it counts twice.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood import storage
from fatwood.errors import UserError
from fatwood.evaluation.binary import BinaryClassification
from fatwood.evaluation.calibration import Calibration
from fatwood.evaluation.classification import Classification
from fatwood.evaluation.dl4j_arrays import read_array
from fatwood.evaluation.exact_sums import ExactSums
from fatwood.evaluation.regression import Regression
from fatwood.evaluation.report import Report
from fatwood.evaluation.sums import checked_count

__all__ = ["from_dl4j"]

_PACKAGES = ("org.nd4j.evaluation.", "org.deeplearning4j.eval.")
_MAX_BYTES = 1 << 30
_HINT = "pass the JSON that toJson() of Deeplearning4j returned, unchanged"


def from_dl4j(source: storage.URI, *, storage_options: Mapping[str, Any] | None = None) -> Report:
    """A report that Deeplearning4j wrote as JSON, of any version that has JSON.

    - ``Evaluation`` is a :class:`Classification`; its loss is not known (NaN).
    - ``EvaluationBinary`` is a :class:`BinaryClassification`; a ``rocBinary`` inside it can be read by itself.
    - ``RegressionEvaluation`` is a :class:`Regression`; R2 is right also after a merge on Spark, where the original's is wrong.
    - ``ROC``, ``ROCBinary`` and ``ROCMultiClass`` are reports of these names. Exact ones hold their curve, and can be merged only where it has a
      point for every row.
    - ``EvaluationCalibration`` is a :class:`Calibration` of its reliability diagrams, with ``histogram_bins=1``; one that was merged is refused:
      it counts rows twice.

    Args:
        source: The JSON text, or a file on any storage.
        storage_options: Arguments of the file's store, by name: address, credentials.

    Returns:
        A report that can be merged with one of the same options, with the exceptions above.

    Raises:
        UserError: It is something else, or holds not enough.
        StorageError: The file cannot be read.
    """
    text = (
        source
        if isinstance(source, str) and source.lstrip()[:1] in ("{", "[", "")
        else _read(storage.location(source, storage_options))
    )
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"from_dl4j: expected JSON, received {text!r:.60}: {error}"
        raise UserError(message, hint=_HINT) from error
    known = state.get("@class") if isinstance(state, dict) else None
    name = str(known).rpartition(".")[2]
    if not isinstance(known, str) or not known.startswith(_PACKAGES) or name not in _READERS:
        message = (
            f"from_dl4j: expected a report of class {', '.join(_READERS)}, received {known or text[:60]!r}"
        )
        raise UserError(message, hint=_HINT)
    try:
        return _READERS[name](state)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
        struct.error,
    ) as error:
        if isinstance(error, UserError):
            raise
        message = f"from_dl4j: {name}: expected the parts that Deeplearning4j writes, received {error!r:.200}"
        raise UserError(message, hint=_HINT) from error


def _read(source: storage.URI) -> str:
    try:
        return storage.read_bytes(source, max_bytes=_MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        message = f"from_dl4j: {source}: expected JSON, received bytes that are no text"
        raise UserError(message, hint=_HINT) from error


def _evaluation(state: Mapping[str, Any]) -> Report:
    confusion = state.get("confusion") or {"classes": [], "matrix": {}}
    labels = state.get("labelsList") or []
    classes = max(len(labels), len(confusion["classes"])) or None
    # counts of 0 fill the lists up to the number of rows
    cells = [
        [int(actual), predicted, rows]
        for actual, (found, counts) in confusion["matrix"].items()
        for predicted, rows in zip(found, counts, strict=True)
        if rows
    ]
    rows = sum(cell[2] for cell in cells)
    top_n = max(1, int(state.get("topN") or 1))
    ranked = checked_count(state.get("topNTotalCount", 0))
    if top_n > 1 and ranked != rows:
        message = f"from_dl4j: Evaluation: expected top-{top_n} counts of {rows} rows, received {ranked}"
        raise UserError(message, hint='set "topN" to 1 in the JSON to read the rest')
    cost, threshold = state.get("costArray"), state.get("binaryDecisionThreshold")
    return Classification.from_state(
        {
            "version": 2,
            "classes": classes,
            "top_n": top_n,
            "names": _names(labels, classes),
            "cost": None if cost is None else read_array(cost).ravel().tolist(),
            "threshold": threshold if cost is None else None,
            "loss_sum": [math.nan] if rows else [],
            "loss_weight": [rows] if rows else [],
            "skipped": 0,
            "confusion": cells,
            "top": checked_count(state.get("topNCorrectCount", 0)) if top_n > 1 else 0,
            "weighed": [],
            "weighed_top": [],
            "weighed_rows": 0,
        }
    )


def _names(labels: Any, columns: int | None) -> list[str] | None:
    """None for those that are nothing but numbers."""
    usual = [[str(i) for i in range(len(labels or []))], [f"col_{i}" for i in range(len(labels or []))]]
    return None if not labels or len(labels) != columns or labels in usual else list(labels)


def _binary(state: Mapping[str, Any]) -> Report:
    parts = ("countTrueNegative", "countFalsePositive", "countFalseNegative", "countTruePositive")
    counts = np.array([state[part] or [] for part in parts], np.int64)
    columns = counts.shape[1]
    threshold = state.get("decisionThreshold")
    return BinaryClassification.from_state(
        {
            "threshold": 0.5 if threshold is None else read_array(threshold).ravel().tolist(),
            "names": _names(state.get("labels"), columns),
            "columns": columns or None,
            "rows": int(counts.sum(axis=0).max(initial=0)),
            "skipped": 0,
            "counts": [[k, i, int(counts[i, k])] for k in range(columns) for i in range(4) if counts[i, k]],
            "weighed": [],
        }
    )


def _regression(state: Mapping[str, Any]) -> Report:
    if state.get("exampleCountPerColumn") is None:
        return Regression(names=_names(state.get("columnNames"), len(state.get("columnNames") or [])))

    def row(name: str) -> NDArray[np.float64]:
        return read_array(state[name]).ravel()

    weight = row("exampleCountPerColumn")
    sums = {
        "weight": weight,
        "label": row("labelsSumPerColumn"),
        "output": np.where(weight > 0, row("currentPredictionMean") * weight, 0.0),
        "label2": row("sumSquaredLabels"),
        "output2": row("sumSquaredPredicted"),
        "both": row("sumOfProducts"),
        "absolute": row("sumAbsErrorsPerColumn"),
        "squared": row("sumSquaredErrorsPerColumn"),
    }
    if len({len(part) for part in sums.values()}) > 1 or not (weight >= 0).all():
        text = f"sums of { {name: len(part) for name, part in sums.items()} } columns, of {weight.tolist()!r:.100} rows"
        raise ValueError(text)
    names = _names(state.get("columnNames"), len(weight))
    return Regression.from_sums(sums, int(weight.max(initial=0.0)), names)


def _curves(state: Mapping[str, Any]) -> Report:
    from fatwood.evaluation.curves import roc_from_dl4j

    return roc_from_dl4j(state)


def _calibration(state: Mapping[str, Any]) -> Report:
    bins = checked_count(state["reliabilityDiagNumBins"])
    if state.get("rDiagBinTotalCount") is None:
        return Calibration(bins, 1)
    counts, positives, probability = (
        read_array(state[f"rDiagBin{name}"]).T for name in ("TotalCount", "PosCount", "SumPredictions")
    )
    labels = state.get("labelCountsEachClass")
    if labels is None or abs(read_array(labels).sum() - positives.sum()) > 0.5:
        message = "from_dl4j: EvaluationCalibration: expected a reliability diagram of as many rows as labels, received one that "
        message += "was merged: Deeplearning4j counts the first part twice"
        raise UserError(message, hint="evaluate again, with Calibration()")
    columns = len(counts)
    whole = {
        "counts": counts,
        "positives": positives,
        "probability": probability,
        "histogram": counts.sum(axis=1),
        "histogram_positives": positives.sum(axis=1),
        "residuals": counts.sum(keepdims=True),
        "residuals_positives": positives.sum(axis=1),
        "predicted": read_array(state["predictionCountsEachClass"]),
    }
    return Calibration.from_state(
        {
            "bins": bins,
            "histogram_bins": 1,
            "names": None,
            "columns": columns,
            "classifier": False,
            "rows": int(counts.sum(axis=1).max(initial=0)),
            "skipped": 0,
            "sums": {name: _exact(part.ravel()) for name, part in whole.items()},
        }
    )


def _exact(terms: NDArray[np.float64]) -> dict[str, Any]:
    if not (np.isfinite(terms) & (terms >= 0)).all():
        text = f"counts that are not at least 0: {terms.tolist()!r:.100}"
        raise ValueError(text)
    sums = ExactSums(len(terms))
    sums.add(np.arange(len(terms)), terms)
    return sums.to_json()


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Report]] = {
    "Evaluation": _evaluation,
    "EvaluationBinary": _binary,
    "RegressionEvaluation": _regression,
    "ROC": _curves,
    "ROCBinary": _curves,
    "ROCMultiClass": _curves,
    "EvaluationCalibration": _calibration,
}
