"""Spark's daemon of Python workers, with PyTorch imported before it forks them.

Every Python worker is forked from the daemon of its executor. To import PyTorch, Arrow and what a fit needs takes a worker
about 4 s of a core and 250 MB; done here, before the fork, it is done once for all workers of an executor, and they
share the memory: a worker has 57 MB of its own instead of 285. A session uses it with
``spark.python.daemon.module=fatwood.spark.daemon``, which has to be set before the session starts and needs fatwood in
the executors' environment. It changes nothing else: all of fatwood works with Spark's own daemon.
"""

from __future__ import annotations

import gc
import importlib

__all__ = ["main"]

# PyTorch's optimizers import torch._dynamo with their first step, and PySpark's worker imports pandas. None of these leaves a
# thread behind that a worker would miss: those of OpenBLAS and of Arrow's jemalloc are renewed after a fork by their
# libraries. PyTorch's own threads start with the first operation, in a worker.
_NEEDED = ("torch._dynamo", "pandas", "pyarrow.compute", "fatwood.spark.task", "fatwood.spark.inference_task")


def main() -> None:
    """Run the daemon, which ends with its executor."""
    from pyspark import daemon

    for name in _NEEDED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a worker would write to, and so copy, the pages that it shares
    daemon.manager()


if __name__ == "__main__":
    main()
