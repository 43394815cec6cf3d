"""The pages of the documentation and their fenced blocks, as the tests read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "DOCS",
    "PAGES",
    "ROOT",
    "Block",
    "blocks_of",
    "commands_of",
    "name_of",
    "run_page",
    "without_blocks",
]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    language: str
    """What stands behind the fence, ``python`` or ``python notest`` for example."""
    text: str
    line: int
    """Of the block's first line."""

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{name_of(self.page)}:{self.line}"

    def compiled(self, text: str | None = None) -> Any:
        """Code whose tracebacks have the page's lines."""
        return compile("\n" * (self.line - 1) + (text or self.text), str(self.page), "exec")


def name_of(page: Path) -> str:
    """A page's path below the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path, language: str | None = None) -> list[Block]:
    """A page's blocks in their order, of one language or of all."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, m[1].strip(), m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def commands_of(block: Block) -> list[str]:
    """What follows the prompts of a console block, each on one line."""
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")]


def without_blocks(text: str) -> str:
    """The text outside of fenced blocks; the lines keep their numbers."""
    return FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def run_page(page: Path, names: dict[str, Any], replaced: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a page's Python blocks in their order, as one script.

    Args:
        page: The page.
        names: What the script finds there, such as ``spark``; filled with what it defines.
        replaced: Texts of the blocks to be replaced, each of which has to occur.
    """
    names.setdefault("__name__", "__main__")
    missing = set(replaced or {})
    for block in blocks_of(page, "python"):
        text = block.text
        for old, new in (replaced or {}).items():
            missing -= {old} if old in text else set()
            text = text.replace(old, new)
        exec(block.compiled(text), names)
    assert not missing
    return names
