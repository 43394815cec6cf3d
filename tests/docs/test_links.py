"""Links of the pages: files and headings that they point at exist, and addresses of other sites are well-formed."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.docs.pages import PAGES, ROOT, name_of, without_blocks

LINKED = sorted({*PAGES, ROOT / "CHANGELOG.md"})
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]*(?:\([^)\s]*\)[^)\s]*)*)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def anchors_of(text: str) -> set[str]:
    """The names of a page's headings, as GitHub and the site make them."""
    found: dict[str, int] = {}
    names = set()
    for title in HEADING.findall(without_blocks(text)):
        plain = re.sub(r"[`*]|!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def is_well_formed(address: str) -> bool:
    """Whether an address of another site has a scheme, a host with a dot, and nothing that a browser would have to guess."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    fits = re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", host) is not None
    return parts.scheme in ("http", "https") and fits and re.search(r"[\s<>\"{}|\\^`]", address) is None


def wrong_links(page: Path, text: str) -> list[str]:
    """The targets that lead nowhere."""
    wrong = []
    for target in LINK.findall(without_blocks(text)):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            wrong += [] if is_well_formed(target) else [target]
            continue
        name, hash_sign, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.is_relative_to(ROOT) or not file.exists():
            wrong.append(target)
        elif hash_sign:
            other = text if file == page else file.read_text(encoding="utf-8")
            wrong += [] if anchor in anchors_of(other) else [target]
    return wrong


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert wrong_links(page, page.read_text(encoding="utf-8")) == []


def test_links_that_lead_nowhere_are_seen() -> None:
    text = "# Top\n\n## `fit`: a b\n\n## Top\n\n[a](#fit-a-b) [b](#top-1) [c](#top-2) [d](docs/training.md#nowhere) [e](docs/x.md) "
    text += "[f](docs/training.md#validation) [g](https://example) [h](https://example.org/a_(b)) [i](htp://a.b) ![j](../x.png)"
    wrong = ["#top-2", "docs/training.md#nowhere", "docs/x.md", "https://example", "htp://a.b", "../x.png"]
    assert wrong_links(ROOT / "README.md", text) == wrong
