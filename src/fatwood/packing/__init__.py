"""One archive of a Python environment that starts on machines without Python: what ``fatwood pack`` makes and checks.

::

    environment.tar.gz       gzip members one after another: together one tar, alone what the cache keeps
      manifest.json          versions, platform, and of each part its bytes in the tar with their SHA-256
      bin/pythonX.Y          the interpreter; finds its libraries by $ORIGIN, its own folder
      bin/...                scripts that look for the interpreter beside them
      lib/*.so.*             the shared libraries that the interpreter and the standard library need, but for glibc
      lib/pythonX.Y/...      the standard library, and in site-packages the distributions

Names are sorted, dates, owners and modes are fixed: equal environments give equal bytes. pyspark is not in it, since Spark
puts its own before everything else.
"""

from __future__ import annotations

from fatwood.packing.checking import Checked, check
from fatwood.packing.pack import Packed, pack
from fatwood.packing.part import PackedPart

__all__ = ["Checked", "Packed", "PackedPart", "check", "pack"]
