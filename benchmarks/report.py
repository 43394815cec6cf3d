"""What the trace of a run costs, and how fast the page of a long one opens.

    python benchmarks/report.py [--workers 16] [--hours 1] [--output FOLDER]

Spans and steps are timed in a loop, the best of five. The page is of a made-up run; it is opened in Chromium, if there is
one, and says itself after how many milliseconds it was drawn. Made on two shared cores of an AMD EPYC (Zen 3).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fatwood.testing.runs import synthetic_stats
from fatwood.train.clock import PhaseClock
from fatwood.train.series import StepTrace
from fatwood.train.trace import Trace

CALLS = 50_000


def microseconds(call: Callable[[], None]) -> float:
    """Of one call, the best of five loops."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - start) / CALLS * 1e6)
    return min(found)


def recorder() -> None:
    """Print what a phase and a step cost with and without a trace."""

    def phase(clock: PhaseClock) -> Callable[[], None]:
        def call() -> None:
            with clock.phase("compute"):
                pass

        return call

    clock = PhaseClock(Trace())
    step = StepTrace(
        step=1, epoch=0, rows=32, loss=1.0, message_bytes=100, tau=1e-3, density=1e-3, seconds=0.1
    )
    print(f"phase without a trace  {microseconds(phase(PhaseClock())):6.2f} us")
    print(f"phase with a trace     {microseconds(phase(clock)):6.2f} us")
    print(f"step with a trace      {microseconds(lambda: clock.step(step)):6.2f} us")


def page(workers: int, hours: float, folder: Path) -> None:
    """Print the sizes of a made-up run's statistics and page, and when it is drawn."""
    stats = synthetic_stats(workers=workers, seconds=3600 * hours)
    largest = max(len(json.dumps(worker.trace, separators=(",", ":"))) for worker in stats.workers)
    stats.save(folder / "stats.json")
    start = time.perf_counter()
    stats.to_html(folder / "page.html")
    print(f"page written in        {time.perf_counter() - start:6.2f} s")
    for name in ("stats.json", "page.html"):
        print(f"{name:<22} {(folder / name).stat().st_size / 1e6:6.2f} MB")
    print(f"largest trace          {largest / 1e6:6.2f} MB")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium to open it")
        return
    times = []
    for number in range(5):
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / str(number)}",
        ]
        command = [browser, *options, "--window-size=1280,900", "--dump-dom", (folder / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r'data-drawn="(\d+)"', done.stdout)
        assert found is not None, done.stderr[-1000:]
        times.append(int(found.group(1)))
    print(f"drawn after            {sorted(times)[2]:6d} ms (median of {sorted(times)})")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--output", type=Path, help="keep statistics and page in this folder")
    arguments = parser.parse_args()
    recorder()
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        page(arguments.workers, arguments.hours, arguments.output)
        return
    with tempfile.TemporaryDirectory() as folder:
        page(arguments.workers, arguments.hours, Path(folder))


if __name__ == "__main__":
    main()
