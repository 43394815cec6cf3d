"""JSON as Deeplearning4j's classes write it; field for field after its sources, with figures from data that is counted here."""

from __future__ import annotations

import base64
import json
import math
import struct

import numpy as np
import pytest
import torch

from fatwood.errors import UserError
from fatwood.evaluation import (
    ROC,
    BinaryClassification,
    Calibration,
    Classification,
    Regression,
    ROCMultiClass,
    from_dl4j,
)

ND4J = "org.nd4j.evaluation.classification."


def evaluation(**changes) -> dict:
    """Of the rows true 0: 0 0 1, true 1: 1, true 2: 0. Lists are padded with zeros to the number of rows."""
    return {
        "@class": f"{ND4J}Evaluation",
        "axis": 1,
        "binaryPositiveClass": None,
        "topN": 2,
        "topNCorrectCount": 4,
        "topNTotalCount": 5,
        "truePositives": {"map": {"0": 2.0, "1": 1.0}},
        "confusion": {
            "classes": [0, 1, 2],
            "matrix": {"0": [[0, 1, 0], [2, 1, 0]], "1": [[1], [1]], "2": [[0], [1]]},
        },
        "numRowCounter": 5,
        "labelsList": ["cat", "dog", "<eel>"],
        "binaryDecisionThreshold": None,
        "costArray": None,
    } | changes


def test_evaluation() -> None:
    report = from_dl4j(json.dumps(evaluation()))
    assert isinstance(report, Classification)
    assert report.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert (report.rows, report.accuracy, report.top_n_accuracy) == (5, 0.6, 0.8)
    assert report.name(2) == "<eel>"
    assert math.isnan(report.loss)
    ours = Classification(names=["cat", "dog", "<eel>"], top_n=2)
    ours.update(torch.eye(3)[[0]], torch.tensor([0]), 1.0)
    assert report.merge(ours).rows == 6
    assert Classification.from_json(report.to_json()) == report


def test_evaluation_of_old_packages_and_with_options() -> None:
    old = evaluation(labelsList=["0", "1", "2"], topN=1, topNTotalCount=0, costArray=[1.0, 2.0, 0.5])
    old["@class"] = "org.deeplearning4j.eval.Evaluation"
    del old["binaryPositiveClass"], old["axis"]
    report = from_dl4j(json.dumps(old))
    assert report.merge(Classification(cost=[1, 2, 0.5])).rows == 5
    two = evaluation(
        labelsList=["0", "1"],
        topN=1,
        binaryDecisionThreshold=0.3,
        confusion={"classes": [0, 1], "matrix": {}},
    )
    assert from_dl4j(json.dumps(two)) == Classification(threshold=0.3)
    empty = evaluation(confusion=None, labelsList=[], topNTotalCount=0, topNCorrectCount=0)
    assert from_dl4j(json.dumps(empty)) == Classification(top_n=2)


def test_evaluation_binary() -> None:
    state = {
        "@class": f"{ND4J}EvaluationBinary",
        "countTruePositive": [3, 0],
        "countFalsePositive": [1, 0],
        "countTrueNegative": [4, 9],
        "countFalseNegative": [2, 1],
        "rocBinary": None,
        "labels": ["a", "b"],
        "decisionThreshold": [0.5, 0.7],
    }
    report = from_dl4j(json.dumps(state))
    assert isinstance(report, BinaryClassification)
    assert (report.rows, report.names, report.threshold) == (10, ["a", "b"], [0.5, 0.7])
    assert report.precision(positive="a") == 0.75
    assert report.recall(None).tolist() == [0.6, 0.0]
    assert report.merge(report.fresh()) == report
    state |= {"labels": None, "decisionThreshold": None, "countTruePositive": None}
    state |= {"countFalsePositive": None, "countTrueNegative": None, "countFalseNegative": None}
    assert from_dl4j(json.dumps(state)) == BinaryClassification()


def text_array(values: np.ndarray) -> dict:
    return {"dataType": "DOUBLE", "shape": list(values.shape), "data": values.ravel().tolist()}


@pytest.mark.parametrize("form", [text_array, lambda values: values.tolist()], ids=["text", "row vector"])
def test_regression(form) -> None:
    label, output = np.array([[1.0, 2], [3, 5], [4, 4]]), np.array([[1.5, 2], [2, 5], [4, 3]])
    state = {
        "@class": "org.nd4j.evaluation.regression.RegressionEvaluation",
        "axis": 1,
        "initialized": True,
        "columnNames": ["col_0", "col_1"],
        "precision": 5,
        "exampleCountPerColumn": form(np.array([3.0, 3.0])),
        "labelsSumPerColumn": form(label.sum(0)),
        "sumSquaredErrorsPerColumn": form(((output - label) ** 2).sum(0)),
        "sumAbsErrorsPerColumn": form(np.abs(output - label).sum(0)),
        "currentMean": form(label.mean(0)),
        "currentPredictionMean": form(output.mean(0)),
        "sumOfProducts": form((label * output).sum(0)),
        "sumSquaredLabels": form((label**2).sum(0)),
        "sumSquaredPredicted": form((output**2).sum(0)),
        "sumLabels": None,  # what its merge loses
    }
    report = from_dl4j(json.dumps(state))
    ours = Regression().update(torch.tensor(output), torch.tensor(label))
    assert isinstance(report, Regression)
    for name in ("mse", "mae", "rmse", "rse", "pearson", "r2"):
        np.testing.assert_allclose(getattr(report, name)(None), getattr(ours, name)(None), rtol=1e-12)
    assert report.rows == 3
    np.testing.assert_allclose(report.merge(ours).r2(None), ours.r2(None), rtol=1e-12)
    state["sumOfProducts"] = form(np.array([math.nan, 1.0]))
    with pytest.raises(UserError, match="finite sums, received both"):
        from_dl4j(json.dumps(state).replace("NaN", '"NaN"'))
    state["sumOfProducts"] = form(np.array([1.0]))
    with pytest.raises(UserError, match="RegressionEvaluation: expected the parts"):
        from_dl4j(json.dumps(state))
    empty = {"@class": state["@class"], "initialized": False, "columnNames": None}
    assert from_dl4j(json.dumps(empty)) == Regression()


def test_thresholded_roc_is_ours() -> None:
    scores, truth = torch.tensor([0.1, 0.3, 0.3, 0.8]), torch.tensor([0, 1, 0, 1])
    counts = {
        str(t): {
            "threshold": t,
            "countTruePositive": int(((scores >= t) & (truth == 1)).sum()),
            "countFalsePositive": int(((scores >= t) & (truth == 0)).sum()),
        }
        for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    state = {
        "@class": "org.deeplearning4j.eval.ROC",
        "thresholdSteps": 4,
        "countActualPositive": 2,
        "countActualNegative": 2,
        "counts": counts,
        "auc": 0.0,
        "auprc": 0.0,
        "isExact": False,
        "exampleCount": 4,
        "rocRemoveRedundantPts": True,
    }
    report, ours = from_dl4j(json.dumps(state)), ROC(bins=4).update(scores, truth)
    assert isinstance(report, ROC)
    assert report.auroc() == ours.auroc()
    assert report.merge(ours).rows == 8
    several = {
        "@class": f"{ND4J}ROCMultiClass",
        "thresholdSteps": 4,
        "underlying": [state, state],
        "labels": None,
    }
    assert isinstance(from_dl4j(json.dumps(several)), ROCMultiClass)


def buffer(kind: str, values: list) -> bytes:
    code = {"LONG": "q", "FLOAT": "f", "DOUBLE": "d"}[kind]
    mode = b"MIXED_DATA_TYPES"
    head = struct.pack(">H", len(mode)) + mode + struct.pack(">q", len(values))
    return head + struct.pack(">H", len(kind)) + kind.encode() + struct.pack(f">{len(values)}{code}", *values)


def binary_array(values: np.ndarray, kind: str, order: str = "c") -> dict:
    """What ``Nd4j.write`` writes: information on the shape, then the elements in their order."""
    rows, columns = values.shape
    strides = [columns, 1] if order == "c" else [1, rows]
    data = buffer("LONG", [2, rows, columns, *strides, 0, 1, ord(order)])
    data += buffer(kind, values.ravel(order="C" if order == "c" else "F").tolist())
    return {"array": base64.b64encode(data).decode()}


def calibration(**changes) -> dict:
    positives, total = np.array([[1, 0], [2, 1]]), np.array([[3, 1], [2, 4]])
    return {
        "@class": f"{ND4J}EvaluationCalibration",
        "reliabilityDiagNumBins": 2,
        "histogramNumBins": 50,
        "excludeEmptyBins": True,
        "axis": 1,
        "rDiagBinPosCount": binary_array(positives, "LONG", "f"),
        "rDiagBinTotalCount": binary_array(total, "LONG"),
        "rDiagBinSumPredictions": binary_array(np.array([[0.75, 0.25], [1.5, 3.0]]), "FLOAT"),
        "labelCountsEachClass": [3.0, 1.0],
        "predictionCountsEachClass": [2.0, 3.0],
        "residualPlotOverall": [0.0] * 50,
    } | changes


def test_calibration() -> None:
    report = from_dl4j(json.dumps(calibration()))
    assert isinstance(report, Calibration)
    first = report.reliability(0)
    assert first.counts.tolist() == [3, 2]
    assert first.probability.tolist() == [0.25, 0.75]
    assert first.positives.tolist() == [1 / 3, 1.0]
    assert report.rows == 5
    assert report.predicted_counts.tolist() == [2, 3]
    assert report.merge(report).reliability(1).counts.tolist() == [2, 8]
    empty = calibration(rDiagBinPosCount=None, rDiagBinTotalCount=None)
    assert from_dl4j(json.dumps(empty)) == Calibration(2, 1)
    with pytest.raises(UserError, match="was merged"):
        from_dl4j(json.dumps(calibration(labelCountsEachClass=None)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a report of class Evaluation, "),
        ('{"@class": "org.nd4j.evaluation.custom.CustomEvaluation"}', "CustomEvaluation"),
        ('{"@class": "com.example.Evaluation"}', "com.example.Evaluation"),
        (json.dumps(evaluation(topNTotalCount=4)), "top-2 counts of 5 rows, received 4"),
        (
            json.dumps(evaluation(topN=1, confusion={"classes": [0], "matrix": {"9": [[0], [1]]}})),
            "within its matrix",
        ),
        (json.dumps(evaluation(confusion=3)), "Evaluation: expected the parts"),
        (
            json.dumps(calibration(rDiagBinPosCount={"array": "AAAA"})),
            "EvaluationCalibration: expected the parts",
        ),
        (json.dumps({"@class": f"{ND4J}EvaluationBinary"}), "EvaluationBinary: expected the parts"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text, words) -> None:
    with pytest.raises(UserError, match=words):
        from_dl4j(text)


def test_no_length_in_an_array_is_trusted() -> None:
    whole = base64.b64decode(binary_array(np.ones((2, 2)), "DOUBLE")["array"])
    for at in range(len(whole)):
        for broken in (whole[:at], whole[:at] + b"\xff" + whole[at + 1 :]):
            state = calibration(rDiagBinSumPredictions={"array": base64.b64encode(broken).decode()})
            try:
                from_dl4j(json.dumps(state))
            except UserError:
                continue


def test_files(tmp_path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation()))
    assert from_dl4j(path) == from_dl4j(str(path)) == from_dl4j(path.read_text())
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="no text"):
        from_dl4j(path)
