"""A plan as text: memory, speed, the recommendation, and the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fatwood.planning.planner import Plan

__all__ = ["recommendation", "text_of"]


def text_of(found: Plan) -> str:
    """The page."""
    c = found.cluster
    shared = "" if c.sharing == 1 else f"; {c.sharing:g} workers compute on each core"
    lines = [
        f"{found.parameters:,} parameters; {c.workers} workers, {found.batch_size} rows a step each, threads: {c.cores_per_worker}{shared}",
        f"links of {c.mbit:g} Mbit/s each way, round trip {1000 * c.round_trip_seconds:g} ms",
        "",
        recommendation(found),
        "",
        "Memory, MiB",
        *_memory(found),
        "",
        "Speed: steps measured here, the links' time computed",
        *_speed(found),
        "",
        "A step, ms",
        *_arithmetic(found),
    ]
    return "\n".join(lines)


def recommendation(found: Plan) -> str:
    """One or two sentences."""
    best, fastest, workers = found.recommended, found.fastest, found.cluster.workers
    rarer = [s for s in found.strategies if s not in found.considered and s.speedup > max(1, fastest.speedup)]
    aside = "".join(
        f" {s.name} trains {s.speedup:.2g} times the rows, and agrees once in {s.every} steps: a row may teach less."
        for s in rarer
    )
    if best is None:
        return (
            f"Train in one process. With {workers} workers the fastest that agrees so often, {fastest.name}, trains "
            f"{fastest.speedup:.2g} times the rows of one process a second.{aside}"
        )
    text = f"{best.name}: {best.speedup:.2g} times the rows of one process a second, with {workers} workers"
    if found.hardly_pays:
        return f"{text}. That is hardly worth a cluster.{aside}"
    if best is not fastest:
        text += f" ({fastest.name}: {fastest.speedup:.2g} times)"
    steps = f"{workers} workers step on {workers * found.batch_size} rows at once: the learning rate may need another value."
    return f"{text}. {steps}{aside}"


def _memory(found: Plan) -> Iterator[str]:
    executor, driver, c = found.executor, found.driver, found.cluster
    used = found.recommended or found.fastest
    yield from _table(
        ("", "heap", "overhead", "in which"),
        [
            (
                "driver",
                f"{driver.heap}",
                f"{driver.overhead}",
                f"JVM {driver.jvm}, the script's Python {driver.python}",
            ),
            (
                "executor",
                f"{executor.heap}",
                f"{executor.overhead}",
                f"JVM {executor.jvm}, {c.workers_per_executor} x {used.worker_mib} for Python workers ({used.name})",
            ),
        ],
    )
    if found.gpu is None:
        yield "GPU: not measured, PyTorch sees none here"
    else:
        gpu = found.gpu
        yield f"GPU: {gpu['bytes'] / 2**20:,.0f} for a step, of {gpu['device_bytes'] / 2**20:,.0f} ({gpu['name']})"


def _speed(found: Plan) -> Iterator[str]:
    epochs = found.rows is not None
    head = ("", "worker MiB", "step ms", "on the links ms", "sent a step", "rows/s", "times one process")
    rows = [
        (
            "one process",
            f"{found.alone_mib}",
            _ms(found.alone_seconds),
            "",
            "",
            f"{found.batch_size / found.alone_seconds:,.0f}",
            "1",
            *_epoch(found, found.alone_seconds, 1),
        )
    ]
    rows += [
        (
            s.name,
            f"{s.worker_mib}",
            _ms(s.step_seconds),
            _ms(s.network_seconds / s.every),
            f"{sum(s.measured.rounds) / s.every:,.0f}",
            f"{s.rows_per_second:,.0f}",
            f"{s.speedup:.2f}",
            *_epoch(found, s.step_seconds, found.cluster.workers),
        )
        for s in found.strategies
    ]
    return _table((*head, "epoch s") if epochs else head, rows)


def _epoch(found: Plan, step_seconds: float, workers: int) -> tuple[str, ...]:
    seconds = found.epoch_seconds(step_seconds, workers)
    return () if seconds is None else (f"{seconds:,.1f}",)


def _arithmetic(found: Plan) -> Iterator[str]:
    c = found.cluster
    for s in found.strategies:
        m, slower = s.measured, c.sharing
        sums = " + ".join(f"{sent:,}" for sent in m.rounds)
        yield (
            f"{s.name}: links: ({sums}) bytes x 8 / ({c.mbit:g} x 10^6 x 0.94) + {len(m.rounds)} x {_ms(c.round_trip_seconds / 2)}"
            f" = {_ms(s.network_seconds)}"
        )
        compute, exchange = slower * m.compute * s.every, s.network_seconds + slower * m.swap
        own = slower * (m.encode + m.apply + m.other)
        times = f"{s.every} x {_ms(slower * m.compute)}" if s.every > 1 else _ms(compute)
        what = f"compute {times}, exchange {_ms(s.network_seconds)} + {_ms(slower * m.swap)}"
        both = f"the longer of ({what})" if s.staleness else what
        divided = f", / {s.every}" if s.every > 1 else ""
        yield (
            f"  {both}, encode {_ms(slower * m.encode)}, apply {_ms(slower * m.apply)}, rest {_ms(slower * m.other)}: "
            f"{_ms(own + (max(compute, exchange) if s.staleness else compute + exchange))}{divided} = {_ms(s.step_seconds)}"
        )


def _ms(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns side by side: names on the left, numbers on the right."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    for line in (head, *rows):
        cells = [line[0].ljust(widths[0])]
        last = line[-1] if head[-1] == "in which" else line[-1].rjust(widths[-1])
        cells += [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)]
        yield "  ".join([*cells, last]).rstrip()
