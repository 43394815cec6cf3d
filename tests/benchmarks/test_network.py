"""The rivals of the network benchmark do what they are said to do, and its figures are counted rightly."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

WORKERS, SIZE, STEPS = 2, 4096, 6
NAMES = ("network_rivals", "network_cells", "network_tasks", "network")


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(folder)


def scheme(scripts: SimpleNamespace, name: str) -> Any:
    rivals = scripts.network_rivals
    return {
        "topk": lambda: rivals.TopK(0.01, sampled=False),
        "topk-sampled": lambda: rivals.TopK(0.01, sampled=True),
        "dl4j": lambda: rivals.Dl4j(1e-3),
    }[name]()


def updates(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return 3e-4 * torch.randn(STEPS, SIZE, generator=generator)


def shared(scripts: SimpleNamespace, name: str) -> list[Any]:
    """Two ranks that share updates over gloo on loopback, each in a thread."""
    store, rivals = dist.HashStore(), scripts.network_rivals
    sharers: dict[int, Any] = {}

    def run(rank: int) -> None:
        group = dist.ProcessGroupGloo(store, rank, WORKERS, timedelta(seconds=30))
        sharer = rivals.Sharer(torch.zeros(SIZE), scheme(scripts, name), group, rivals.Phases())
        for update in updates(rank):
            sharer.parameters.add_(update)
            sharer.share()
        sharers[rank] = sharer

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [sharers[rank] for rank in range(WORKERS)]


@pytest.mark.parametrize("name", ["topk", "topk-sampled", "dl4j"])
def test_replicas_are_bitwise_equal_and_move(scripts: SimpleNamespace, name: str) -> None:
    one, other = shared(scripts, name)
    assert torch.equal(one.parameters, other.parameters)
    assert one.parameters.count_nonzero() > SIZE // 200
    assert not torch.equal(one.residual, other.residual)
    assert {"codec", "wait", "exchange"} <= one.phases.seconds.keys()


@pytest.mark.parametrize("name", ["topk", "topk-sampled"])
def test_top_k_with_error_feedback_loses_nothing(scripts: SimpleNamespace, name: str) -> None:
    sharers = shared(scripts, name)
    given = sum(updates(rank).sum(0) for rank in range(WORKERS)) / WORKERS
    kept = sum(sharer.residual for sharer in sharers) / WORKERS
    torch.testing.assert_close(sharers[0].parameters + kept, given, rtol=0, atol=1e-7)


def test_top_k_sends_the_largest(scripts: SimpleNamespace) -> None:
    residual, target = updates(0)[0].clone(), torch.zeros(SIZE)
    before, top = residual.clone(), scheme(scripts, "topk")
    top.apply(top.encode(residual), target, 1.0)
    moved = target.nonzero().squeeze(1)
    assert len(moved) == round(0.01 * SIZE)
    assert before[moved].abs().min() >= residual.abs().max()
    assert torch.equal(target + residual, before)


def test_dl4j_begins_with_a_bitmap_and_follows_its_threshold_rule(scripts: SimpleNamespace) -> None:
    theirs, decay = scheme(scripts, "dl4j"), 0.5 ** (1 / 20)
    residual = torch.zeros(SIZE)
    residual[:10], residual[10] = 2.5e-3, -0.6e-3
    first = theirs.encode(residual)
    assert first[3] == 1  # a bitmap, after which messages are sparse
    assert first.numel() == SIZE // 16 + 5
    assert residual[0].item() == pytest.approx(1.5e-3)
    assert residual[10].item() == pytest.approx(-0.1e-3)  # half a step, downwards only
    # After a bitmap the density counts as 1/16, which is above 1e-2.
    second = theirs.encode(residual)
    tau = 1e-3 / decay
    assert theirs.tau == pytest.approx(tau)
    assert second.tolist()[:2] == [10, SIZE]
    assert second[3] == 0
    assert second.tolist()[4:] == [*range(1, 11)]
    # 14 ints of 4096 are in the dead band; nothing is above the threshold any more, so that nothing is sent.
    assert theirs.encode(residual).numel() == 0
    assert theirs.tau == pytest.approx(tau)
    theirs.encode(residual)
    assert theirs.tau == pytest.approx(tau * decay)


def test_dl4j_clips_every_fifth_residual(scripts: SimpleNamespace) -> None:
    theirs, residual = scheme(scripts, "dl4j"), torch.zeros(SIZE)
    residual[:2] = 1.0  # one alone would not be sent, and nothing clipped then
    largest = []
    for _ in range(6):
        theirs.encode(residual)
        largest.append(residual[0].item() / theirs.tau)
    assert min(largest[:5]) > 100
    assert largest[5] == pytest.approx(5.0)


def test_dl4j_applies_the_sum(scripts: SimpleNamespace) -> None:
    sharers = shared(scripts, "dl4j")
    replay = torch.zeros(SIZE)
    schemes = [scheme(scripts, "dl4j") for _ in range(WORKERS)]
    residuals = [torch.zeros(SIZE) for _ in range(WORKERS)]
    for step in range(STEPS):
        for rank in range(WORKERS):
            residuals[rank] += updates(rank)[step]
        for one, residual in zip(schemes, residuals, strict=True):
            one.apply(one.encode(residual), replay, 1.0)
    torch.testing.assert_close(sharers[0].parameters, replay, rtol=0, atol=1e-6)
    assert replay.count_nonzero() > 0


def test_one_process_has_the_rows_of_all_workers(scripts: SimpleNamespace) -> None:
    task = scripts.network_tasks.TASKS["cnn"](None)
    alone, _ = task.rows(seed=0, step=3, rank=0, workers=1, batch_size=32)
    parts = [task.rows(seed=0, step=3, rank=rank, workers=4, batch_size=8)[0] for rank in range(4)]
    assert torch.equal(alone, torch.cat(parts))


def test_an_epoch_has_every_row_once(scripts: SimpleNamespace) -> None:
    stream = scripts.network_tasks.stream
    pieces = np.concatenate([stream(10, 0, first, 4) for first in range(0, 20, 4)])
    assert sorted(pieces[:10]) == sorted(pieces[10:]) == list(range(10))


def test_the_resnet_has_eleven_million_parameters(scripts: SimpleNamespace) -> None:
    network = scripts.network_tasks.TASKS["resnet"](None).network(0)
    assert sum(p.numel() for p in network.parameters()) == 11_175_370
    assert network(torch.zeros(2, 784)).shape == (2, 10)


def test_steps_beside_a_look_do_not_count(scripts: SimpleNamespace) -> None:
    stamps = [float(step * step) for step in range(13)]  # step i takes 2 i + 1
    counted, first = scripts.network_cells.intervals(stamps, 5)
    assert first == 16.0  # steps 0 to 3
    assert counted == [13.0, 15.0, 17.0, 23.0]  # not 4, 5, 9, 10


def test_a_speedup_is_over_the_fastest_variant(scripts: SimpleNamespace) -> None:
    rows = [
        {"method": "ours-1%-ahead", "steps": 100, "step_s": 0.1, "seconds": 10.0},
        {"method": "powersgd-1", "steps": 300, "step_s": 0.1, "seconds": 30.0},
        {"method": "powersgd-2", "steps": 100, "step_s": 0.2, "seconds": 20.0},
        {"method": "ddp_fp16", "steps": None, "step_s": 0.2, "seconds": None},
    ]
    found = scripts.network.speedups(rows, ("ours-1%-ahead",))
    assert found["powersgd"] == 2.0
    assert found["ddp_fp16"] is None  # it did not reach the quality
    quick = [{**one, "steps": None, "seconds": None} for one in rows]
    assert scripts.network.speedups(quick, ("ours-1%-ahead",))["ddp_fp16"] == 2.0


def test_what_ddp_does_not_overlap_is_its_step_less_computing(scripts: SimpleNamespace) -> None:
    rows: list[dict[str, Any]] = [
        {"method": "ddp_fp32", "step_s": 0.5, "phases": {"compute": 0.5}},
        {"method": "dl4j", "step_s": 0.4, "phases": {"compute": 0.2, "codec": 0.2}},
        {"method": "compute", "step_s": 0.2, "phases": {"compute": 0.2}},
    ]
    scripts.network.split(rows)
    assert rows[0]["phases"] == {"compute": 0.2, "codec, exchange and wait": pytest.approx(0.3)}
    assert rows[1]["phases"] == {"compute": 0.2, "codec": 0.2}


def test_a_rate_rises_and_falls(scripts: SimpleNamespace) -> None:
    cells = scripts.network_cells
    constant = cells.Cell(method="alone", rate=0.1, steps=100)
    falling = cells.Cell(method="alone", rate=0.1, steps=100, falling=True)
    assert cells.factor_at(0, constant) == pytest.approx(1 / cells.WARMUP)
    assert cells.factor_at(50, constant) == 1.0
    assert cells.factor_at(50, falling) == pytest.approx(0.5)
    assert cells.factor_at(99, falling) == pytest.approx(0.01)
    assert cells.Cell(**constant.to_json()) == constant


def test_all_figures_of_a_whole_run(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Everything but the cluster: which cells are asked for, and what is made of them."""
    cells, network = scripts.network_cells, scripts.network

    def measured(cell: Any, mbit: float | None) -> Any:
        ours = cell.method.startswith("ours")
        step = {"compute": 0.2, "ours-0.1%": 0.22}.get(
            cell.method, 0.25 if ours else (100 / mbit if mbit else 9.0)
        )
        if cell.batch_size:
            step += 0.4
        looks = range(cell.every, cell.steps + 1, cell.every) if cell.every else ()
        points = [(at, 0.02 if cell.falling and ours else 0.01 + 0.5 * (at < 50)) for at in looks]
        return cells.Measured(cell=cell.to_json(), points=points, step_seconds=[step] * 3)

    monkeypatch.setattr(network, "run", lambda asked, _, mbit: [measured(cell, mbit) for cell in asked])
    given = {
        "task": "resnet",
        "steps": None,
        "seeds": [0, 3],
        "mnist": None,
        "quick": False,
        "steps_of": None,
        "turns": 2,
    }
    given |= {"methods": list(cells.METHODS), "workers": 4, "mbit": [100.0, 1000.0], "parts": network.PARTS}
    found = network.measure(SimpleNamespace(**given))
    gaps = [{"seed": seed, "ours": 0.02, "alone": 0.01, "lost": pytest.approx(1.0)} for seed in (0, 3)]
    assert found["quality_gaps"] == gaps
    assert found["overhead_1gbit"] == pytest.approx(0.1)
    assert found["overhead_1gbit_large"] == pytest.approx(0.62 / 0.6 - 1)
    for rival in cells.RIVALS:  # as many steps for all, so the ratio of their times
        assert found["speedup_100mbit"][rival] == pytest.approx(1.0 / 0.25)
        assert found["speedup_1gbit"][rival] == pytest.approx(0.1 / 0.25)
    how = {one["method"]: one["how"] for one in found["table"] if one["mbit"] == 100.0}
    assert how["ours-1%-ahead"] == "run"
    assert how["ddp_fp32"] == "steps x step time"
    turns = {one["method"]: len(one["turns_s"]) for one in found["table"] if one["mbit"] == 100.0}
    assert (turns["ours-1%-ahead"], turns["dl4j"], turns["compute"], turns["ddp_fp32"]) == (2, 2, 2, 1)
    # the steps of one run, the links of another
    told = tmp_path / "steps.txt"
    told.write_text("what came before\n" + json.dumps(found))
    again = network.measure(SimpleNamespace(**given | {"parts": ("links",), "steps_of": str(told)}))
    assert again["speedup_1gbit"] == found["speedup_1gbit"]
    assert "quality_gaps" not in again
