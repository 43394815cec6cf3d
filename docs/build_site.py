"""The site: stages README, docs/ and the reference in FOLDER/site-pages, and lets Sphinx build FOLDER/site of them.

    python docs/build_site.py [FOLDER]

FOLDER is build/ unless named. The README is the home page; links that lead to files outside of the site become plain text. The reference has a page
for each public package, made of the docstrings. Sphinx's warnings (a link to nowhere, a missing anchor, a docstring that
cannot be read) are errors.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

__all__ = ["PUBLIC", "build", "links", "names_of", "stage"]

ROOT = Path(__file__).parents[1]

PUBLIC: dict[str, tuple[str, ...] | None] = {
    "fatwood": None,
    "fatwood.callbacks": None,
    "fatwood.codec": None,
    "fatwood.data": ("write_shards", "validate_shards"),
    "fatwood.demo": None,
    "fatwood.doctor": ("doctor", "Checkup", "Finding", "Check"),
    "fatwood.errors": None,
    "fatwood.evaluation": None,
    "fatwood.migrate": None,
    "fatwood.ml": None,
    "fatwood.packing": None,
    "fatwood.planning": None,
    "fatwood.spark": None,
    "fatwood.storage": None,
    "fatwood.submission": None,
    "fatwood.testing.faults": None,
    "fatwood.testing.hdfs": None,
    "fatwood.testing.s3": None,
    "fatwood.train": ("Strategy", "RunInfo", "StepRecord", "ValidationRecord", "WorkerContext"),
}
"""The public packages, and those of their names that are for users; None for all of ``__all__``."""

BUILT_IN = "object, tuple, str, int, float, Enum, IntEnum, ReprEnum"
"""Classes whose own functions the reference leaves out."""

INDEX = """
```{toctree}
:hidden:
:caption: Guides

training
choosing
evaluation
stats
callbacks
from-pytorch
from-deeplearning4j
```

```{toctree}
:hidden:
:caption: How to

how-to/README
%(how_to)s
```

```{toctree}
:hidden:
:caption: Background

results
architecture
protocol
%(rest)s
```

```{toctree}
:hidden:
:caption: Reference

reference/index
```
"""


def names_of(package: str) -> list[str]:
    """The names that the reference documents on the package's page; those of `fatwood` are only on its own."""
    module = import_module(package)
    names = list(PUBLIC[package] or module.__all__)
    if package == "fatwood":
        return [name for name in names if name not in ("errors", "__version__")]
    own = import_module("fatwood")
    return [n for n in names if not (n in own.__all__ and getattr(own, n) is getattr(module, n))]


def _directive(package: str, name: str) -> str:
    found = getattr(import_module(package), name)
    if not inspect.isclass(found):
        kind = "function" if callable(found) and inspect.isroutine(found) else "data"
        return f".. auto{kind}:: {package}.{name}\n"
    if issubclass(found, BaseException):
        return f".. autoexception:: {package}.{name}\n   :show-inheritance:\n"
    inherited = f"\n   :inherited-members: {BUILT_IN}" if found.__module__.startswith("fatwood") else ""
    return f".. autoclass:: {package}.{name}\n   :members:{inherited}\n"


def _reference(folder: Path) -> None:
    folder.mkdir()
    for package in PUBLIC:
        names = names_of(package)
        head = f"{package}\n{'=' * len(package)}\n\n.. currentmodule:: {package}\n"
        text = "\n".join([head, *(_directive(package, name) for name in names)])
        (folder / f"{package}.rst").write_text(text, encoding="utf-8")
    pages = "\n".join(f"   {package}" for package in PUBLIC)
    intro = "What is public, by package; made of the docstrings. The commands answer to ``--help``."
    text = f"Reference\n=========\n\n{intro}\n\n.. toctree::\n   :maxdepth: 2\n\n{pages}\n"
    (folder / "index.rst").write_text(text, encoding="utf-8")


def links(text: str, page: Path, folder: Path) -> str:
    """Links of a page that lies in ``folder`` of the site: to files of the site, or plain text where they leave it."""

    def changed(match: re.Match[str]) -> str:
        label, target = match["label"], match["target"]
        if target.startswith(("http://", "https://", "#", "mailto:")):
            return match[0]
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve()
        if file == ROOT / "README.md":
            file = ROOT / "docs" / "index.md"
        elif file.parent == ROOT and file.suffix == ".md":
            file = ROOT / "docs" / file.name.lower()
        elif not file.is_relative_to(ROOT / "docs"):
            return label
        shown = Path(*[".."] * len(folder.parts), file.relative_to(ROOT / "docs")).as_posix()
        return f"{match['bang']}[{label}]({shown}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"(?P<bang>!?)\[(?P<label>[^\]\n]*)\]\((?P<target>[^)\s]+)\)", changed, text)


def stage(folder: Path) -> None:
    """Write the pages of the site below ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    docs = ROOT / "docs"
    shutil.copytree(docs, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in docs.rglob("*.md"):
        inside = page.relative_to(docs)
        (folder / inside).write_text(
            links(page.read_text(encoding="utf-8"), page, inside.parent), encoding="utf-8"
        )
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = links((ROOT / name).read_text(encoding="utf-8"), ROOT / name, Path())
        (folder / name.lower()).write_text(text, encoding="utf-8")
    listed = re.findall(r"\]\(([\w-]+)\.md\)", (docs / "how-to" / "README.md").read_text(encoding="utf-8"))
    how_to = "\n".join(f"how-to/{name}" for name in dict.fromkeys(listed))
    named = set(re.findall(r"^[\w-]+$", INDEX, re.MULTILINE))
    rest = sorted({page.stem for page in docs.glob("*.md")} - named)
    index = INDEX % {"how_to": how_to, "rest": "\n".join([*rest, "contributing", "changelog"])}
    readme = links((ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "README.md", Path())
    (folder / "index.md").write_text(readme + index, encoding="utf-8")
    _reference(folder / "reference")


def build(pages: Path, site: Path) -> int:
    """Stage the pages and build the site; Sphinx's exit status, not 0 where it had to warn."""
    from sphinx.cmd.build import build_main

    stage(pages)
    shutil.rmtree(site, ignore_errors=True)
    trees = pages.with_name(f"{pages.name}-trees")
    strict = ["-q", "-W", "--keep-going", "-b", "html"]
    return build_main([*strict, "-c", str(ROOT / "docs"), "-d", str(trees), str(pages), str(site)])


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build"
    sys.exit(build(folder / "site-pages", folder / "site"))
