"""Where Fatwood meets Spark; the only folder that imports pyspark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fatwood.spark.caching import persist

__all__ = ["persist"]


def __getattr__(name: str) -> Any:
    """The public function; a worker's process, which imports this package too, does without it."""
    if name in __all__:
        from fatwood.spark import caching

        return getattr(caching, name)
    text = f"module 'fatwood.spark' has no attribute {name!r}"
    raise AttributeError(text)
