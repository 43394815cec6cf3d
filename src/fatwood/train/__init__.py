"""One worker's life: strategies, the loop, and what it counts. Runs without Spark."""

from fatwood.train.job import LossFunction, OptimizerFactory, TrainingJob
from fatwood.train.ledger import Ledger
from fatwood.train.order import Rendezvous, WorkOrder
from fatwood.train.packing import pack, unpack
from fatwood.train.recorder import RunRecorder
from fatwood.train.records import EpochRecord, History, StepRecord, ValidationRecord
from fatwood.train.replica import EncodingCallback, ProgressCallback, Replica
from fatwood.train.stats import FitStats, Incident, WorkerStats
from fatwood.train.step import Forward, forward, forward_and_loss, user_code
from fatwood.train.strategies import AllReduce, GradientSharing, ParameterAveraging
from fatwood.train.strategy import Strategy
from fatwood.train.worker import current_rank, join_job, run_member

__all__ = [
    "AllReduce",
    "EncodingCallback",
    "EpochRecord",
    "FitStats",
    "Forward",
    "GradientSharing",
    "History",
    "Incident",
    "Ledger",
    "LossFunction",
    "OptimizerFactory",
    "ParameterAveraging",
    "ProgressCallback",
    "Rendezvous",
    "Replica",
    "RunRecorder",
    "StepRecord",
    "Strategy",
    "TrainingJob",
    "ValidationRecord",
    "WorkOrder",
    "WorkerStats",
    "current_rank",
    "forward",
    "forward_and_loss",
    "join_job",
    "pack",
    "run_member",
    "unpack",
    "user_code",
]
