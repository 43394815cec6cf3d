"""Spark ML: a network as an estimator of ``pyspark.ml``, for pipelines, grids of parameters, and Spark ML's own files."""

from __future__ import annotations

from fatwood.ml.estimator import TorchEstimator
from fatwood.ml.model import TorchModel

__all__ = ["TorchEstimator", "TorchModel"]

# Saved stages name their class by its module: that is this one, wherever the class is written.
for _stage in (TorchEstimator, TorchModel):
    _stage.__module__ = __name__
del _stage
