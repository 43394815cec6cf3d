from __future__ import annotations

import numpy as np
import torch

from fatwood.data import Batch, Rows


def _rows(first: int, n: int, *, label: bool = True) -> Rows:
    row_ids = np.arange(first, first + n)
    features = np.repeat(row_ids[:, None].astype(np.float32), 3, axis=1)
    rows = Rows(row_ids=row_ids, features=features, label=row_ids * 2 if label else None)
    for array in (row_ids, features):
        array.flags.writeable = False
    return rows


def test_joined_copies_the_pieces_in_order() -> None:
    first, second = _rows(0, 2), _rows(5, 1)
    batch = Batch.joined([first, second])
    assert len(batch) == 3
    assert batch.row_ids.tolist() == [0, 1, 5]
    assert batch.features.tolist() == [[0.0] * 3, [1.0] * 3, [5.0] * 3]
    assert batch.label is not None
    assert batch.label.tolist() == [0, 2, 10]
    batch.features.fill_(9)  # writable, and not an alias of the piece
    assert first.features[0, 0] == 0


def test_joined_copies_a_single_piece_too() -> None:
    rows = _rows(0, 2, label=False)
    batch = Batch.joined([rows])
    batch.features.fill_(9)
    batch.row_ids[0] = 9
    assert batch.label is None
    assert batch.features.dtype == torch.float32
    assert rows.features.max() == 1
    assert rows.row_ids[0] == 0


def test_a_part_is_a_view_and_a_copy_is_not() -> None:
    rows = _rows(0, 5)
    part = rows.part(1, 3)
    assert len(part) == 2
    assert part.row_ids.tolist() == [1, 2]
    assert np.shares_memory(part.features, rows.features)
    assert part.label is not None
    assert part.label.tolist() == [2, 4]
    copy = part.copy()
    assert not np.shares_memory(copy.features, rows.features)
    assert copy.features.tolist() == part.features.tolist()
    assert _rows(0, 5, label=False).part(1, 3).copy().label is None
