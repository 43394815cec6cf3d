"""Reads what Deeplearning4j wrote of its curves.

Its thresholded ``ROC`` holds true and false positives at each threshold. Its exact one holds no scores, but the points of its
curve, without those inside a horizontal or vertical run unless it was told to keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import UserError
from fatwood.evaluation.curve_report import Curves
from fatwood.evaluation.curves import ROC, ROCBinary, ROCMultiClass
from fatwood.evaluation.scores import BinnedScores, ExactScores, Scores

__all__ = ["read"]

_KINDS = {"ROC": ROC, "ROCBinary": ROCBinary, "ROCMultiClass": ROCMultiClass}


def read(state: Mapping[str, Any]) -> Curves:
    """See :func:`fatwood.evaluation.curves.roc_from_dl4j`."""
    name = str(state.get("@class", "ROC")).rpartition(".")[2]
    if name not in _KINDS:
        message = f"from_dl4j: expected a report of class {' or '.join(_KINDS)}, received {name!r:.60}"
        raise UserError(message, hint="pass the JSON that toJson() of Deeplearning4j returned")
    try:
        return _read(name, state)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        message = f"from_dl4j: {name}: expected the parts that Deeplearning4j writes, received {error!r:.200}"
        raise UserError(message, hint="pass the JSON that toJson() of Deeplearning4j returned") from error


def _read(name: str, state: Mapping[str, Any]) -> Curves:
    parts = [state] if name == "ROC" else state.get("underlying") or []
    steps = {int(part["thresholdSteps"]) for part in parts} or {int(state.get("thresholdSteps", 0))}
    if len(steps) > 1:
        text = f"columns with different thresholds: {sorted(steps)}"
        raise ValueError(text)
    bins = steps.pop() or None
    labels = state.get("labels")
    report: Curves
    if name == "ROC":
        report = ROC(bins)
    else:
        kind = ROCBinary if name == "ROCBinary" else ROCMultiClass
        report = kind(bins, names=labels if isinstance(labels, list) and len(labels) == len(parts) else None)
    rows = [_actual(part) for part in parts]
    if any(rows):
        columns = [_exact(part) if bins is None else (_binned(part, bins), True) for part in parts]
        report.load([scores for scores, _ in columns], max(rows), complete=all(whole for _, whole in columns))
    return report


def _actual(part: Mapping[str, Any]) -> int:
    rows = int(part["countActualPositive"]) + int(part["countActualNegative"])
    if rows != int(part.get("exampleCount", rows)):
        text = f"{rows} positives and negatives of {part['exampleCount']} examples"
        raise ValueError(text)
    return rows


def _binned(part: Mapping[str, Any], bins: int) -> Scores:
    counts = sorted(part["counts"].values(), key=lambda count: float(count["threshold"]))
    if len(counts) != bins + 1:
        text = f"{len(counts)} thresholds for {bins} steps"
        raise ValueError(text)
    at_least = np.array([[c["countTruePositive"], c["countFalsePositive"]] for c in counts], dtype=np.int64)
    between = at_least - np.vstack([at_least[1:], [[0, 0]]])
    if (between < 0).any():
        text = "counts that rise with the threshold"
        raise ValueError(text)
    return BinnedScores.from_counts(between[:, 0], between[:, 1])


def _exact(part: Mapping[str, Any]) -> tuple[Scores, bool]:
    scores = ExactScores()
    if not _actual(part):
        return scores, True
    curve = part["rocCurve"]
    thresholds = np.array(curve["threshold"], dtype=np.float64)
    hits = _counts(curve["tpr"], int(part["countActualPositive"]))
    alarms = _counts(curve["fpr"], int(part["countActualNegative"]))
    for truth, counts in ((True, hits), (False, alarms)):
        single = np.repeat(thresholds, counts)
        scores.add(single, np.full(len(single), truth), None)
    # one point for each row, and one before and after all of them
    return scores, len(thresholds) == _actual(part) + 2


def _counts(rates: Any, total: int) -> NDArray[np.int64]:
    """Rows at each point; the rate is NaN where there are none at all."""
    reached = np.rint(np.nan_to_num(np.array(rates, dtype=np.float64)) * total).astype(np.int64)
    counts = np.diff(reached, prepend=0)
    if (counts < 0).any() or counts.sum() != total:
        text = f"a curve that does not rise to {total} rows"
        raise ValueError(text)
    return counts
