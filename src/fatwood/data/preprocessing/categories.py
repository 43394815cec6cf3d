"""Texts and whole numbers that name things: `OneHot`, `Vocabulary`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from fatwood.data.fields import Dtype
from fatwood.data.preprocessing.counts import Counts, looked_up
from fatwood.data.preprocessing.numbers import damaged, entries
from fatwood.data.preprocessing.transform import Tally, Transform, named, own_shape, zero_padding
from fatwood.errors import DataError, OptionError, SchemaError

__all__ = ["OneHot", "Vocabulary"]

_MAX_CLASSES = 1 << 16
_MAX_WORDS = 1 << 21  # different ones that are counted; some 300 MB with their counts


@named("one_hot")
@dataclass(frozen=True)
class OneHot(Transform):
    """Whole numbers or texts as a row of zeros with a one, float32: ``(B,)`` becomes ``(B, k)``.

    Rows of one number, ``()`` or ``(1,)``, become ``(k,)``; with any other shape k is one more dimension at the end. A value
    that is none of the classes becomes zeros alone, as with ``handle_unknown="ignore"`` in scikit-learn.

    Args:
        classes: All texts, or all whole numbers, in the order of the columns, such as ``range(10)``; None to find them in
            the rows, at most 65 536, sorted.

    Example:
        >>> import pyarrow as pa
        >>> one_hot = OneHot(["cat", "dog"])
        >>> one_hot.apply(torch.tensor(one_hot.encode(pa.array(["dog", "cow"])).to_pylist()))
        tensor([[0., 1.],
                [0., 0.]])
    """

    takes_text: ClassVar[bool] = True

    classes: Sequence[str] | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.classes is None:
            return
        given = self.classes
        classes: tuple[Any, ...] = (
            tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
        )
        types = {type(value) for value in classes}
        if types not in ({str}, {int}) or len(set(classes)) < len(classes) or len(classes) > _MAX_CLASSES:
            message = f"OneHot: classes: expected different texts or whole numbers, 1 to {_MAX_CLASSES}, received {given!r:.80}"
            raise OptionError(message, hint="OneHot(['cat', 'dog']) or OneHot(range(10))")
        if types == {int} and not all(-(2**63) <= value < 2**63 for value in classes):
            message = f"OneHot: classes: expected numbers of 64 bits, received {given!r:.80}"
            raise OptionError(message)
        if types == {str}:
            _require_texts(classes, "OneHot: classes")
        object.__setattr__(self, "classes", classes)

    @property
    def fitted(self) -> bool:
        """Whether the classes are known."""
        return self.classes is not None

    def tally(self) -> Counts | None:
        """See `Transform.tally`."""
        return None if self.fitted else Counts(_MAX_CLASSES, numbers=True)

    def fitted_by(self, tally: Tally) -> OneHot:
        """See `Transform.fitted_by`."""
        if not isinstance(tally, Counts):
            message = f"OneHot: expected its own tally, received one of {tally.kind}"
            raise OptionError(message)
        if not tally.counts:
            raise _nothing_counted()
        return replace(self, classes=tuple(sorted(tally.counts)))

    @property
    def encodes(self) -> bool:
        """Whether the classes are texts."""
        return self.classes is not None and isinstance(self.classes[0], str)

    def encode(self, column: Any) -> Any:
        """See `Transform.encode`; an unknown text becomes -1."""
        if self.classes is None:
            raise self._unfitted()
        if not self.encodes:
            return column
        return looked_up(column, self._known, -1, self.name)

    def apply(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See `Transform.apply`; the values are whole numbers, or what `encode` made of texts."""
        own = own_shape(values, mask)
        places = self._places(values)
        result = torch.zeros(*places.shape, len(self._classes))
        known = (places >= 0).unsqueeze(-1).to(torch.float32)
        result.scatter_(-1, places.clamp(min=0).unsqueeze(-1), known)
        return zero_padding(result.squeeze(-2) if own == (1,) else result, mask)

    def _places(self, values: torch.Tensor) -> torch.Tensor:
        """Which class each value is, -1 for none."""
        if values.is_floating_point():
            message = f"OneHot: expected whole numbers, received {values.dtype}"
            raise SchemaError(message, hint="cast the column to bigint in Spark")
        numbers = values.to(torch.int64)
        if self.encodes:
            return numbers
        ordered, order = self._ordered
        at = torch.searchsorted(ordered, numbers).clamp(max=len(ordered) - 1)
        return torch.where(ordered[at] == numbers, order[at], -1)

    @cached_property
    def _known(self) -> dict[str, int]:
        """The place of each class, where classes are texts."""
        return {text: place for place, text in enumerate(self._classes)}

    @property
    def _classes(self) -> tuple[Any, ...]:
        if not isinstance(self.classes, tuple):
            raise self._unfitted()
        return self.classes

    @cached_property
    def _ordered(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The classes, sorted, and which each of them is."""
        ordered, order = torch.tensor(self._classes, dtype=torch.int64).sort()
        return ordered, order

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """See `Transform.output_shape`."""
        return (len(self._classes),) if shape in ((), (1,)) else (*shape, len(self._classes))

    def state(self) -> dict[str, Any]:
        """See `Transform.state`."""
        return {"classes": None if self.classes is None else list(self.classes)}

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> OneHot:
        """See `Transform.from_state`."""
        return cls(entries(state, where, {"classes": (list, type(None))})["classes"])


@named("vocabulary")
@dataclass(frozen=True)
class Vocabulary(Transform):
    """Texts, or lists of them, as int64 ids for an embedding; the most frequent first, equally frequent ones in text order.

    Id 0 is the padding's, id 1 that of any text which is not a word of the vocabulary; words follow. Texts are compared
    character by character: lower-case and normalise them in Spark where that is wanted.

    Args:
        size: The most ids there may be, so that ``nn.Embedding(size, ...)`` has a row for each; None for no limit. There are
            fewer where there are fewer words: see `ids`.
        min_count: How often a text must occur to become a word. At least 1.
        unknown: False leaves out the id for other texts; a row with one is then a bad row. For labels.
        padding: False leaves out the id for padding; for labels, or where nothing is padded.
        words: In the order of their ids; None to find them in the rows, which may have some two million different texts.

    Example:
        >>> import pyarrow as pa
        >>> vocabulary = Vocabulary()
        >>> tally = vocabulary.tally()
        >>> tally.update(pa.array([["to", "be", "or", "not", "to", "be"]]))
        >>> vocabulary = vocabulary.fitted_by(tally)
        >>> vocabulary.words, vocabulary.ids
        (('be', 'to', 'not', 'or'), 6)
        >>> vocabulary.encode(pa.array([["to", "see"]])).to_pylist()
        [[3, 1]]
    """

    takes_text: ClassVar[bool] = True
    takes_numbers: ClassVar[bool] = False

    size: int | None = None
    min_count: int = 1
    unknown: bool = field(default=True, kw_only=True)
    padding: bool = field(default=True, kw_only=True)
    words: tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("unknown", "padding"):
            if type(getattr(self, name)) is not bool:
                message = f"Vocabulary: {name}: expected True or False, received {getattr(self, name)!r}"
                raise OptionError(message)
        if self.size is not None and (type(self.size) is not int or self.size <= self._first):
            message = f"Vocabulary: size: expected a whole number above {self._first}, received {self.size!r}"
            raise OptionError(message, hint="the ids of padding and unknown texts are counted, too")
        if type(self.min_count) is not int or self.min_count < 1:
            message = (
                f"Vocabulary: min_count: expected a whole number of at least 1, received {self.min_count!r}"
            )
            raise OptionError(message)
        if self.words is None:
            return
        words = () if isinstance(self.words, str) else tuple(self.words)
        if not words or any(type(word) is not str for word in words) or len(set(words)) < len(words):
            message = (
                f"Vocabulary: words: expected different texts, at least one, received {self.words!r:.80}"
            )
            raise OptionError(message)
        if self.size is not None and self._first + len(words) > self.size:
            message = f"Vocabulary: words: expected at most {self.size - self._first} for size={self.size}, received {len(words)}"
            raise OptionError(message)
        _require_texts(words, "Vocabulary: words")
        object.__setattr__(self, "words", words)

    @property
    def _first(self) -> int:
        """The id of the first word."""
        return int(self.padding) + int(self.unknown)

    @property
    def ids(self) -> int:
        """How many ids there are, those of padding and unknown texts included.

        Raises:
            OptionError: It is not fitted.
        """
        if self.words is None:
            raise self._unfitted()
        return self._first + len(self.words)

    @property
    def fitted(self) -> bool:
        """Whether the words are known."""
        return self.words is not None

    def tally(self) -> Counts | None:
        """See `Transform.tally`."""
        return None if self.fitted else Counts(_MAX_WORDS, numbers=False)

    def fitted_by(self, tally: Tally) -> Vocabulary:
        """See `Transform.fitted_by`.

        Raises:
            DataError: No text occurs often enough.
            OptionError: It is another transform's tally.
        """
        if not isinstance(tally, Counts) or tally.numbers:
            message = f"Vocabulary: expected its own tally, received one of {tally.kind}"
            raise OptionError(message)
        if not tally.counts:
            raise _nothing_counted()
        frequent = [(-count, word) for word, count in tally.counts.items() if count >= self.min_count]
        if not frequent:
            message = f"Vocabulary: expected a text that occurs {self.min_count} times, received {max(tally.counts.values())} at most"
            raise DataError(message, hint="pass a smaller min_count")
        room = None if self.size is None else self.size - self._first
        return replace(self, words=tuple(word for _, word in sorted(frequent)[:room]))

    @property
    def encodes(self) -> bool:
        """Always: the column holds texts."""
        return True

    def encode(self, column: Any) -> Any:
        """See `Transform.encode`."""
        if self.words is None:
            raise self._unfitted()
        other = int(self.padding) if self.unknown else None
        return looked_up(column, self._known, other, self.name)

    def complaint(self, value: Any) -> str | None:
        """See `Transform.complaint`."""
        if self.words is None or self.unknown:
            return None
        texts = [value] if isinstance(value, str) else (value or [])
        strange = next((text for text in texts if text is not None and text not in self._known), None)
        if strange is None:
            return None
        return f"expected one of the {len(self.words)} words of the vocabulary, received {strange!r:.80}"

    def apply(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See `Transform.apply`; the ids as they are, and zero where a step is padded."""
        own_shape(values, mask)
        if self.words is None:
            raise self._unfitted()
        return values

    def output_dtype(self, dtype: Dtype) -> Dtype:
        """See `Transform.output_dtype`."""
        del dtype
        return "int64"

    @cached_property
    def _known(self) -> dict[str, int]:
        """The id of each word."""
        return {word: place for place, word in enumerate(self.words or (), self._first)}

    def state(self) -> dict[str, Any]:
        """See `Transform.state`."""
        return {
            "size": self.size,
            "min_count": self.min_count,
            "unknown": self.unknown,
            "padding": self.padding,
            "words": None if self.words is None else list(self.words),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Vocabulary:
        """See `Transform.from_state`."""
        none = type(None)
        kinds: dict[str, type | tuple[type, ...]]
        kinds = {
            "size": (int, none),
            "min_count": int,
            "unknown": bool,
            "padding": bool,
            "words": (list, none),
        }
        found = dict(entries(state, where, kinds))
        if found["words"] is not None:
            if any(type(word) is not str for word in found["words"]):
                raise damaged(where, "texts as words", f"{found['words']!r:.60}")
            found["words"] = tuple(found["words"])
        return cls(**found)


def _require_texts(texts: Sequence[Any], where: str) -> None:
    """Raise OptionError where one cannot be a text of Spark's."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"{where}: expected texts that UTF-8 can say, received {text!r:.80}"
            raise OptionError(message) from error


def _nothing_counted() -> DataError:
    message = "classes and words: expected at least one row to find them in, received none"
    hint = "look at the filters of the DataFrame, and for rows that were skipped as bad"
    return DataError(message, hint=hint)
