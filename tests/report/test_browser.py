"""The page in a real browser: it draws, answers the pointer, fits a phone, and has nothing to complain of."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fatwood import report
from fatwood.testing.runs import synthetic_stats
from fatwood.train import FitStats

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
    pytest.mark.timeout(120),
]

RUN = synthetic_stats(workers=4, seconds=60.0)
WATCH = "<script>window.problems = []; window.requestAnimationFrame = (draw) => draw(); addEventListener('error', (e) => problems.push(e.message)); addEventListener('securitypolicyviolation', (e) => problems.push(e.violatedDirective));</script>"
PROBE = """
<script>
function look(event) {{
  const view = event.target.contentWindow, page = view.document, found = {{}};
  const at = (x, y) => view.document.getElementById("canvas").dispatchEvent(new view.PointerEvent("pointermove", {{ clientX: x, clientY: y, pointerId: 1 }}));
  const inked = () => {{
    const canvas = page.getElementById("canvas"), colours = new Set();
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 255) colours.add(pixels[i] + "," + pixels[i + 1] + "," + pixels[i + 2]);
    return colours;
  }};
  const hover = (part) => {{
    const box = page.getElementById("canvas").getBoundingClientRect();
    at(box.left + box.width * part, box.top + 40);
    return page.getElementById("tip").textContent;
  }};
  found.wide = page.documentElement.scrollWidth;
  found.drawn = page.documentElement.dataset.drawn;
  found.curves = [...page.querySelectorAll("#charts figure")].map((figure) => figure.id);
  found.spoken = [...page.querySelectorAll("#charts svg")].map((svg) => svg.getAttribute("aria-label"));
  found.legend = page.getElementById("legend").textContent;
  found.colours = [...inked()];
  found.far = hover(0.5);
  for (let i = 0; i < 12; i += 1) page.getElementById("zoom-in").click();
  found.near = hover(0.5);
  found.zoomed = [...inked()];
  page.getElementById("zoom-all").click();
  found.problems = view.problems;
  document.getElementById("found").textContent = JSON.stringify(found);
}}
</script><pre id="found"></pre>
<iframe style="border:0;width:{wide}px;height:900px" onload="look(event)" srcdoc="{page}"></iframe>
"""


def look(stats: FitStats, folder: Path, *, wide: int = 1200) -> dict[str, Any]:
    """Open the page in a frame of this width, use it, and return what was seen."""
    page = report.page(stats.to_json()).replace("<title>", WATCH + "<title>", 1)
    frame = folder / "frame.html"
    frame.write_text(
        "<!doctype html><meta charset=utf-8>" + PROBE.format(wide=wide, page=html.escape(page)),
        encoding="utf-8",
    )
    assert BROWSER is not None
    options = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([BROWSER, *options], capture_output=True, text=True, timeout=100, check=True)
    text = done.stdout.rpartition('<pre id="found">')[2].partition("</pre>")[0]
    assert text, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(text))
    return found


@pytest.mark.parametrize("wide", [1200, 390])
def test_it_draws_and_answers(wide: int, tmp_path: Path) -> None:
    found = look(RUN, tmp_path, wide=wide)
    assert found["problems"] == []
    assert float(found["drawn"]) >= 0
    assert found["wide"] <= wide
    assert found["curves"] == [
        f"curve-{name}" for name in ("loss", "message_bytes", "tau", "density", "seconds")
    ]
    assert found["legend"] == "readbatchcomputeencodeexchangeapply"
    assert "59,117,214" in found["colours"]  # computing
    assert "232,131,58" in found["colours"]  # exchanging
    assert "59,117,214" in found["zoomed"] or "232,131,58" in found["zoomed"]
    assert found["far"].startswith("worker 0 on executor-0\n")
    assert "ms from" in found["near"] or "between phases" in found["near"]


def test_the_curves_say_what_the_statistics_say(tmp_path: Path) -> None:
    spoken = look(RUN, tmp_path)["spoken"]
    trace = RUN.workers[0].trace
    assert trace is not None
    tau = trace["steps"]["figures"]["tau"]["mean"]
    assert spoken[2].startswith(f"Threshold tau: first {tau[0]:.4g}, last ")
    assert spoken[1].startswith("Message: first ")


def test_statistics_without_a_trace_open_too(tmp_path: Path) -> None:
    bare = tuple(replace(worker, trace=None) for worker in RUN.workers)
    found = look(replace(RUN, workers=bare), tmp_path)
    assert found["problems"] == []
    assert found["curves"] == []
