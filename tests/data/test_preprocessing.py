from __future__ import annotations

import copy
import doctest
import importlib
import json
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fatwood.data.preprocessing import (
    Chain,
    ImageScale,
    MinMax,
    Numbers,
    OneHot,
    Standardize,
    Tally,
    Transform,
    Vocabulary,
)
from fatwood.data.preprocessing.counts import Counts
from fatwood.data.preprocessing.exact import ExactSums
from fatwood.data.preprocessing.measures import Extremes, Moments
from fatwood.errors import DataError, OptionError, SchemaError, UserError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = npst.arrays(np.float32, st.tuples(st.integers(0, 12), st.just(2)), elements=FLOATS)
WORDS = st.sampled_from(["a", "b", "é", "e\u0301", "木", "🜂", "", "A"])
TEXTS = st.lists(WORDS, max_size=12).map(lambda words: pa.array(words, pa.string()))
LISTS = st.lists(st.lists(WORDS, max_size=3), max_size=8).map(
    lambda rows: pa.array(rows, pa.list_(pa.string()))
)
INTEGERS = npst.arrays(np.int64, st.integers(0, 9), elements=st.integers(-(2**63), 2**63 - 1))
TALLIES: dict[str, tuple[Any, Any]] = {
    "moments": (lambda: Moments("feature"), ROWS),
    "moments of all": (lambda: Moments("all"), ROWS),
    "extremes": (lambda: Extremes("feature"), ROWS),
    "extremes of all": (lambda: Extremes("all"), ROWS),
    "words": (lambda: Counts(99, numbers=False), st.one_of(TEXTS, LISTS)),
    "classes": (lambda: Counts(999, numbers=True), INTEGERS),
}
MODULES = ("numbers", "exact", "scaling", "categories", "chain")


def _fitted(transform: Transform, *chunks: Any) -> Any:
    tally = transform.tally()
    assert tally is not None
    for chunk in chunks:
        tally.update(chunk)
    return transform.fitted_by(tally)


def _json(tally: Tally) -> str:
    return json.dumps(tally.to_json())


# What is counted.


@given(st.lists(st.lists(FLOATS, max_size=6), max_size=5), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_sum_is_the_exact_one_and_does_not_see_the_order(chunks: Any, squared: bool, random: Any) -> None:
    power = 2 if squared else 1
    terms = [term for chunk in chunks for term in chunk]
    sums, shuffled = ExactSums(1), ExactSums(1)
    for chunk in chunks:
        sums.add(np.array(chunk, np.float64).reshape(-1, 1) ** power)
    random.shuffle(terms)
    for term in terms:
        other = ExactSums(1)
        other.add(np.array([[term**power]]))
        shuffled = other.merge(shuffled)
    ((total,), exponent) = sums.totals()
    assert total * Fraction(2) ** exponent == sum(Fraction(term) ** power for term in terms)
    assert shuffled.to_json() == sums.to_json()
    assert ExactSums.from_json(json.loads(json.dumps(sums.to_json())), 1, "sums") == sums


def test_carries_are_not_forgotten_after_many_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fatwood.data.preprocessing.exact._MAX_ADDS", 3)
    sums = ExactSums(2)
    for _ in range(1000):
        sums.add(np.array([[2.0**40 - 1.0, -(2.0**-20)]]))
    (totals, exponent) = sums.totals()
    assert [Fraction(total) * Fraction(2) ** exponent for total in totals] == [
        1000 * (2**40 - 1),
        Fraction(-1000, 2**20),
    ]


@pytest.mark.parametrize("kind", TALLIES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_split_merged_in_any_order_is_one_pass(kind: str, data: st.DataObject) -> None:
    empty, chunks_of = TALLIES[kind]
    chunks = data.draw(st.lists(chunks_of, max_size=5))
    whole = empty()
    parts = []
    for chunk in chunks:
        whole.update(chunk)
        part = empty()
        part.update(chunk)
        parts.append(Tally.from_json(json.loads(_json(part))))
    parts = data.draw(st.permutations([*parts, empty()]))
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        before = _json(parts[i]), _json(parts[i + 1])
        merged = parts[i].merge(parts[i + 1])
        assert (_json(parts[i]), _json(parts[i + 1])) == before
        parts[i : i + 2] = [merged]
    assert _json(parts[0]) == _json(whole)


@given(npst.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(2)), elements=FLOATS))
@settings(max_examples=50, deadline=None)
def test_mean_and_deviation_are_the_exact_ones_rounded(rows: Any) -> None:
    tally = Moments("feature")
    tally.update(rows)
    mean, std = tally.mean_and_std()
    for column in range(2):
        exact = [Fraction(float(x)) for x in rows[:, column]]
        middle = sum(exact) / len(exact)
        variance = sum((x - middle) ** 2 for x in exact) / len(exact)
        assert mean.array[column] == float(middle)
        assert std.array[column] == math.sqrt(float(variance))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_one_pass_gives_what_numpy_gives_in_two_with_float64(offset: float) -> None:
    generator = np.random.default_rng(3)
    rows = (generator.standard_normal((5000, 3)) * [1.0, 40.0, 1e-3] + offset).astype(np.float32)
    tally = Moments("feature")
    for start in range(0, 5000, 700):
        tally.update(rows[start : start + 700])
    mean, std = tally.mean_and_std()
    wide = rows.astype(np.longdouble)
    np.testing.assert_allclose(mean.array, wide.mean(axis=0).astype(np.float64), rtol=1e-14)
    np.testing.assert_allclose(std.array, wide.std(axis=0).astype(np.float64), rtol=1e-11)


def test_a_huge_offset_does_not_hide_the_deviation() -> None:
    # multiples of 8, since float32 has no others at 1e8
    rows = np.float32(1e8) + 8 * np.arange(-1000, 1001, dtype=np.float32).reshape(-1, 1)
    standardize = _fitted(Standardize(), rows[::2], rows[1::2])
    assert standardize.mean.array == [1e8]
    result = standardize.apply(torch.from_numpy(rows)).double()
    assert abs(result.mean().item()) < 1e-7
    assert abs(result.std(correction=0).item() - 1.0) < 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_images_of_bytes_and_whole_numbers_are_measured(dtype: Any) -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, 3, 4, 5)).astype(dtype)
    of_all = _fitted(Standardize("all"), images)
    assert of_all.mean.shape == ()
    np.testing.assert_allclose(of_all.mean.array, images.mean(dtype=np.float64), rtol=1e-15)
    by_pixel = _fitted(Standardize(), images)
    assert by_pixel.std.shape == (3, 4, 5)
    np.testing.assert_allclose(by_pixel.std.array, images.std(axis=0, dtype=np.float64), rtol=1e-12)
    result = by_pixel.apply(torch.from_numpy(images))
    assert result.dtype == torch.float32
    assert result.shape == (20, 3, 4, 5)


@pytest.mark.parametrize("kind", ["moments", "extremes"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_errors(kind: str, bad: float) -> None:
    with pytest.raises(DataError, match=f"{kind}: expected finite numbers"):
        TALLIES[kind][0]().update(np.array([[1.0, bad]], np.float32))


def test_nulls_among_texts_are_errors() -> None:
    for column in (pa.array(["a", None]), pa.array([["a", None]]), pa.array([["a"], None])):
        with pytest.raises(DataError, match="expected a text in every row, received null"):
            Counts(9, numbers=False).update(column)


def test_rows_of_another_shape_or_type_are_errors() -> None:
    tally = Moments("feature")
    tally.update(np.zeros((2, 3), np.float32))
    with pytest.raises(SchemaError, match=r"of shape \(3,\) as before, received \(2,\)"):
        tally.update(np.zeros((2, 2), np.float32))
    other = Moments("feature")
    other.update(np.zeros((2, 2), np.float32))
    with pytest.raises(SchemaError, match=r"of shape \(3,\) in both, received \(2,\)"):
        tally.merge(other)
    with pytest.raises(SchemaError, match="another tally of moments per feature, received extremes"):
        tally.merge(Extremes("feature"))
    with pytest.raises(SchemaError, match="expected a column of numbers, received string"):
        tally.update(pa.array(["a"]))
    with pytest.raises(SchemaError, match="expected a column of texts, received int64"):
        Counts(9, numbers=False).update(np.array([1]))
    with pytest.raises(SchemaError, match="lists of texts, received int64"):
        Counts(9, numbers=False).update(pa.array([1]))
    with pytest.raises(SchemaError, match="texts or whole numbers, received float32"):
        Counts(9, numbers=True).update(np.array([1], np.float32))
    both = Counts(9, numbers=True)
    both.update(np.array([1]))
    with pytest.raises(SchemaError, match="received both"):
        both.update(pa.array(["a"]))


def test_too_many_different_values_are_an_error_in_either_place() -> None:
    tally, other = Counts(3, numbers=True), Counts(3, numbers=True)
    tally.update(np.array([1, 2, 3, 3]))
    other.update(np.array([4]))
    for act in (lambda: tally.merge(other), lambda: tally.update(np.array([5]))):
        with pytest.raises(DataError, match="at most 3 different values, received more"):
            act()


@pytest.mark.parametrize("transform", [Standardize(), MinMax(), OneHot(), Vocabulary()])
def test_no_rows_fit_nothing(transform: Transform) -> None:
    tally = transform.tally()
    assert tally is not None
    with pytest.raises(DataError, match="expected at least one row"):
        transform.fitted_by(tally)
    with pytest.raises(OptionError, match="its own tally"):
        transform.fitted_by(Moments("all") if not isinstance(transform, Standardize) else Extremes("all"))
    assert not transform.fitted
    with pytest.raises(OptionError, match="not fitted"):
        transform.apply(torch.zeros(1, 2, dtype=torch.int64))


# Numbers.


@pytest.mark.parametrize("per", ["feature", "all"])
@pytest.mark.parametrize("make", [Standardize, MinMax])
@given(
    rows=npst.arrays(
        np.float32, st.tuples(st.integers(1, 8), st.just(3)), elements=st.floats(-1e6, 1e6, width=32)
    )
)
@settings(max_examples=40, deadline=None)
def test_inverse_undoes_apply(make: Any, per: Any, rows: Any) -> None:
    transform = _fitted(make(per=per), rows)
    values = torch.from_numpy(rows)
    result = transform.apply(values)
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    back = transform.inverse(result)
    # The result is rounded to float32, so by up to 2**-24 of the largest that it can be.
    spread = np.ptp(rows if per == "all" else rows.max(axis=0, keepdims=True) - rows.min(axis=0), axis=None)
    largest = np.abs(rows).max()
    assert (back - values).abs().max() <= 2.0**-22 * max(float(spread), float(largest)) + 1e-45


def test_features_have_mean_0_and_deviation_1_and_constant_ones_are_0() -> None:
    rows = np.array([[1, 7, 0.1], [2, 7, 0.1], [6, 7, 0.1]], np.float32)
    standardize = _fitted(Standardize(), rows)
    result = standardize.apply(torch.from_numpy(rows))
    assert result[:, 0].mean().item() == pytest.approx(0.0, abs=1e-7)
    assert result[:, 0].std(correction=0).item() == pytest.approx(1.0)
    assert result[:, 1:].tolist() == [[0.0, 0.0]] * 3
    later = standardize.apply(torch.tensor([[1.0, 8.0, -3.0]]))
    assert later[0, 1:].tolist() == [0.0, 0.0]
    assert standardize.inverse(torch.tensor([[0.0, 5.0, -5.0]])).tolist() == [[3.0, 7.0, pytest.approx(0.1)]]


def test_epsilon_says_what_counts_as_constant() -> None:
    rows = np.array([[1.0, 0.0], [1.5, 1.0]], np.float32)
    assert _fitted(Standardize(epsilon=0.25), rows).apply(torch.from_numpy(rows)).tolist() == [
        [0.0, -1.0],
        [0.0, 1.0],
    ]


def test_min_max_reaches_both_ends_and_does_not_clip() -> None:
    rows = np.array([[0.1, 5.0], [0.7, 5.0], [0.3, 5.0]], np.float32)
    scale = _fitted(MinMax(-2.0, 3.0), rows)
    result = scale.apply(torch.from_numpy(rows))
    assert (result[:, 0].min().item(), result[:, 0].max().item()) == (-2.0, 3.0)
    assert result[:, 1].tolist() == [-2.0] * 3
    assert scale.apply(torch.tensor([[1.3, 6.0]]))[0].tolist() == [pytest.approx(8.0), -2.0]
    assert scale.inverse(torch.tensor([[8.0, 1.0]]))[0].tolist() == [pytest.approx(1.3), 5.0]


def test_minus_zero_and_zero_are_one_extreme() -> None:
    one = _fitted(MinMax(), np.array([0.0, 1.0], np.float32), np.array([-0.0], np.float32))
    other = _fitted(MinMax(), np.array([-0.0], np.float32), np.array([0.0, 1.0], np.float32))
    assert one == other


def test_one_row_is_enough() -> None:
    row = np.array([[3.0, 4.0]], np.float32)
    assert _fitted(Standardize(), row).apply(torch.from_numpy(row)).tolist() == [[0.0, 0.0]]
    assert _fitted(MinMax(), row).apply(torch.from_numpy(row)).tolist() == [[0.0, 0.0]]


def test_the_values_that_are_given_stay_as_they_are() -> None:
    rows = torch.arange(12, dtype=torch.float32).reshape(1, 3, 2, 2)
    for transform in (_fitted(Standardize(), rows.numpy()), ImageScale(1.0, 2.0)):
        before = rows.clone()
        transform.apply(rows)
        transform.inverse(rows)
        assert torch.equal(rows, before)


def test_padding_stays_zero_and_is_not_counted() -> None:
    steps = np.array([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]], np.float32)
    padded = torch.zeros(2, 2, 2)
    mask = torch.tensor([[True, True], [True, False]])
    padded[mask] = torch.from_numpy(steps)
    standardize = _fitted(Standardize(), steps)
    result = standardize.apply(padded, mask)
    assert torch.equal(result[mask], standardize.apply(torch.from_numpy(steps)))
    assert result[1, 1].tolist() == [0.0, 0.0]
    one_hot = OneHot(range(2))
    assert one_hot.apply(torch.tensor([[0, 1], [1, 0]]), mask).tolist() == [
        [[1, 0], [0, 1]],
        [[0, 1], [0, 0]],
    ]
    assert ImageScale(1.0, 1.0).apply(torch.ones(2, 2, 1, 1, 1) * 5, mask).flatten().tolist() == [4, 4, 4, 0]
    with pytest.raises(SchemaError, match=r"mask: expected \(2, 2\) as the steps have"):
        standardize.apply(padded, mask[:1])


def test_a_label_s_predictions_go_back_to_its_unit() -> None:
    label = _fitted(Standardize(), np.array([10.0, 20.0, 30.0], np.float32))
    assert label.mean.shape == ()
    outputs = label.apply(torch.tensor([10.0, 30.0])).reshape(2, 1)
    assert label.inverse(outputs).flatten().tolist() == pytest.approx([10.0, 30.0])
    pair = _fitted(Standardize(), np.array([[1.0, 2.0], [3.0, 5.0]], np.float32))
    with pytest.raises(SchemaError, match=r"expected numbers of shape \('B', 2\), received \(4, 3\)"):
        pair.inverse(torch.zeros(4, 3))
    with pytest.raises(OptionError, match="expected a transform that can be undone"):
        OneHot([1]).inverse(torch.zeros(1))


def test_rows_of_another_shape_than_it_was_fitted_with_are_an_error() -> None:
    standardize = _fitted(Standardize(), np.zeros((1, 784), np.float32))
    with pytest.raises(
        SchemaError, match=r"Standardize: expected rows of shape \(784,\), .* received \(10,\)"
    ):
        standardize.require_fits((10,))
    with pytest.raises(SchemaError, match=r"received \(10,\)"):
        standardize.apply(torch.zeros(2, 10))
    _fitted(Standardize("all"), np.zeros((1, 784), np.float32)).require_fits((10,))
    with pytest.raises(SchemaError, match=r"images of shape \(3, H, W\), received \(1, 8, 8\)"):
        ImageScale((0.1, 0.2, 0.3), 1.0).require_fits((1, 8, 8))
    with pytest.raises(SchemaError, match=r"images of shape \(C, H, W\), received \(8, 8\)"):
        ImageScale(0.1, 1.0).apply(torch.zeros(1, 8, 8))


def test_image_scale_is_torchvision_s_normalize() -> None:
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    scale = ImageScale(mean, std)
    assert torch.equal(scale.apply(image), expected)
    torch.testing.assert_close(scale.inverse(expected), image)


# Names.


def test_one_hot_of_numbers_and_texts() -> None:
    numbers = _fitted(OneHot(), np.array([7, -1, 7]), np.array([3]))
    assert numbers.classes == (-1, 3, 7)
    assert not numbers.encodes
    assert numbers.apply(torch.tensor([7, 4, -1])).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert OneHot([9, 2]).apply(torch.tensor([[9], [2]], dtype=torch.uint8)).tolist() == [[1, 0], [0, 1]]
    assert OneHot([9, 2]).apply(torch.tensor([[9, 2, 5]])).shape == (1, 3, 2)
    texts = _fitted(OneHot(), pa.array(["木", "b", "é"]))
    assert texts.classes == ("b", "é", "木")
    ids = texts.encode(pa.array(["é", "c", None, "木"], pa.large_string()))
    assert ids.to_pylist() == [1, -1, None, 2]
    assert texts.apply(torch.tensor([1, -1])).tolist() == [[0, 1, 0], [0, 0, 0]]
    for shape, expected in (((), (3,)), ((1,), (3,)), ((4,), (4, 3))):
        assert texts.output_shape(shape) == expected
        assert tuple(texts.apply(torch.zeros(5, *shape, dtype=torch.int64)).shape) == (5, *expected)
    with pytest.raises(SchemaError, match="expected whole numbers"):
        numbers.apply(torch.zeros(2))


def test_words_are_ordered_by_count_then_text() -> None:
    column = pa.array([["b", "a", "木"], [], ["a", "b", "Z", "e\u0301", "é"], ["木", "木"]])
    found = _fitted(Vocabulary(), column)
    assert found.words == ("木", "a", "b", "Z", "e\u0301", "é")
    assert found.ids == 8
    assert _fitted(Vocabulary(size=4), column).words == ("木", "a")
    assert _fitted(Vocabulary(min_count=2), column).words == ("木", "a", "b")
    with pytest.raises(DataError, match="occurs 4 times, received 3 at most"):
        _fitted(Vocabulary(min_count=4), column)


@pytest.mark.parametrize("type_of", [pa.list_, pa.large_list])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_any_arrow_type_become_ids(type_of: Any, text: Any) -> None:
    vocabulary = Vocabulary(words=("x", "y"))
    rows = [["y"], ["x", "?", "y"], None, [], ["x", None]]
    whole = pa.array([["hidden"], *rows], type_of(pa.string()))
    if pa.types.is_dictionary(text):
        values = whole.flatten().dictionary_encode()
        offsets = pa.array([0, 1, 2, 5, 5, 5, 7], whole.offsets.type)
        factory = pa.ListArray if type_of is pa.list_ else pa.LargeListArray
        whole = factory.from_arrays(offsets, values, mask=whole.is_null())
    else:
        whole = whole.cast(type_of(text))
    ids = vocabulary.encode(whole.slice(1))
    assert ids.to_pylist() == [[3], [2, 1, 3], None, [], [2, None]]
    assert ids.type.value_type == pa.int64()
    assert vocabulary.encode(pa.array(["y", None, "?"])).to_pylist() == [3, None, 1]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, [2, 1, 3]),
        ({"padding": False}, [1, 0, 2]),
        ({"unknown": False}, [1, None, 2]),
        ({"unknown": False, "padding": False}, [0, None, 1]),
    ],
)
def test_the_first_ids_are_of_padding_and_of_other_texts(options: Any, ids: list[Any]) -> None:
    vocabulary = Vocabulary(words=("x", "y"), **options)
    assert vocabulary.encode(pa.array(["x", "?", "y"])).to_pylist() == ids
    assert vocabulary.ids == max(i for i in ids if i is not None) + 1
    complaint = vocabulary.complaint("?")
    assert (complaint is not None) == (None in ids)
    assert complaint is None or complaint.endswith("one of the 2 words of the vocabulary, received '?'")
    assert vocabulary.complaint(["x", None]) is None
    values = torch.tensor([[1, 0]])
    assert vocabulary.apply(values) is values
    assert vocabulary.output_dtype("int64") == "int64"


def test_columns_that_are_no_text_are_errors() -> None:
    with pytest.raises(SchemaError, match=r"Vocabulary: expected a column of texts, .* received int64"):
        Vocabulary(words=("x",)).encode(pa.array([1]))
    with pytest.raises(OptionError, match="not fitted"):
        Vocabulary().encode(pa.array(["a"]))
    numbers = pa.array([1])
    assert OneHot([1]).encode(numbers) is numbers
    assert Standardize().encode(numbers) is numbers


# Chains.


def test_a_chain_is_fitted_member_by_member() -> None:
    rows = np.array([[[[0.0]]], [[[128.0]]], [[[256.0]]]], np.float32)
    chain = Chain(ImageScale(0.0, 2.0), Chain(Standardize("all")), MinMax())
    passes = 0
    while not chain.fitted:
        # half of it in another process
        mine, theirs = chain.tally(), chain.tally()
        assert mine is not None
        assert theirs is not None
        mine.update(rows[:1])
        theirs.update(rows[1:])
        chain = chain.fitted_by(mine.merge(Tally.from_json(json.loads(_json(theirs)))))
        passes += 1
    assert passes == 2
    assert chain.members[1].mean.array == 64.0  # type: ignore[attr-defined]
    assert chain.apply(torch.from_numpy(rows)).flatten().tolist() == pytest.approx([0.0, 0.5, 1.0])
    back = chain.inverse(chain.apply(torch.from_numpy(rows)))
    assert back.flatten().tolist() == pytest.approx([0.0, 128.0, 256.0], abs=1e-4)
    assert chain.tally() is None
    with pytest.raises(SchemaError, match=r"received \(2, 1\)"):
        chain.require_fits((2, 1))
    with pytest.raises(OptionError, match="all are fitted"):
        chain.fitted_by(Moments("all"))


def test_a_chain_of_texts_then_numbers() -> None:
    chain = Chain(OneHot(), Standardize())
    assert chain.takes_text
    column = pa.array(["b", "a", "b", "b"])
    while not chain.fitted:
        chain = _fitted(chain, column)
    assert chain.encodes
    assert chain.members[1].mean.array.tolist() == [0.25, 0.75]  # type: ignore[attr-defined]
    ids = torch.tensor(chain.encode(column).to_pylist())
    assert chain.apply(ids).shape == (4, 2) == (4, *chain.output_shape(()))
    words = Chain(_fitted(Vocabulary(), pa.array([["x"], ["y", "x"]])), MinMax(per="all"))
    assert not words.takes_numbers
    assert words.output_dtype("int64") == "float32"
    words = _fitted(words, pa.array([["x"], ["y"]]))
    assert words.members[1].greatest.array == 3.0  # type: ignore[attr-defined]


# Options and JSON.


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Standardize("row"), "per: expected 'feature' or 'all', received 'row'"),  # type: ignore[arg-type]
        (lambda: Standardize(epsilon=-1.0), "epsilon: expected a finite number of at least 0"),
        (lambda: Standardize(epsilon=math.nan), "epsilon: expected a finite number"),
        (lambda: Standardize(mean=Numbers.of(0.0)), "expected mean and std"),
        (lambda: Standardize(mean=Numbers.of(0.0), std=Numbers.of(-1.0)), "expected mean and std"),
        (lambda: Standardize(mean=Numbers.of(0.0), std=Numbers.of([1.0])), "measures of one shape"),
        (lambda: MinMax(1.0, 1.0), "expected finite low < high"),
        (lambda: MinMax(0.0, math.inf), "expected finite low < high"),
        (lambda: MinMax(least=Numbers.of(1.0), greatest=Numbers.of(0.0)), "expected least"),
        (lambda: MinMax(least=Numbers.of(1.0)), "expected least"),
        (lambda: ImageScale((), 1.0), "mean: expected a finite number"),
        (lambda: ImageScale((0.0, math.nan), 1.0), "mean: expected a finite number"),
        (lambda: ImageScale(0.0, 0.0), "expected as many std, above 0"),
        (lambda: ImageScale((0.0, 0.0), (1.0, 1.0, 1.0)), "expected as many std"),
        (lambda: OneHot([]), "classes: expected different texts"),
        (lambda: OneHot("abc"), "classes: expected different texts"),
        (lambda: OneHot([1, 1]), "classes: expected different texts"),
        (lambda: OneHot([1, "a"]), "classes: expected different texts"),  # type: ignore[list-item]
        (lambda: OneHot([True, False]), "classes: expected different texts"),
        (lambda: OneHot([2**64]), "numbers of 64 bits"),
        (lambda: OneHot(["\ud800"]), "texts that UTF-8 can say"),
        (lambda: Vocabulary(size=2), "size: expected a whole number above 2"),
        (lambda: Vocabulary(min_count=0), "min_count: expected a whole number of at least 1"),
        (lambda: Vocabulary(padding=0), "padding: expected True or False"),  # type: ignore[arg-type]
        (lambda: Vocabulary(words=("a", "a")), "words: expected different texts"),
        (lambda: Vocabulary(3, words=("a", "b")), "words: expected at most 1 for size=3, received 2"),
        (lambda: Chain(), "expected 1 to 64 transforms, received 0"),
        (lambda: Chain("standardize"), "expected transforms, received 'standardize'"),  # type: ignore[arg-type]
        (lambda: Chain(Standardize(), Vocabulary()), "Vocabulary of texts as the first member"),
    ],
)
def test_options_that_cannot_work_are_errors(make: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make()


SAVED: list[Transform] = [
    Standardize(),
    _fitted(Standardize("all", 1e-9), np.array([0.1, 0.3], np.float32)),
    _fitted(Standardize(), np.random.default_rng(2).standard_normal((7, 2, 3)).astype(np.float32)),
    MinMax(),
    _fitted(MinMax(-0.1, 0.7), np.array([[0.1, 1e-40], [3e38, 2.0]], np.float32)),
    ImageScale((0.1, 0.2, 0.3), 0.4),
    OneHot(),
    OneHot([-(2**63), 2**63 - 1]),
    OneHot(["é", "木", ""]),
    Vocabulary(10, 2),
    Vocabulary(words=("木", "\n", "a"), unknown=False, padding=False),
    Chain(ImageScale(0.1, 0.2), _fitted(Standardize("all"), np.ones(3, np.float32)), MinMax()),
]


@pytest.mark.parametrize("transform", SAVED, ids=lambda transform: transform.name)
def test_json_gives_the_same_transform_to_the_last_bit(transform: Transform) -> None:
    text = json.dumps(transform.to_json())
    again = Transform.from_json(json.loads(text))
    assert again == transform
    assert json.dumps(again.to_json()) == text
    assert pickle.loads(pickle.dumps(transform)) == transform
    assert hash(again) == hash(transform)


def _damages(state: Any) -> Any:
    """The same JSON with one entry changed, in all ways that a reader must notice."""
    for key in list(state) if isinstance(state, dict) else range(len(state)):
        value = state[key]
        wrong: list[Any] = [True, "?", -1, 1.5, {}, [], [None], {"x": 1}, math.nan]
        if isinstance(state, dict):
            missing = dict(state)
            del missing[key]
            yield missing
            yield {**state, "more": 1}
        if isinstance(value, str):
            wrong += [value[:-4], value + "AAAA", "*" + value[1:]]
        for new in wrong:
            damaged = copy.copy(state)
            damaged[key] = new
            yield damaged
        if isinstance(value, dict | list) and value:
            for new in _damages(value):
                damaged = copy.copy(state)
                damaged[key] = new
                yield damaged


def _tallies() -> list[Tally]:
    tallies: list[Tally] = [
        Moments("feature"),
        Extremes("all"),
        Counts(5, numbers=True),
        Counts(5, numbers=True),
    ]
    for tally, rows in zip(
        tallies, [np.array([[1.5, -1]]), np.ones(3), np.array([3, 4]), pa.array(["a", "b"])], strict=True
    ):
        tally.update(rows)
    return [*tallies, Moments("all")]


@pytest.mark.parametrize("kind", [*range(len(SAVED)), "tally"])
def test_damaged_json_is_an_error_or_says_something_else(kind: int | str) -> None:
    read: Any = Tally.from_json if kind == "tally" else Transform.from_json
    originals: list[Any] = _tallies() if kind == "tally" else [SAVED[int(kind)]]
    refused = 0
    for original in originals:
        state = json.loads(json.dumps(original.to_json()))
        for damaged in _damages(state):
            try:
                found = read(damaged)
            except UserError:
                refused += 1
            else:  # another value that is as good as the first
                assert found.to_json() != {}
                assert found.to_json() == json.loads(json.dumps(read(found.to_json()).to_json()))
    assert refused > 10


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "expected an object with 'transform' one of chain, image_scale"),
        ({"transform": ["x"]}, "expected an object with 'transform'"),
        ({"transform": "min_max", "version": 2}, "'min_max': expected version 1, received 2"),
        ({"transform": "standardize", "version": True}, "expected version 1, received True"),
    ],
)
def test_other_kinds_and_versions_are_named(state: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        Transform.from_json(state)


def test_a_length_is_checked_before_memory_is_taken() -> None:
    state = _fitted(Standardize(), np.ones((1, 2), np.float32)).to_json()
    state["mean"]["shape"] = [2**40, 2**20]
    with pytest.raises(UserError, match="bytes in base64"):
        Transform.from_json(state)
    tally = Moments("feature")
    tally.update(np.ones((1, 2), np.float32))
    damaged = json.loads(_json(tally))
    damaged["shape"] = [2**40]
    with pytest.raises(UserError):
        Tally.from_json(damaged)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"fatwood.data.preprocessing.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
