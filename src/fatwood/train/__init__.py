"""One worker's life: strategies, the loop, and what it counts. Runs without Spark."""

from fatwood.train.job import LossFunction, OptimizerFactory, TrainingJob
from fatwood.train.packing import pack, unpack
from fatwood.train.replica import EncodingCallback, ProgressCallback, Replica
from fatwood.train.stats import EpochRecord, FitStats, History, WorkerStats
from fatwood.train.step import Forward, forward, forward_and_loss, user_code
from fatwood.train.strategies import AllReduce, GradientSharing, ParameterAveraging
from fatwood.train.strategy import Strategy

__all__ = [
    "AllReduce",
    "EncodingCallback",
    "EpochRecord",
    "FitStats",
    "Forward",
    "GradientSharing",
    "History",
    "LossFunction",
    "OptimizerFactory",
    "ParameterAveraging",
    "ProgressCallback",
    "Replica",
    "Strategy",
    "TrainingJob",
    "WorkerStats",
    "forward",
    "forward_and_loss",
    "pack",
    "unpack",
    "user_code",
]
