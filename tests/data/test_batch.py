from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Batch, Field, Group, Layout, Ragged, Rows, Spill, each, mapped
from fatwood.errors import OptionError


def _rows(first: int, n: int, *, label: bool = True) -> Rows:
    row_ids = np.arange(first, first + n)
    features = np.repeat(row_ids[:, None].astype(np.float32), 3, axis=1)
    columns: dict[str, Any] = {"features": features, **({"label": row_ids * 2} if label else {})}
    for array in (row_ids, features):
        array.flags.writeable = False
    return Rows(row_ids, columns)


LAYOUT = Layout.of(feature_width=3, feature_dtype="float32", feature_name="x", label_dtype="int64")


def test_pieces_are_joined_in_order_and_copied() -> None:
    first, second = _rows(0, 2), _rows(5, 1)
    batch = LAYOUT.batch(Rows.joined([first, second]))
    assert len(batch) == 3
    assert batch.row_ids.tolist() == [0, 1, 5]
    assert batch.features.tolist() == [[0.0] * 3, [1.0] * 3, [5.0] * 3]
    assert batch.label.tolist() == [0, 2, 10]
    batch.features.fill_(9)  # writable, and not an alias of the piece
    assert first.columns["features"][0, 0] == 0


def test_a_single_piece_is_copied_too() -> None:
    rows = _rows(0, 2, label=False)
    batch = LAYOUT.without_label().batch(Rows.joined([rows]))
    batch.features.fill_(9)
    batch.row_ids[0] = 9
    assert batch.label is None
    assert batch.features.dtype == torch.float32
    assert rows.columns["features"].max() == 1
    assert rows.row_ids[0] == 0


def test_a_part_is_a_view_and_a_copy_is_not() -> None:
    rows = _rows(0, 5)
    part = rows.part(1, 3)
    assert len(part) == 2
    assert part.row_ids.tolist() == [1, 2]
    assert np.shares_memory(part.columns["features"], rows.columns["features"])
    assert part.columns["label"].tolist() == [2, 4]
    copy = part.copy()
    assert not np.shares_memory(copy.columns["features"], rows.columns["features"])
    assert copy.columns["features"].tolist() == part.columns["features"].tolist()


def test_several_tensors_keep_their_form_and_rows_can_be_chosen() -> None:
    image, age = torch.arange(12.0).reshape(3, 4), torch.arange(3)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    batch = Batch({"image": image, "age": age}, (age, image), feature_mask={"image": mask})
    assert batch.row_ids.tolist() == [0, 1, 2]
    assert [key for key, _ in each(batch.features)] == ["image", "age"]
    assert [key for key, _ in each(batch.label)] == [0, 1]
    chosen = batch.rows(torch.tensor([True, False, True]))
    assert chosen.features["age"].tolist() == [0, 2]
    assert chosen.label[1].tolist() == image[[0, 2]].tolist()
    assert chosen.feature_mask["image"].tolist() == mask[[0, 2]].tolist()
    assert chosen.row_ids.tolist() == [0, 2]
    assert len(batch.rows(slice(1, 2))) == 1
    assert mapped(lambda t: t + 1, (None, age))[1].tolist() == [1, 2, 3]


def test_a_minibatch_of_nothing_is_refused() -> None:
    for nothing in ({}, (), None):
        with pytest.raises(OptionError, match="Batch: features: expected at least one tensor"):
            Batch(nothing)


SEQUENCES = st.lists(st.integers(1, 5), min_size=1, max_size=12)


def _ragged(lengths: list[int], step: tuple[int, ...]) -> Ragged:
    values = np.arange(sum(lengths) * int(np.prod(step)), dtype=np.float32).reshape(sum(lengths), *step)
    return Ragged(values, np.array(lengths, np.int64))


def _list(column: Ragged) -> list[Any]:
    ends = np.cumsum(column.lengths)
    return [column.values[e - n : e].tolist() for e, n in zip(ends, column.lengths, strict=True)]


@given(lengths=SEQUENCES, step=st.sampled_from([(), (1,), (2,), (2, 3)]), data=st.data())
@settings(max_examples=80, deadline=None)
def test_steps_are_cut_joined_and_padded_like_lists(
    lengths: list[int], step: tuple[int, ...], data: st.DataObject
) -> None:
    column = _ragged(lengths, step)
    rows = _list(column)
    cut = data.draw(st.integers(0, len(lengths)))
    assert _list(column[cut:]) == rows[cut:]
    assert _list(column[:cut].copy()) == rows[:cut]
    layout = Layout(features=Group(fields=(Field(name="features", title="x", shape=step, ragged=True),)))
    ids = np.arange(len(lengths))
    whole = Rows(ids, {"features": column})
    joined = Rows.joined([whole.part(cut, len(lengths)), whole.part(0, cut)])
    batch = layout.batch(joined)
    mask = batch.feature_mask
    assert mask.sum(1).tolist() == lengths[cut:] + lengths[:cut]
    for i, row in enumerate(rows[cut:] + rows[:cut]):
        assert batch.features[i][mask[i]].tolist() == row
    assert not batch.features[~mask].any()


@given(lengths=SEQUENCES, step=st.sampled_from([(), (1,), (2,), (2, 3)]), data=st.data())
@settings(max_examples=40, deadline=None)
def test_steps_come_back_from_the_disk_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], step: tuple[int, ...], data: st.DataObject
) -> None:
    column = _ragged(lengths, step)
    rows = Rows(np.arange(len(lengths)), {"features": column})
    cut = data.draw(st.integers(0, len(lengths)))
    indices = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1)), np.int64)
    layout = Layout(features=Group(fields=(Field(name="features", title="x", shape=step, ragged=True),)))
    with Spill(tmp_path_factory.mktemp("spill")) as spill:
        for part in (rows.part(0, cut), rows.part(cut, len(lengths))):
            if len(part):
                spill.append(part.copy().to_arrow())
        spill.finish()
        taken = layout.batch_of(spill.take(indices))
        assert spill.lengths("features", indices).tolist() == [lengths[i] for i in indices]
    assert taken.row_ids.tolist() == indices.tolist()
    expected = _list(column)
    for i, row in enumerate(indices):
        assert taken.features[i][taken.feature_mask[i]].tolist() == expected[row]


def test_a_shape_comes_back_from_the_disk(tmp_path: Path) -> None:
    images = np.arange(2 * 12, dtype=np.uint8).reshape(2, 3, 2, 2)
    field = Field(name="features", title="photo", dtype="uint8", shape=(3, 2, 2), divisor=255)
    layout = Layout(features=Group(fields=(field,)))
    with Spill(tmp_path) as spill:
        spill.append(Rows(np.arange(2), {"features": images}).to_arrow())
        spill.finish()
        batch = layout.batch_of(spill.take(np.array([1, 0])))
    assert batch.features.dtype == torch.float32
    assert torch.equal(batch.features, torch.from_numpy(images[[1, 0]]).float() / 255)
