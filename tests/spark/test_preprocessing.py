"""Preprocessing is fitted alike however the rows are cut; what goes wrong on a task is told on the driver."""

from __future__ import annotations

import pytest

from fatwood.data import Field, Group, Layout
from fatwood.data.preprocessing import Chain, ImageScale, MinMax, OneHot, Standardize, Vocabulary
from fatwood.errors import DataError, OptionError
from fatwood.spark.feeds import Shares
from fatwood.spark.preprocessing import fit_transforms

pytestmark = pytest.mark.spark

LAYOUT = Layout(
    features=Group(
        form="dict",
        fields=(
            Field(name="features/x", title="x", shape=(2,)),
            Field(name="features/text", title="text", dtype="int64", ragged=True),
        ),
    ),
    label=Group(fields=(Field(name="label", title="kind", dtype="int64"),)),
)
SCHEMA = "row_id bigint, `features/x` array<float>, `features/text` array<string>, label string"
TRANSFORMS = {"features/x": Standardize(), "features/text": Vocabulary(size=5), "label": OneHot()}
ROWS = [(i, [i * 0.1, 1e8 + i], ["all", f"w{i % 3}", "é"], "ab"[i % 2]) for i in range(20)]


def fitted(df, *rest):
    return fit_transforms(Shares(frame=df), *rest)


def test_the_partitions_cannot_be_seen(spark) -> None:
    together = spark.createDataFrame(ROWS, SCHEMA).coalesce(1)
    whole = fitted(together, LAYOUT, TRANSFORMS, "error")
    assert whole["features/text"].words == ("all", "é", "w0")
    assert whole["label"] == OneHot(["a", "b"])
    assert whole["features/x"].mean.array[0] == pytest.approx(0.95)
    # more partitions than rows in some of them, in another order, and rows that are left out
    bad = [(98, None, ["z"], "z"), (99, [1.0, 2.0], ["z", None], "z")]
    cut = spark.createDataFrame([*ROWS, *bad][::-1], SCHEMA).repartition(7)
    assert fitted(cut, LAYOUT, TRANSFORMS, "skip") == whole


def test_errors_of_tasks_reach_the_driver_and_name_the_row(spark) -> None:
    rows = spark.createDataFrame([*ROWS, ((1 << 33) + 3, [1.0, 2.0], ["z", None], "a")], SCHEMA)
    with pytest.raises(DataError, match=r"partition 1, row 3: column 'text': .* received null at position 1"):
        fitted(rows, LAYOUT, TRANSFORMS, "error")
    with pytest.raises(DataError, match="column 'x': moments: expected at least one row"):
        fitted(rows.limit(0), LAYOUT, TRANSFORMS, "error")


def test_what_is_fitted_takes_no_job_and_a_chain_one_for_each_member(spark) -> None:
    df = spark.createDataFrame(ROWS, SCHEMA)
    tracker = spark.sparkContext.statusTracker()
    ready = {"features/text": Vocabulary(words=("all",)), "label": OneHot(["a", "b"])}
    spark.sparkContext.setJobGroup("fitting", "")
    try:
        assert fitted(df, LAYOUT, ready, "error") == ready
        assert list(tracker.getJobIdsForGroup("fitting")) == []
        found = fitted(df, LAYOUT, {**ready, "features/x": Chain(Standardize(), MinMax())}, "error")
        assert found["features/x"].fitted
        assert len(tracker.getJobIdsForGroup("fitting")) == 2
        with pytest.raises(OptionError, match="expected one of the fields"):
            fitted(df, LAYOUT, {"features/image": ImageScale(0.0, 1.0)}, "error")
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)
        spark.sparkContext.setLocalProperty("spark.job.description", None)
