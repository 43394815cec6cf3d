"""Reports as HTML: names never become markup, pictures are also text, nothing is fetched; and a real browser draws it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fatwood.evaluation import Classification, Loss
from fatwood.evaluation.calibration import Calibration
from fatwood.evaluation.charts import MOST_LINES, bars, heatmap
from fatwood.evaluation.curves import ROC, ROCBinary, ROCMultiClass
from fatwood.evaluation.page import fragment, page, summary_table
from fatwood.evaluation.report import Report

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)  # fmt: skip
EVIL = '</style></title><script>alert("1")</script><img src=x onerror=alert(1)>&amp;'
ROWS = 3000


def reports() -> dict[str, Report]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (ROWS,), generator=generator)
    outputs = (2 * torch.randn(ROWS, 3, generator=generator) + 2 * torch.eye(3)[labels]).softmax(1)
    truths = (torch.rand(ROWS, generator=generator) < outputs[:, 0]).long()
    names = ["cat", EVIL, "dog"]
    return {
        "classes": Classification.empty(3).update(outputs, labels, 100.0),
        EVIL: ROCMultiClass(names=names).update(outputs, labels),
        "roc": ROC().update(outputs[:, 0], truths),
        "binned": ROC(bins=30).update(outputs[:, 0], truths),
        "calibration": Calibration(names=names).update(outputs, labels),
        "binary": Calibration().update(outputs[:, 0], truths),
        "loss": Loss.empty().update(outputs, labels, 10.0),
    }


class Parsed(HTMLParser):
    """Elements with attributes, and the texts in each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


@pytest.mark.parametrize("make", [lambda given: page(given, EVIL), fragment])
def test_names_never_become_markup(make) -> None:
    text = make(reports())
    parsed = Parsed(text)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.found} & {"script", "img", "iframe", "link", "object", "b"} == set()
    assert EVIL in parsed.texts["h2"]
    assert EVIL in parsed.texts["td"]
    assert not re.search(r"@import|url\(|https?://", text)


def test_a_page_stands_alone_and_links_to_its_reports() -> None:
    given = reports()
    text = page(given, "Held <out> rows")
    assert text.startswith("<!doctype html>")
    parsed = Parsed(text)
    assert parsed.texts["title"][0] == "Held <out> rows"
    policy = [a["content"] for _, a in parsed.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy[0]).startswith("default-src 'none'")
    links = [a["href"] for tag, a in parsed.found if tag == "a"]
    sections = [f"#{a['id']}" for tag, a in parsed.found if tag == "section"]
    assert links == sections
    assert len(links) == len(given)
    assert "<nav" not in page({"one": given["loss"]})


def test_every_picture_says_what_it_shows_and_has_its_values_as_a_table() -> None:
    parsed = Parsed(page(reports()))
    spoken = [a["aria-label"] for tag, a in parsed.found if tag == "svg" and a.get("role") == "img"]
    assert len(spoken) == 6 + 4 + 3
    assert all(spoken)
    assert any(re.match(r"ROC curve\. cat: area 0\.\d{4}; ", str(text)) for text in spoken)
    assert any(re.match(r"Reliability\. all rows: error 0\.\d{4}", str(text)) for text in spoken)
    assert (
        len(parsed.texts["desc"]) == len([tag for tag, _ in parsed.found if tag == "details"]) == len(spoken)
    )


def test_areas_on_the_page_are_those_of_the_report() -> None:
    report = reports()["roc"]
    assert isinstance(report, ROC)
    text = report.to_html()
    assert f"area {report.auroc():.4f}" in text
    assert f"average precision {report.auprc():.4f}" in text
    assert '<td class="number">1.0000</td>' in text


def test_a_curve_of_many_points_is_drawn_with_few_that_reach_both_ends() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(200_000, generator=generator)
    text = ROC().update(scores, (torch.rand(200_000, generator=generator) < scores).long()).to_html()
    assert len(text) < 120_000
    roc = re.search(r'<path d="M([^"]+)" class="line series-0"', text)
    assert roc is not None
    points = [tuple(map(float, point.split(","))) for point in roc[1].split("L")]
    assert points[0] == (54.0, 278.0)
    assert points[-1] == (456.0, 10.0)
    across, up = np.array(points).T
    assert (np.diff(across) >= 0).all()
    assert (np.diff(up) <= 0).all()
    assert np.hypot(np.diff(across), np.diff(up)).max() < 15


def test_of_many_columns_the_worst_are_drawn() -> None:
    truths = torch.randint(0, 2, (200, 60), generator=torch.Generator().manual_seed(1))
    noise = torch.rand(200, 60, generator=torch.Generator().manual_seed(2))
    scores = (truths * torch.linspace(0, 1, 60) + noise).clamp(0, 1)
    for report in (ROCBinary(), Calibration()):
        text = report.update(scores, truths).to_html()
        assert f"Of 60 columns the {MOST_LINES} with" in text
        assert "series-9" in text
        assert 'class="line series-10"' not in text


@pytest.mark.parametrize("report", [ROC(), ROC(4), ROCBinary(), ROCMultiClass(), Calibration(), Loss.empty()])
def test_reports_without_rows_or_with_one_class_have_pages(report) -> None:
    assert "nan" in report.to_html()
    if not isinstance(report, Loss):
        outputs = torch.full((2, 3), 0.2) if isinstance(report, ROCMultiClass) else torch.tensor([0.2, 0.2])
        assert "<figure>" in report.fresh().update(outputs, torch.zeros(2, dtype=torch.int64)).to_html()


def test_a_heat_map_shows_counts_shares_and_totals() -> None:
    counts = [[3, 1], [0, 6]]
    shown = heatmap("Confusion", ["a", "b"], ["a", "b"], counts)
    assert shown == heatmap("Confusion", ["a", "b"], ["a", "b"], {(0, 0): 3, (0, 1): 1, (1, 1): 6})
    cells = re.findall(r'<td style="--heat:([\d.]+)" class="number (\w+)">([\d,]+)<', shown)
    assert cells == [
        ("0.750", "hit", "3"),
        ("0.250", "miss", "1"),
        ("0.000", "miss", "0"),
        ("1.000", "hit", "6"),
    ]
    assert re.findall(r'total">(\d+)<', shown) == ["3", "7", "10"]
    assert ">1,234<" in heatmap("", ["a"], ["b"], np.array([[1234.0]]))
    assert ">0.25<" in heatmap("", ["a"], ["b"], {(0, 0): 0.25})
    assert "hit" not in heatmap("", ["a"], ["b"], [[1]])


def test_a_heat_map_of_many_classes_lists_the_largest_confusions() -> None:
    names = [f"c{i}" for i in range(51)]
    matrix = np.zeros((51, 51), dtype=np.int64)
    matrix[3, 3], matrix[4, 5], matrix[6, 7] = 1000, 20, 2000
    shown = heatmap("Confusion", names, names, matrix)
    assert "the 2 most frequent of 2 confusions; 51 classes" in shown
    assert re.findall(r">(c\d+)<", shown) == ["c6", "c7", "c4", "c5"]
    assert "2,000" in shown
    many = heatmap("Confusion", range(50_000), range(50_000), {(i, i + 1): i + 1 for i in range(100)})
    assert many.count("<tr>") == 51


def test_bars_and_tiles() -> None:
    shown = bars("Rows", "probability", np.array([0.0, 4.0, 2500.0]))
    assert len(re.findall(r'<rect [^>]*class="bar"', shown)) == 2
    assert "2,504 values, most of them in 0.6667 to 1" in shown
    assert ">2.5k<" in shown
    assert "<rect" not in bars("Rows", "probability", np.zeros(3))
    assert "20,000" in summary_table({"rows": 20_000})
    assert "0.333333" in summary_table({"some_figure": 1 / 3})
    assert "some figure" in summary_table({"some_figure": 1 / 3})


def test_skipped_rows_are_on_the_page() -> None:
    report = ROC()
    report.skipped = 3
    assert "3 bad rows were skipped" in report.to_html()


def test_a_notebook_keeps_its_own_style() -> None:
    shown = reports()["roc"]._repr_html_()
    style = re.search(r"<style>(.*)</style>", shown, re.DOTALL)
    assert style is not None
    assert style[1].startswith(".fatwood-reports {")
    assert ":root" not in style[1]
    assert "body" not in style[1].replace("tbody", "")


PROBE = """
<script>
function look(event) {{
  const view = event.target.contentWindow, page = view.document, colour = (node, name) => view.getComputedStyle(node)[name];
  const found = {{ wide: page.documentElement.scrollWidth, ground: colour(page.body, "backgroundColor") }};
  found.boxes = [...page.querySelectorAll("figure > svg")].map((svg) => {{ const box = svg.getBoundingClientRect(); return [box.width, box.height]; }});
  found.lines = [...page.querySelectorAll("path.line")].map((path) => [path.getTotalLength(), colour(path, "stroke")]);
  found.hit = colour(page.querySelector("td.hit"), "backgroundColor");
  found.over = [...page.querySelectorAll("text")].filter((text) => text.getBoundingClientRect().right > page.documentElement.clientWidth).length;
  found.problems = view.problems;
  document.getElementById("found").textContent = JSON.stringify(found);
}}
</script><pre id="found"></pre>
<iframe style="border:0;width:{wide}px;height:900px" onload="look(event)" srcdoc="{page}"></iframe>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_it(dark: bool, tmp_path: Path) -> None:
    wide = 390 if dark else 1280
    watch = "<script>window.problems = []; addEventListener('securitypolicyviolation', (e) => problems.push(e.violatedDirective));</script>"
    text = page(reports()).replace('<meta http-equiv="Content-Security-Policy"', watch + '<meta http-equiv="Content-Security-Policy"', 1)  # fmt: skip
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<!doctype html><meta charset=utf-8>" + PROBE.format(wide=wide, page=html.escape(text)),
        encoding="utf-8",
    )
    assert BROWSER is not None
    options = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1400,1000", "--virtual-time-budget=20000",
        "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([BROWSER, *options], capture_output=True, text=True, timeout=100, check=True)
    seen = done.stdout.rpartition('<pre id="found">')[2].partition("</pre>")[0]
    assert seen, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(seen))
    assert found["problems"] == []
    assert found["wide"] <= wide
    assert found["over"] == 0
    assert (found["ground"] == "rgb(22, 21, 20)") == dark
    assert all(260 < across <= 560 and up > 170 for across, up in found["boxes"])
    assert len(found["boxes"]) == 13
    drawn = [length for length, _ in found["lines"] if length > 200]
    assert len(drawn) >= 14
    assert len({colour for _, colour in found["lines"]}) == 3
    assert found["hit"] not in ("rgba(0, 0, 0, 0)", found["ground"])
