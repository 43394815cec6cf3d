"""Train PyTorch models on the Apache Spark cluster you already have.

The public names of the package; :mod:`fatwood.errors` has the exceptions, :mod:`fatwood.testing` what tests can use.
A name is imported when it is first used, so that the command line answers without waiting for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fatwood import errors
    from fatwood.codec import (
        AdaptiveThreshold,
        DensityWarmup,
        EncodingRecord,
        FixedThreshold,
        ResidualClipping,
        TargetSparsityThreshold,
    )
    from fatwood.data import Batch
    from fatwood.data.inputs import DecodedColumn, DenseColumn, ImageColumn, SequenceColumn
    from fatwood.data.preprocessing import Chain, ImageScale, MinMax, OneHot, Standardize, Vocabulary
    from fatwood.evaluation import Classification, Loss
    from fatwood.files import Files, Parquet
    from fatwood.model import SparkModel
    from fatwood.planning import Plan, plan
    from fatwood.snapshots import Checkpoints, latest_checkpoint
    from fatwood.train import (
        AllReduce,
        Callback,
        DiLoCo,
        EarlyStopping,
        EpochRecord,
        Fit,
        FitStats,
        GradientSharing,
        History,
        Incident,
        LookAhead,
        Losses,
        ParameterAveraging,
        WorkerCallback,
        WorkerStats,
    )

__version__ = "0.1.0"

__all__ = [
    "AdaptiveThreshold",
    "AllReduce",
    "Batch",
    "Callback",
    "Chain",
    "Checkpoints",
    "Classification",
    "DecodedColumn",
    "DenseColumn",
    "DensityWarmup",
    "DiLoCo",
    "EarlyStopping",
    "EncodingRecord",
    "EpochRecord",
    "Files",
    "Fit",
    "FitStats",
    "FixedThreshold",
    "GradientSharing",
    "History",
    "ImageColumn",
    "ImageScale",
    "Incident",
    "LookAhead",
    "Loss",
    "Losses",
    "MinMax",
    "OneHot",
    "ParameterAveraging",
    "Parquet",
    "Plan",
    "ResidualClipping",
    "SequenceColumn",
    "SparkModel",
    "Standardize",
    "TargetSparsityThreshold",
    "Vocabulary",
    "WorkerCallback",
    "WorkerStats",
    "__version__",
    "errors",
    "latest_checkpoint",
    "plan",
]

_ROOMS = {
    "codec": (
        "AdaptiveThreshold",
        "DensityWarmup",
        "EncodingRecord",
        "FixedThreshold",
        "ResidualClipping",
        "TargetSparsityThreshold",
    ),
    "data": ("Batch",),
    "data.inputs": (
        "DecodedColumn",
        "DenseColumn",
        "ImageColumn",
        "SequenceColumn",
    ),
    "data.preprocessing": (
        "Chain",
        "ImageScale",
        "MinMax",
        "OneHot",
        "Standardize",
        "Vocabulary",
    ),
    "files": ("Files", "Parquet"),
    "evaluation": ("Classification", "Loss"),
    "model": ("SparkModel",),
    "planning": ("Plan", "plan"),
    "snapshots": ("Checkpoints", "latest_checkpoint"),
    "train": (
        "AllReduce",
        "Callback",
        "DiLoCo",
        "EarlyStopping",
        "EpochRecord",
        "Fit",
        "FitStats",
        "GradientSharing",
        "History",
        "Incident",
        "LookAhead",
        "Losses",
        "ParameterAveraging",
        "WorkerCallback",
        "WorkerStats",
    ),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"fatwood.{room}"), name)
    if name == "errors":
        return import_module("fatwood.errors")
    text = f"module 'fatwood' has no attribute {name!r}"
    raise AttributeError(text)


def __dir__() -> list[str]:
    return __all__
