"""Fits, minibatches and inference on the device of ``foreign.cpp``, beside those on the CPU; prints which were equal, as JSON.

Called with the compiled library.
"""

from __future__ import annotations

import copy
import json
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fatwood.data import Batch
from fatwood.testing.threads import Outcome, train_in_threads
from fatwood.train import (
    Caller,
    EarlyStopping,
    RowLosses,
    Trimmer,
    moments,
    outputs_of,
    pack,
    unpack,
)
from fatwood.train.device import Place
from fatwood.train.step import Step

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from test_device_replica import LAYOUT, STRATEGIES, job, shards

torch.utils.rename_privateuse1_backend("far")
FAR = torch.device("far", 0)


def install(library: str) -> None:
    """Make the device known."""
    module = types.ModuleType("far")
    vars(module).update(
        _is_in_bad_fork=lambda: False,
        current_device=lambda: 0,
        device_count=lambda: 1,
        is_available=lambda: True,
        is_initialized=lambda: True,
        manual_seed_all=lambda _: None,
    )
    torch._register_device_module("far", module)
    torch.ops.load_library(library)
    # PyTorch's own copies of storages know devices by their names
    moments.copy = types.SimpleNamespace(deepcopy=lambda old: clone(old).to(FAR))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def clone(old: nn.Module) -> nn.Module:
    """On the CPU."""
    new = network()
    new.load_state_dict({name: value.cpu() for name, value in old.state_dict().items()})
    return new


def vector(outcome: Outcome) -> list[float]:
    return torch.cat([p.detach().cpu().reshape(-1) for p in outcome.network.parameters()]).tolist()


def told(outcomes: list[Outcome]) -> Any:
    """Parameters of all, and what was measured on the way."""
    return (
        [vector(outcome) for outcome in outcomes],
        [record.loss for record in outcomes[0].history],
        [record.loss for record in outcomes[0].validations],
    )


def fit(strategy: str, **changes: Any) -> bool:
    found = [
        told(
            train_in_threads(
                job(STRATEGIES[strategy], network=network(), **changes), shards(), LAYOUT, place=place
            )
        )
        for place in (None, Place(device=FAR))
    ]
    return found[0] == found[1]


def going_on() -> bool:
    """From the CPU to the device, and back."""
    strategy, ends = STRATEGIES["sharing, ahead"], []
    places = (None, Place(device=FAR))
    for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
        before = train_in_threads(
            job(strategy, network=network(), epochs=1), shards(), LAYOUT, place=places[first]
        )
        states = {rank: unpack(pack(outcome.state)) for rank, outcome in enumerate(before)}
        more = job(strategy, network=clone(before[0].network), epochs=1, first_epoch=1)
        ends.append(told(train_in_threads(more, shards(), LAYOUT, states=states, place=places[second])))
    return all(end == ends[0] for end in ends)


class Steps(nn.Module):
    """Of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(x * mask[..., None])


class Two(nn.Module):
    """Of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.size = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"kind": self.kind(x), "size": self.size(x)}


def whole(network: nn.Module, batch: Batch) -> torch.Tensor:
    """A loss that is called with the minibatch."""
    losses = network(batch.features).square().mean(1)
    return (losses * batch.weight).sum() / batch.weight.sum()


def step(net: nn.Module, loss: Callable[[], Any], batch: Batch, *, weighted: bool = False) -> bool:
    found = []
    for device in (None, FAR):
        own, criterion = copy.deepcopy(net), loss()
        if device is not None:
            own.to(device)
            if isinstance(criterion, nn.Module):
                criterion.to(device)
        made = Step(own, criterion, "skip", weighted=weighted, device=device)
        trained, measured = made.backward(batch), made.measure(batch)
        found.append((trained, measured, [p.grad.cpu().tolist() for p in own.parameters()]))
    return found[0] == found[1]


def rows(net: nn.Module, loss: Any, batch: Batch) -> bool:
    found = []
    for device in (None, FAR):
        own = copy.deepcopy(net).eval()
        if device is not None:
            own.to(device)
        with torch.no_grad():
            values, there = RowLosses(own, loss, device)(batch, lambda *_: None)
        found.append((values.tolist(), there.tolist()))
    return found[0] == found[1]


def trimmed(batch: Batch) -> bool:
    net = Steps()
    here = net(batch.features, batch.feature_mask)
    call = Caller(net.to(FAR), FAR)
    output = call(batch)
    masks = Trimmer(call, None).masks(batch, outputs_of(output, None, len(batch)))
    return (
        output.device.type == "cpu"
        and torch.equal(output, here)
        and torch.equal(masks[None], batch.feature_mask)
    )


def mixed() -> bool:
    """Whether the device notices, or all of this would prove nothing."""
    try:
        nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2, device=FAR))
    except RuntimeError as error:
        return "expected all tensors on far" in str(error)
    return False


def main() -> None:
    """Run."""
    install(sys.argv[1])
    torch.manual_seed(0)
    features, weight = torch.randn(6, 4), torch.rand(6)
    classes = torch.tensor([0, 1, 2, 0, 2, 1])
    good = Batch(features, classes, weight=weight)
    bad = Batch(features, torch.tensor([0, 1, 2, 0, -1, 7]), weight=weight)
    two = Batch(features, {"kind": classes, "size": torch.randn(6)}, weight=weight)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    steps = Batch(torch.randn(3, 3, 3), torch.randint(0, 2, (3, 3)), feature_mask=mask, label_mask=mask)
    losses = {"kind": nn.CrossEntropyLoss(), "size": nn.MSELoss()}
    of_classes = partial(nn.CrossEntropyLoss, weight=torch.tensor([1.0, 2.0, 0.5]), ignore_index=-1)
    stopping = EarlyStopping(patience=2, keep_best=True)
    found = {
        "mixed": mixed(),
        **{name: fit(name) for name in STRATEGIES},
        "clipped": fit("sharing", accumulate=2, clip_norm=0.5, clip_value=0.3),
        "stopped": fit("sharing", early_stopping=stopping, epochs=4),
        "going on": going_on(),
        "bad labels": step(network(), of_classes, bad),
        "steps": step(Steps(), nn.CrossEntropyLoss, steps),
        "two": step(Two(), lambda: losses, two, weighted=True),
        "whole": step(network(), lambda: whole, good, weighted=True),
        "rows": rows(network(), of_classes(), bad),
        "rows by function": rows(network(), lambda x, y: nn.functional.cross_entropy(x, y), good),
        "rows of two": rows(Two(), losses, two),
        "rows of whole": rows(network(), whole, good),
        "trimmed": trimmed(steps),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
