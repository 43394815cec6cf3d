"""Elements of HTML whose text is always escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Markup", "element", "raw", "table"]


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def raw(html: str) -> Markup:
    """HTML as it is."""
    return Markup(html)


def element(name: str, *children: str | None, klass: str | None = None, **attributes: str) -> Markup:
    """An element with its children; None is nothing, and what is no `Markup` is text.

    Args:
        name: Of the element.
        children: In order.
        klass: Its class.
        attributes: Others; an underscore stands for a hyphen.
    """
    if klass is not None:
        attributes["class"] = klass
    inside = "".join(
        child if isinstance(child, Markup) else escape(child) for child in children if child is not None
    )
    shown = "".join(f' {key.replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{shown}>{inside}</{name}>")


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: Sequence[int] = (0,)
) -> Markup:
    """A table that scrolls by itself where it is too wide.

    Args:
        caption: Read to those who do not see it.
        head: A name for each column.
        rows: A text or `Markup` for each column; whole cells (``td``) stay as they are.
        text_columns: Those that are set to the left.
    """
    kinds = ["text" if i in text_columns else "number" for i in range(len(head))]
    top = [element("th", name, scope="col", klass=kind) for name, kind in zip(head, kinds, strict=True)]
    lines = [
        element(
            "tr",
            *(
                cell if _is_cell(cell) else element("td", cell, klass=kind)
                for cell, kind in zip(row, kinds, strict=True)
            ),
        )
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *top)),
        element("tbody", *lines),
    )
    return element("div", whole, klass="scroll", tabindex="0", role="region", aria_label=caption)


def _is_cell(cell: str) -> bool:
    return isinstance(cell, Markup) and cell.startswith("<td")
