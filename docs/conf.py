"""Sphinx's settings of the site; :mod:`build_site` (docs/build_site.py) stages the pages and runs it."""

from __future__ import annotations

import re
from typing import Any

import fatwood

project = "Fatwood"
copyright = "the Fatwood authors"  # noqa: A001  # Sphinx's own word
release = fatwood.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"  # its fonts, styles and scripts are in the site
html_title = f"Fatwood {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}

default_role = "code"  # a name in single backticks is a name
myst_heading_anchors = 4
suppress_warnings = ["ref.python"]  # a type named like a field of ours, such as bytes

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_include_init_with_doc = False

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _without_addresses(*given: Any) -> tuple[str, str] | None:
    """Defaults that are functions would show where they lie in memory."""
    signature, returned = given[-2:]
    return (ADDRESS.sub("", signature), returned) if signature else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _without_addresses)
