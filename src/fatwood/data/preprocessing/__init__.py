"""Preprocessing that belongs to a model: fitted in one pass over the rows, saved with it, applied alike wherever rows are read.

::

    rows -> Tally.update --JSON--> Tally.merge -> Transform.fitted_by        once, before training
    Arrow column -> Transform.encode -> checked -> kept on disk -> Transform.apply -> Batch

Everything that is counted is exact (`exact.py`), so what is fitted depends on the rows alone, and not on how they are cut
into partitions. What is learnt is JSON: nothing is pickled.
"""

from __future__ import annotations

from fatwood.data.preprocessing.categories import OneHot, Vocabulary
from fatwood.data.preprocessing.chain import Chain
from fatwood.data.preprocessing.counts import is_text
from fatwood.data.preprocessing.numbers import Numbers
from fatwood.data.preprocessing.scaling import ImageScale, MinMax, Standardize
from fatwood.data.preprocessing.transform import Tally, Transform

__all__ = [
    "Chain",
    "ImageScale",
    "MinMax",
    "Numbers",
    "OneHot",
    "Standardize",
    "Tally",
    "Transform",
    "Vocabulary",
    "is_text",
]
