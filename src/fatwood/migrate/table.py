"""The table of a network's layers, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fatwood.migrate.configuration import kind_of

__all__ = ["LayerRow", "table"]

_HEAD = ("layer", "class in the file", "module", "parameters", "shapes", "note")


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer of the table."""

    name: str
    source: str
    """The class of the original, as the file has it."""
    module: str
    """The class of the module."""
    parameters: int
    """How many numbers it has, statistics included."""
    shapes: Mapping[str, tuple[int, ...]]
    """By the original's name of the parameter, as the original has them."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "name": self.name,
            "class": self.source,
            "module": self.module,
            "parameters": self.parameters,
            "shapes": {key: list(shape) for key, shape in self.shapes.items()},
            "notes": list(self.notes),
        }


def table(rows: Sequence[LayerRow], notes: Sequence[str] = ()) -> str:
    """Rows under each other, what they have in all, and notes below.

    Example:
        >>> source = "org.deeplearning4j.nn.conf.layers.OutputLayer"
        >>> print(table([LayerRow(name="out", source=source, module="Sequential", parameters=8, shapes={"W": (3, 2)})]))
        layer  class in the file  module      parameters  shapes    note
        out    OutputLayer        Sequential           8  W (3, 2)
        total                                          8
    """
    cells = [_HEAD]
    for row in rows:
        shapes = " ".join(f"{key} {shape}" for key, shape in row.shapes.items())
        source = _clean(kind_of(row.source))
        cells.append(
            (_clean(row.name), source, row.module, f"{row.parameters:,}", shapes, "; ".join(row.notes))
        )
    cells.append(("total", "", "", f"{sum(row.parameters for row in rows):,}", "", ""))
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEAD))]
    lines = []
    for line in cells:
        padded = [
            text.rjust(w) if i == 3 else text.ljust(w)
            for i, (text, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines += [f"note: {_clean(note)}" for note in notes]
    return "\n".join(lines)


def _clean(text: str) -> str:
    """A stranger's text, of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
