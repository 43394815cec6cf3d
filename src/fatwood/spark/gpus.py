"""GPUs as Spark gives them to tasks, and what the driver can know of them before a job.

Spark counts the GPUs of a machine with a discovery script, gives each task the addresses that its resource profile asks for
(``spark.task.resource.gpu.amount``, also a fraction: then several tasks have the same address), and the task finds them in its
context.
"""

from __future__ import annotations

from typing import Any, Final

import pyspark
import torch
from pyspark import TaskContext
from pyspark.sql import SparkSession

from fatwood.errors import OptionError
from fatwood.spark.connect import is_connect
from fatwood.train.device import DeviceOrder, checked_device

__all__ = ["device_order", "require_profile", "task_gpus"]

_GPU: Final = "gpu"
_EXECUTORS = "spark.executor.resource.gpu.amount"
_TASKS = "spark.task.resource.gpu.amount"
_PROFILE_HINT: Final = "start the session with the resources instead: spark.executor.resource.gpu.amount, spark.task.resource.gpu.amount"


def task_gpus() -> tuple[str, ...]:
    """The addresses of the GPUs that Spark gave this task; none outside of one."""
    context = TaskContext.get()
    found = {} if context is None else context.resources()
    return tuple(found[_GPU].addresses) if _GPU in found else ()


def device_order(spark: SparkSession, device: object, profile: Any = None) -> DeviceOrder:
    """What tasks are told of where they compute.

    Args:
        spark: Of either kind.
        device: What the user asked for.
        profile: Of the stage, in place of the session's resources.

    Raises:
        OptionError: It is unknown; or a GPU, and it is known that tasks will find none.
    """
    asked = checked_device(device)
    executors, tasks = _amount(spark, _EXECUTORS), _amount(spark, _TASKS)
    if profile is not None:
        executors, tasks = 1.0, 1.0 if _GPU in profile.taskResources else 0.0
    if asked == "cuda":
        if executors and not tasks:
            text = "device: expected tasks that ask Spark for a GPU, as executors have some, received "
            text += (
                f"no {_TASKS}"
                if profile is None
                else f"a profile of tasks with {sorted(profile.taskResources)}"
            )
            hint = f"set {_TASKS} to 1, or to a fraction where tasks are to share a GPU"
            raise OptionError(
                text, hint=hint if profile is None else "TaskResourceRequests().resource('gpu', 1)"
            )
        if not is_connect(spark) and _is_local(spark):
            _require_here(str(spark.sparkContext.master))
    return DeviceOrder(asked=asked, scheduled=executors > 0)


def require_profile(spark: SparkSession, profile: Any, workers: int | None) -> None:
    """Check that a stage of this session can have resources of its own.

    Args:
        spark: Of either kind.
        profile: A ``pyspark.resource.ResourceProfile``.
        workers: What the user asked for.

    Raises:
        OptionError: It is no profile, Spark or the cluster cannot, or the number of workers is not given.
    """
    from pyspark.resource import ResourceProfile

    if not isinstance(profile, ResourceProfile):
        text = f"profile: expected a pyspark.resource.ResourceProfile, received {profile!r}"
        raise OptionError(text, hint="ResourceProfileBuilder().require(...).build")
    if int(pyspark.__version__.split(".")[0]) < 4:
        text = f"profile: expected PySpark 4 or later, received {pyspark.__version__}"
        raise OptionError(text, hint=_PROFILE_HINT)
    if is_connect(spark):
        text = "profile: expected None in Spark Connect, received a profile"
        raise OptionError(text, hint=_PROFILE_HINT)
    if workers is None:
        text = "workers: expected a number beside profile=, whose executors are started for this fit, received None"
        raise OptionError(text)
    java: Any = spark.sparkContext._jsc
    try:
        java.sc().resourceProfileManager().isSupported(profile._java_resource_profile)
    except Exception as error:
        reason = str(getattr(error, "java_exception", error)).partition("\n")[0]
        text = f"profile: expected a cluster that can give a stage resources of its own, received {spark.sparkContext.master}: {reason}"
        raise OptionError(
            text,
            hint=f"use dynamic allocation on YARN, Kubernetes or a standalone cluster; or {_PROFILE_HINT}",
        ) from None


def _amount(spark: SparkSession, name: str) -> float:
    return float(spark.conf.get(name, None) or 0)


def _is_local(spark: SparkSession) -> bool:
    master = spark.sparkContext.master
    return master == "local" or str(master).startswith("local[")


def _require_here(master: str) -> None:
    """In local mode tasks find what this process would."""
    if torch.version.cuda is None and torch.version.hip is None:
        received, hint = (
            f"PyTorch {torch.__version__}, built for the CPU",
            "install a build of PyTorch for CUDA",
        )
    elif not torch.cuda.device_count():
        received, hint = "a machine where PyTorch sees none", "look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    else:
        return
    text = f"device: expected a GPU for the tasks of {master}, received {received}"
    raise OptionError(text, hint=f"{hint}; or pass device='cpu' or 'auto'")
