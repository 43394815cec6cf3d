"""How often each text or whole number occurs, and what columns of text look like in Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fatwood.data.preprocessing.numbers import damaged, entries
from fatwood.data.preprocessing.transform import Tally, named_tally
from fatwood.errors import DataError, SchemaError

__all__ = ["Counts", "flat_texts", "is_list", "is_text", "looked_up", "nested"]


@named_tally("counts")
class Counts(Tally):
    """How often each value occurs: texts, or whole numbers.

    Args:
        limit: The most different values that are kept.
        numbers: Whether whole numbers may come, too; a tally counts one of the two.
    """

    def __init__(self, limit: int, *, numbers: bool) -> None:
        self.limit = limit
        self.numbers = numbers
        self.counts: dict[Any, int] = {}
        """By value."""
        self._type: type | None = None

    def update(self, values: Any) -> None:
        """Count the values of rows; see `Tally.update`."""
        if isinstance(values, np.ndarray):
            if not self.numbers or values.dtype.kind not in "iu":
                wanted = "texts or whole numbers" if self.numbers else "texts"
                message = f"counts: expected a column of {wanted}, received {values.dtype}"
                raise SchemaError(message)
            distinct, counts = np.unique(values, return_counts=True)
            self._add(int, zip(distinct.tolist(), counts.tolist(), strict=True))
            return
        texts = flat_texts(values, "counts")
        if values.null_count or texts.null_count:
            message = "counts: expected a text in every row, received null"
            raise DataError(message, hint="check rows before they are counted")
        found = pc.value_counts(texts)
        pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)
        self._add(str, pairs)

    def merge(self, other: Tally) -> Counts:
        """See `Tally.merge`."""
        if not isinstance(other, Counts) or (other.limit, other.numbers) != (self.limit, self.numbers):
            message = f"counts: expected another tally of the same counts, received {other.kind}"
            raise SchemaError(message)
        merged = Counts(self.limit, numbers=self.numbers)
        for tally in (self, other):
            merged._add(tally._type, tally.counts.items())
        return merged

    def state(self) -> dict[str, Any]:
        """See `Tally.state`."""
        values = sorted(self.counts)
        counts = [self.counts[value] for value in values]
        return {"limit": self.limit, "numbers": self.numbers, "values": values, "counts": counts}

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Counts:
        """See `Tally.from_state`."""
        found = entries(state, where, {"limit": int, "numbers": bool, "values": list, "counts": list})
        values, counts = found["values"], found["counts"]
        types = {type(value) for value in values}
        if len(types) > 1 or not types <= ({str, int} if found["numbers"] else {str}):
            raise damaged(where, "texts, or whole numbers", f"{values!r:.60}")
        if len(set(values)) != len(values) or len(counts) != len(values):
            raise damaged(where, "a count for each value", f"{len(counts)} of {len(values)}")
        if any(type(count) is not int or count < 1 for count in counts):
            raise damaged(where, "counts of at least 1", f"{counts!r:.60}")
        tally = cls(found["limit"], numbers=found["numbers"])
        tally._add(next(iter(types), None), zip(values, counts, strict=True))
        return tally

    def _add(self, of: type | None, found: Iterable[tuple[Any, int]]) -> None:
        """Add counts of texts or of whole numbers."""
        if of is not None and self._type not in (None, of):
            message = "counts: expected texts in all rows, or whole numbers in all, received both"
            raise SchemaError(message)
        self._type = self._type or of
        for value, count in found:
            self.counts[value] = self.counts.get(value, 0) + count
        if len(self.counts) > self.limit:
            message = f"counts: expected at most {self.limit} different values, received more"
            hint = "is it the right column? Shorten or clean its texts first, or give the classes or words that count"
            raise DataError(message, hint=hint)


def is_list(arrow_type: Any) -> bool:
    """Whether a column holds lists."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(of_kind(arrow_type) for of_kind in lists)


def is_text(arrow_type: Any) -> bool:
    """Whether a column holds texts or lists of texts."""
    if is_list(arrow_type):
        arrow_type = arrow_type.value_type
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    return bool(pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type))


def flat_texts(column: Any, where: str) -> Any:
    """All texts of a column, those of lists one list after another.

    Args:
        column: An Arrow array, n rows.
        where: For messages.

    Raises:
        SchemaError: It holds no texts or lists of texts.
    """
    arrow_type = getattr(column, "type", None)
    if arrow_type is None or not is_text(arrow_type):
        received = type(column).__name__ if arrow_type is None else arrow_type
        message = f"{where}: expected a column of texts, or of lists of texts, received {received}"
        raise SchemaError(message, hint="cast the column to string, or to array<string>, in Spark")
    texts = column.flatten() if is_list(arrow_type) else column
    return texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts


def looked_up(column: Any, known: Mapping[str, int], other: int | None, where: str) -> Any:
    """The ids of a column's texts.

    Args:
        column: An Arrow array of texts or lists of texts, n rows.
        known: By text.
        other: The id of any other text; None to make it null.
        where: For messages.

    Returns:
        n int64, or large lists of int64; null where a text or a list is.

    Raises:
        SchemaError: The column holds no texts or lists of texts.
    """
    texts = flat_texts(column, where).dictionary_encode()  # each different text is looked up once
    of_texts = [known.get(text, other) for text in texts.dictionary.to_pylist()]
    ids = pa.array(of_texts, pa.int64()).take(texts.indices)
    return nested(ids, column) if is_list(column.type) else ids


def nested(flat: Any, like: Any) -> Any:
    """Large lists of what `like.flatten()` became.

    Args:
        flat: As many elements as are in the lists.
        like: An Arrow array of lists, n rows.

    Returns:
        n lists, null where those of `like` are.
    """
    lengths = pc.list_value_length(like).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    return pa.LargeListArray.from_arrays(offsets, flat, mask=like.is_null())
