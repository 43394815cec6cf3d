"""A network with what Spark can do for it: fit, evaluate, predict, score, save, load."""

from __future__ import annotations

from fatwood.model.spark_model import SparkModel
from fatwood.train import Fit

__all__ = ["Fit", "SparkModel"]
