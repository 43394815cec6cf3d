"""The least memory that a worker's training takes, known before its first step.

It is a bound from below: tensors that are there at the same time, and PyTorch. Activations, minibatches and what libraries
allocate come on top; ``fatwood plan`` measures them. So who has less than this cannot train, and who has more may yet fail.

In vectors as long as the parameters, W workers::

    held        the pickled network                                1
                network, gradients                                 2
                what the optimizer keeps                           s, by its class; 0 for one that is not known
                agreed parameters, where updates are shared        1
                the vector that is shared                          v x (1 + staleness); v = 1, and s where optimizers are averaged;
                                                                   0 where a sparse message is made of it at once
                residual of a sparse message                       v
                outer velocity; looking ahead                      1; 2
    beside it   a dense mean while it is made: sent, received      v x (2 + 2 (W - 1) / W)
            or  the state that is sent at the end, while it is     3 x (s, residual and outer velocity; at least the parameters)
                packed: copied, as bytes, as one piece
"""

from __future__ import annotations

import torch

from fatwood.codec import trainable_parameters
from fatwood.train.job import TrainingJob
from fatwood.train.recipe import made_optimizer

__all__ = ["PYTORCH_BYTES", "least_worker_bytes"]

PYTORCH_BYTES = 180 << 20
"""Of a process that has imported PyTorch and Fatwood; 285 MB were measured, and other builds may take less."""
_TWO = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax)
_ONE = (torch.optim.Adagrad, torch.optim.RMSprop)


def least_worker_bytes(job: TrainingJob, workers: int) -> int:
    """Bytes that a Python worker needs at least, on the CPU.

    Args:
        job: What it trains.
        workers: That train together.
    """
    size = sum(parameter.numel() for _, parameter in trainable_parameters(job.network))
    kept = _kept(job)
    strategy = job.strategy
    updates = strategy.shares == "updates"
    shared = 1 + (kept if strategy.average_optimizer and updates else 0)
    reducer = strategy.reducer(1)
    residual = shared * (reducer.residual is not None)
    at_once = reducer.reads_once and updates and shared == 1 and not strategy.staleness
    velocity = int(updates and strategy.outer(1) is not None)
    held = 3 + kept + updates + residual + velocity + (0 if at_once else shared * (1 + strategy.staleness))
    held += 2 * (strategy.ahead is not None)
    mean = 0.0 if residual else shared * (2 + 2 * (workers - 1) / workers)
    packed = 3 * max(1, kept + residual + velocity)
    return PYTORCH_BYTES + int(4 * size * (held + max(mean, packed)))


def _kept(job: TrainingJob) -> int:
    """Vectors that the optimizer keeps; of several kinds of groups the least."""
    made = made_optimizer(job.recipe.optimizer, job.network)
    if isinstance(made, _TWO):
        return 2
    if isinstance(made, _ONE):
        return 1
    if isinstance(made, torch.optim.SGD):
        return int(all(group["momentum"] for group in made.param_groups))
    return 0
