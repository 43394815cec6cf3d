"""Callbacks for the trackers that people have: TensorBoard and MLflow, each behind an extra of its name."""

from fatwood.callbacks.mlflow import MLflow
from fatwood.callbacks.tensorboard import TensorBoard

__all__ = ["MLflow", "TensorBoard"]
