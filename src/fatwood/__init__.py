"""Train PyTorch models on the Apache Spark cluster you already have.

The public names of the package; :mod:`fatwood.errors` has the exceptions, :mod:`fatwood.testing` what tests can use.
"""

from fatwood import errors
from fatwood.codec import AdaptiveThreshold, FixedThreshold, ResidualClipping
from fatwood.evaluation import Classification, Loss
from fatwood.model import Fit, SparkModel
from fatwood.train import (
    AllReduce,
    EpochRecord,
    FitStats,
    GradientSharing,
    History,
    ParameterAveraging,
    WorkerStats,
)

__version__ = "0.1.0"

__all__ = [
    "AdaptiveThreshold",
    "AllReduce",
    "Classification",
    "EpochRecord",
    "Fit",
    "FitStats",
    "FixedThreshold",
    "GradientSharing",
    "History",
    "Loss",
    "ParameterAveraging",
    "ResidualClipping",
    "SparkModel",
    "WorkerStats",
    "__version__",
    "errors",
]
