"""Estimator and model in Spark ML's own pipelines, validators and files."""

from __future__ import annotations

import logging
import math
from functools import partial, wraps

import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder, TrainValidationSplit
from pyspark.sql import functions as F
from torch import nn

from fatwood import AllReduce, SequenceColumn, SparkModel, Standardize
from fatwood.errors import OptionError, SchemaError, StorageError, UserError
from fatwood.ml import TorchEstimator, TorchModel
from fatwood.ml.outputs import columns_of, meaning_of

pytestmark = [
    pytest.mark.spark,
    # PySpark's validators leave their threads to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning"),
]
QUIET = {"progress": False}


def linear(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(*sizes)


def estimator(network=None, **changes) -> TorchEstimator:
    parts = {
        "network": linear(2, 3) if network is None else network,
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.Adam,
        "strategy": AllReduce(),
        "options": QUIET,
        "workers": 1,
        "learningRate": 0.1,
    }
    return TorchEstimator(**{**parts, **changes})


@pytest.fixture(scope="module")
def df(spark):
    """Three kinds of points around three places, by name; a row's weight; a text that has nothing to do with it."""
    rows = []
    for i in range(90):
        kind = "abc"[i % 3] if i % 5 else "a"  # the indexer gives 'a' number 0, the most frequent first
        x, y = {"a": (0.0, 0.0), "b": (2.0, 0.0), "c": (0.0, 2.0)}[kind]
        rows.append((i, x + math.sin(i) / 4, y + math.cos(3 * i) / 4, kind, 1.0 + i % 2, f"text {i}"))
    schema = "id int, x double, y double, kind string, trust double, `a note` string"
    return spark.createDataFrame(rows, schema).repartition(2).cache()


@pytest.fixture(scope="module")
def numbers(df):
    """The same with a vector of the features, a class, a side (0 or 1) and a height."""
    vectors = VectorAssembler(inputCols=["x", "y"], outputCol="features").transform(df)
    made = vectors.select("*", (F.ascii("kind") - 97).alias("label"), F.expr("x + 2 * y").alias("height"))
    return made.withColumn("side", F.expr("double(x > 1)")).cache()


@pytest.mark.timeout(300)
def test_a_pipeline_in_a_cross_validator_survives_save_and_load(spark, df, tmp_path) -> None:
    ours = estimator(batchSize=16, seed=7)
    stages = [
        StringIndexer(inputCol="kind", outputCol="label"),
        VectorAssembler(inputCols=["x", "y"], outputCol="features"),
        ours,
    ]
    grid = ParamGridBuilder().addGrid(ours.learningRate, [1e-6, 0.2]).build()
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    validator = CrossValidator(
        estimator=Pipeline(stages=stages),
        estimatorParamMaps=grid,
        evaluator=evaluator,
        numFolds=3,
        seed=1,
        parallelism=2,
    )
    before = {name: tensor.clone() for name, tensor in ours.network.state_dict().items()}
    fitted = validator.fit(df)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.network.state_dict().items())
    slow, quick = fitted.avgMetrics
    assert quick > 0.9 > slow + 0.1

    stage = fitted.bestModel.stages[-1]
    assert isinstance(stage, TorchModel)
    assert stage.uid == ours.uid
    assert stage.hasSummary
    assert stage.summary.stats.rows_trained == 90
    predicted = fitted.transform(df)
    assert predicted.columns[: len(df.columns)] == df.columns
    assert predicted.columns[-3:] == ["rawPrediction", "probability", "prediction"]
    assert predicted.schema["label"].metadata["ml_attr"]["vals"] == ["a", "b", "c"]
    rows = {row.id: row for row in predicted.collect()}
    assert len(rows) == 90

    fitted.write().overwrite().save(str(tmp_path / "validator"))
    again = CrossValidatorModel.load(str(tmp_path / "validator"))
    assert {row.id: row for row in again.transform(df).collect()} == rows
    again = PipelineModel.load(str(tmp_path / "validator" / "bestModel")).stages[-1]
    assert not again.hasSummary
    assert again.summary is None
    assert again.getPredictionCol() == "prediction"
    assert torch.equal(again.network.weight, stage.network.weight)


def test_what_a_class_is_told_of(numbers) -> None:
    fitted = estimator(epochs=3, batchSize=16, seed=3).fit(numbers)
    rows = fitted.transform(numbers).collect()
    own = fitted.spark_model
    by_id = {row.id: row.prediction for row in own.predict(numbers, key="id", features="features").collect()}
    for row in rows:
        raw = torch.tensor(by_id[row.id], dtype=torch.float64)
        assert row.rawPrediction.toArray() == pytest.approx(raw.tolist())
        assert row.probability.toArray() == pytest.approx(raw.softmax(0).tolist())
        assert row.prediction == raw.argmax()
    accuracy = sum(row.prediction == row.label for row in rows) / len(rows)
    assert own.evaluate(numbers, features="features", label="label").accuracy == pytest.approx(accuracy)
    short = fitted.copy({fitted.rawPredictionCol: "", fitted.probabilityCol: "p", fitted.predictionCol: "q"})
    assert short.transform(numbers).columns == [*numbers.columns, "p", "q"]
    with pytest.raises(SchemaError, match=r"'label', which is there already\nhint: drop"):
        fitted.transform(numbers, {fitted.predictionCol: "label"})


class Stop(Exception):
    """What a fit is asked is known."""


def test_each_param_of_a_fit_reaches_it(numbers, monkeypatch) -> None:
    asked = {}

    @wraps(SparkModel.fit)
    def fit(self, data, **options):
        asked.update(options, data=data, model=self)
        raise Stop

    monkeypatch.setattr(SparkModel, "fit", fit)

    def given(**changes):
        with pytest.raises(Stop):
            estimator(learningRate=None).setParams(**changes).fit(numbers)
        return dict(asked)

    usual = given()
    for name, (words, value) in {
        "features": ({"featuresCols": ["y", "x"]}, ["y", "x"]),
        "label": ({"labelCol": "side"}, "side"),
        "weight": ({"weightCol": "trust"}, "trust"),
        "batch_size": ({"batchSize": 8}, 8),
        "epochs": ({"epochs": 2}, 2),
        "workers": ({"workers": 2}, 2),
        "shuffle": ({"shuffle": False}, False),
        "seed": ({"seed": 1}, 1),
        "on_bad_row": ({"handleInvalid": "keep"}, "skip"),
        "accumulate": ({"accumulate": 2}, 2),
        "clip_norm": ({"clipNorm": 0.5}, 0.5),
        "clip_value": ({"clipValue": 0.5}, 0.5),
        "precision": ({"precision": "bfloat16"}, "bfloat16"),
    }.items():
        now = given(**words)
        assert now[name] == value != usual[name]
        same = usual.keys() - {name, "data", "model"}
        assert {key: now[key] for key in same} == {key: usual[key] for key in same}
    assert usual["progress"] is False
    assert usual["model"].optimizer is torch.optim.Adam
    assert given(learningRate=0.5)["model"].optimizer.keywords == {"lr": 0.5}
    held = estimator(validationIndicatorCol="held")
    with pytest.raises(Stop):
        held.fit(numbers.withColumn("held", F.expr("if(id = 1, null, id % 9 = 0)")))
    assert {row.id for row in asked["validation"].collect()} == set(range(0, 90, 9))
    assert asked["data"].count() == 80


def test_one_output_for_two_classes(numbers) -> None:
    for network, loss in (
        (linear(2, 1), nn.BCEWithLogitsLoss()),
        (nn.Sequential(linear(2, 1), nn.Sigmoid()), nn.BCELoss()),
    ):
        fitted = estimator(network, loss=loss, labelCol="side", epochs=6, batchSize=8).fit(numbers)
        predicted = fitted.transform(numbers)
        assert BinaryClassificationEvaluator(labelCol="side").evaluate(predicted) > 0.95
        for row in predicted.collect():
            out = fitted.network(torch.tensor(row.features.toArray()).float()[None]).item()
            p = 1 / (1 + math.exp(-out)) if isinstance(loss, nn.BCEWithLogitsLoss) else out
            assert row.probability.toArray() == pytest.approx([1 - p, p], abs=1e-6)
            assert row.prediction == (p > 0.5) == (row.rawPrediction[1] > row.rawPrediction[0])


def test_numbers(spark, numbers) -> None:
    made = estimator(linear(2, 1), loss=nn.MSELoss(), labelCol="height", epochs=8, batchSize=8)
    split = TrainValidationSplit(
        estimator=made,
        estimatorParamMaps=ParamGridBuilder().addGrid(made.epochs, [8]).build(),
        evaluator=RegressionEvaluator(labelCol="height"),
        seed=2,
    ).fit(numbers)
    assert split.validationMetrics[0] < 0.5
    predicted = split.transform(numbers)
    assert predicted.columns == [*numbers.columns, "prediction"]
    assert predicted.schema["prediction"].dataType.simpleString() == "double"

    two = TorchModel(
        network=nn.Identity(), predictionType="vector", featuresCols=["x", "y"], predictionCol="out"
    )
    row = two.transform(numbers).first()
    assert row.out.toArray() == pytest.approx([row.x, row.y])
    for kind, wanted in (("value", "one number"), ("binary", "one number")):
        with pytest.raises(
            Exception, match=rf"expected outputs of {wanted} a row for predictionType='{kind}', received 2"
        ):
            two.copy({two.predictionType: kind}).transform(numbers).collect()
    one = TorchModel(network=linear(2, 1), predictionType="class")
    with pytest.raises(Exception, match=r"two or more numbers, one for each class"):
        one.transform(numbers).collect()


def test_probabilities_of_other_outputs(numbers) -> None:
    row = numbers.where("id = 4").first()
    out = torch.tensor([row.x, row.y], dtype=torch.float64)
    wanted = {
        "auto": out.softmax(0),
        "softmax": out.softmax(0),
        "sigmoid": out.sigmoid(),
        "exp": out.exp(),
        "none": out,
    }
    made = {name: columns_of(F.array("x", "y"), meaning_of(None, "class", name)) for name in wanted}
    found = (
        numbers.where("id = 4").select(*(made[name]["probability"].alias(name) for name in wanted)).first()
    )
    for name, expected in wanted.items():
        assert found[name].toArray() == pytest.approx(expected.tolist())
    assert meaning_of(nn.NLLLoss(), "auto", "auto") == ("class", "exp")
    assert meaning_of(partial(nn.functional.cross_entropy, label_smoothing=0.1), "auto", "auto") == (
        "class",
        "softmax",
    )
    assert meaning_of(nn.CrossEntropyLoss(), "vector", "auto") == ("vector", "none")
    assert meaning_of(nn.MSELoss(), "binary", "auto") == ("binary", "sigmoid")


def test_rows_that_cannot_be_used(spark) -> None:
    rows = [(i, Vectors.dense(float(i), 1.0), float(i % 2)) for i in range(8)]
    frame = spark.createDataFrame(
        [*rows, (8, None, 1.0), (9, Vectors.dense(1.0, 2.0), 0.5)],
        ["id", "features", "label"],
    )
    with pytest.raises(
        Exception, match=r"label column 'label': expected whole numbers for classes, received 0.5"
    ):
        estimator(linear(2, 2)).fit(frame.where("id <> 8"))
    fitted = estimator(linear(2, 2), handleInvalid="skip").fit(frame)
    assert fitted.summary.stats.rows_trained == 8
    assert {row.id for row in fitted.transform(frame).collect()} == {*range(8), 9}
    kept = {row.id: row for row in fitted.setHandleInvalid("keep").transform(frame).collect()}
    assert len(kept) == 10
    assert kept[8].prediction is kept[8].probability is kept[8].rawPrediction is None
    with pytest.raises(Exception, match="null"):
        fitted.setHandleInvalid("error").transform(frame).collect()


class Steps(nn.Module):
    """Adds up real steps."""

    def forward(self, x, mask):
        return (x * mask).sum(1, keepdim=True)


def test_inputs_that_params_cannot_say_and_networks_of_functions(spark, tmp_path, caplog) -> None:
    class Local(Steps):
        """Cannot be named in a file."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x, mask):
            return super().forward(x, mask) * self.scale

    frame = spark.createDataFrame([(1, [1.0, 2.0]), (2, [5.0])], "id int, visits array<float>")
    model = TorchModel(
        network=Local(), loss=lambda a, b: a, features=SequenceColumn("visits"), predictionCol="sum"
    )
    assert {row.id: row["sum"] for row in model.transform(frame).collect()} == {1: 6.0, 2: 10.0}
    with caplog.at_level(logging.WARNING, logger="fatwood.ml"):
        model.save(str(tmp_path / "model"))
    assert "loss cannot be saved" in caplog.text
    loaded = TorchModel.load(str(tmp_path / "model"))
    assert loaded.features == SequenceColumn("visits")
    with pytest.raises(
        OptionError, match=r"expected network, received none, because .*\nhint: stage.give\(network="
    ):
        loaded.transform(frame)
    mine = Local()
    with torch.no_grad():
        mine.scale.zero_()
    loaded.give(network=mine)
    assert mine.scale == 2
    assert {row.id: row["sum"] for row in loaded.transform(frame).collect()} == {1: 6.0, 2: 10.0}
    with pytest.raises(OptionError, match="expected one of network, loss, features, received 'epochs'"):
        loaded.give(epochs=1)
    with pytest.raises(Exception, match="already exists"):
        loaded.save(str(tmp_path / "model"))
    VectorAssembler(inputCols=["id"], outputCol="v").save(str(tmp_path / "other"))
    with pytest.raises(StorageError, match=r"expected a saved stage of fatwood\.ml"):
        TorchModel.load(str(tmp_path / "other"))
    (tmp_path / "model" / "network.fatwood").unlink()
    with pytest.raises(StorageError, match=r"cannot read .*network.fatwood"):
        TorchModel.load(str(tmp_path / "model"))


def test_an_estimator_survives_save_and_load(spark, numbers, tmp_path) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    made = estimator(
        loss=loss,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2),
        preprocessing=Standardize(),
        batchSize=16,
    )
    made.save(str(tmp_path / "estimator"))
    again = TorchEstimator.load("file:" + str(tmp_path / "estimator"))
    assert again.uid == made.uid
    assert again.extractParamMap() == made.extractParamMap()
    assert (again.strategy, again.options) == (AllReduce(), QUIET)
    first, second = made.fit(numbers), again.fit(numbers)
    assert torch.equal(first.network.weight, second.network.weight)
    assert (
        made.fit(numbers).summary.history[0].loss == first.summary.history[0].loss
    )  # nothing is left of a fit
    assert SparkModel.load(tmp_path / "estimator" / "network.fatwood").network.weight.shape == (3, 2)

    made.give(optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr)).write().overwrite().save(
        str(tmp_path / "estimator")
    )
    again = TorchEstimator.load(str(tmp_path / "estimator"))
    with pytest.raises(OptionError, match=r"expected optimizer, received none, because it is a function"):
        again.fit(numbers)
    assert again.give(optimizer=made.optimizer).fit(numbers).summary.stats.rows_trained == 90


def test_wrong_words() -> None:
    with pytest.raises(OptionError, match=r"names of Params, received 'epoch'\nhint: did you mean 'epochs'"):
        estimator(epoch=2)
    with pytest.raises(OptionError, match="predictionType: expected one of 'auto'"):
        estimator(predictionType="classes")
    with pytest.raises(OptionError, match="epochs"):
        estimator(epochs="many")
    with pytest.raises(OptionError, match=r"no Params, received 'epochs'\nhint: .*callbacks"):
        estimator(options={"epochs": 2})
    with pytest.raises(OptionError, match=r"Net\(\) instead of Net"):
        TorchModel(network=nn.Linear)
    with pytest.raises(OptionError, match=r"expected one of features, featuresCols and featuresCol"):
        estimator(features="x", featuresCol="y")._features()
    with pytest.raises(OptionError, match="expected an optimizer that is called with lr="):
        estimator(optimizer=lambda parameters: None)._optimizer()
    with pytest.raises(OptionError, match=r"expected loss, received none\nhint: TorchEstimator\(loss="):
        estimator(loss=None).fit(None)
    assert isinstance(OptionError("x"), UserError)
