"""From options to the exact ``spark-submit`` line: `Submission` says what is wanted, `command_of` what is run."""

from __future__ import annotations

from fatwood.submission.cluster import Kind, cluster_of
from fatwood.submission.command import Command, command_of
from fatwood.submission.memory import DriverMemory, ExecutorMemory, parse_mib
from fatwood.submission.options import Submission, pairs
from fatwood.submission.running import find_spark_submit, run
from fatwood.submission.settings import Setting

__all__ = [
    "Command",
    "DriverMemory",
    "ExecutorMemory",
    "Kind",
    "Setting",
    "Submission",
    "cluster_of",
    "command_of",
    "find_spark_submit",
    "pairs",
    "parse_mib",
    "run",
]
