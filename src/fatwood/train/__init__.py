"""One worker's life: strategies, the loop, and what it counts. Runs without Spark."""

from fatwood.train.callback import Callback, RunInfo, WorkerCallback, WorkerCallbacks, WorkerContext
from fatwood.train.calling import Callbacks, split_callbacks
from fatwood.train.criterion import Criterion, LossFunction, takes_batch
from fatwood.train.fitted import Fit
from fatwood.train.forward import Caller, Key, Keys, keys_of, outputs_of, user_code
from fatwood.train.job import TrainingJob
from fatwood.train.ledger import Ledger
from fatwood.train.lookahead import LookAhead
from fatwood.train.losses import AnyLoss, Losses, losses_of, require_labels
from fatwood.train.objective import Forward, Objective, Target, forward_and_loss
from fatwood.train.options import json_value
from fatwood.train.order import Rendezvous, WorkOrder
from fatwood.train.packing import pack, unpack
from fatwood.train.recipe import OptimizerFactory, Parameters, Precision, Recipe, SchedulerFactory
from fatwood.train.recorder import RunRecorder
from fatwood.train.records import EpochRecord, History, StepRecord, ValidationRecord
from fatwood.train.replica import EncodingCallback, ProgressCallback, Replica
from fatwood.train.scoring import RowLosses
from fatwood.train.stats import FitStats, Incident, WorkerStats
from fatwood.train.stopping import EarlyStopping
from fatwood.train.strategies import AllReduce, DiLoCo, GradientSharing, ParameterAveraging
from fatwood.train.strategy import Strategy
from fatwood.train.telling import Record, record_from_json, record_to_json
from fatwood.train.timesource import checked_time_source
from fatwood.train.trace import Trace, read_trace
from fatwood.train.trimming import Trimmer
from fatwood.train.worker import current_rank, join_job, run_member

__all__ = [
    "AllReduce",
    "AnyLoss",
    "Callback",
    "Callbacks",
    "Caller",
    "Criterion",
    "DiLoCo",
    "EarlyStopping",
    "EncodingCallback",
    "EpochRecord",
    "Fit",
    "FitStats",
    "Forward",
    "GradientSharing",
    "History",
    "Incident",
    "Key",
    "Keys",
    "Ledger",
    "LookAhead",
    "LossFunction",
    "Losses",
    "Objective",
    "OptimizerFactory",
    "ParameterAveraging",
    "Parameters",
    "Precision",
    "ProgressCallback",
    "Recipe",
    "Record",
    "Rendezvous",
    "Replica",
    "RowLosses",
    "RunInfo",
    "RunRecorder",
    "SchedulerFactory",
    "StepRecord",
    "Strategy",
    "Target",
    "Trace",
    "TrainingJob",
    "Trimmer",
    "ValidationRecord",
    "WorkOrder",
    "WorkerCallback",
    "WorkerCallbacks",
    "WorkerContext",
    "WorkerStats",
    "checked_time_source",
    "current_rank",
    "forward_and_loss",
    "join_job",
    "json_value",
    "keys_of",
    "losses_of",
    "outputs_of",
    "pack",
    "read_trace",
    "record_from_json",
    "record_to_json",
    "require_labels",
    "run_member",
    "split_callbacks",
    "takes_batch",
    "unpack",
    "user_code",
]
