"""The page as a text: nothing of the data becomes code, nothing is fetched, all tables are there without JavaScript."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from fatwood import report
from fatwood.errors import OptionError
from fatwood.report.numbers import bytes_text, count_text, number_text, percent_text, seconds_text
from fatwood.testing.runs import synthetic_stats
from fatwood.train import FitStats, Incident

RUN = synthetic_stats(workers=3, seconds=20.0)
EVIL = '</script ><!--<script></script><script>alert("1")</script><img src=x onerror=alert(1)>&amp;'


class Parsed(HTMLParser):
    """Elements, their attributes, and the text of each kind of element."""

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


def page(stats: FitStats, **options: Any) -> str:
    return report.page(stats.to_json(), **options)


def test_data_never_becomes_code() -> None:
    worker = replace(RUN.workers[0], host=EVIL)
    stats = replace(
        RUN,
        workers=(worker, *RUN.workers[1:]),
        incidents=(Incident(seconds=1.0, kind=EVIL, rank=None, text=EVIL),),
    )
    parsed = Parsed(page(stats, title=EVIL))
    assert parsed.open == []
    assert [tag for tag, _ in parsed.found if tag in ("img", "iframe", "link", "object")] == []
    assert len([tag for tag, _ in parsed.found if tag == "script"]) == 2
    assert parsed.texts["title"] == [EVIL]
    assert EVIL in parsed.texts["td"]
    data = json.loads("".join(parsed.texts["script"][:1]))
    assert data["workers"][0]["host"] == EVIL


def test_the_page_is_alone_in_the_world() -> None:
    text = page(RUN)
    assert text.startswith("<!doctype html>")
    policy = next(
        a["content"] for t, a in Parsed(text).found if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(", text)


def test_all_that_is_text_is_there_without_javascript() -> None:
    parsed = Parsed(page(RUN))
    captions = parsed.texts["caption"]
    assert captions == [
        "Wall seconds by worker and phase",
        "Who waited for whom",
        "Incidents",
        "Epochs",
        "Clocks",
    ]
    cells = [cell.strip() for cell in parsed.texts["td"]]
    assert f"{RUN.workers[1].seconds['compute']:,.1f}" in cells
    assert RUN.incidents[0].text in cells
    assert f"{RUN.history[0].rows:,}" in cells
    assert "rows trained" in "".join(parsed.texts["p"])
    assert [attributes["lang"] for tag, attributes in parsed.found if tag == "html"] == ["en"]
    assert all("aria-label" in a for tag, a in parsed.found if tag in ("canvas", "button"))


def test_what_went_wrong_stands_on_top() -> None:
    worker = replace(RUN.workers[0], digest=2)
    bad = replace(RUN, workers=(worker, *RUN.workers[1:]), rows_lost=1234, rows_trained_twice=5)
    items = Parsed(page(bad)).texts["li"]
    assert len(items) == 3
    assert "replicas differ" in items[0]
    assert "1,234 rows were lost" in items[1]
    assert "li" not in Parsed(page(RUN)).texts


def test_many_workers_get_a_list_of_the_longest_waits() -> None:
    worker = RUN.workers[0]
    many = tuple(
        replace(
            worker,
            rank=rank,
            trace=None,
            waited_seconds={other: float(rank == 29) for other in range(30) if other != rank},
        )
        for rank in range(30)
    )
    parsed = Parsed(page(replace(RUN, workers=many)))
    assert "The longest waits" in parsed.texts["caption"]
    assert parsed.texts["td"].count("29") >= 29


def test_statistics_without_traces_and_of_nothing_have_a_page() -> None:
    bare = tuple(replace(worker, trace=None, waited_seconds={}, seconds={}) for worker in RUN.workers)
    assert Parsed(page(replace(RUN, workers=bare, seconds=0.0))).open == []
    empty = FitStats(workers=(), rows_trained=0, rows_expected=0, parameters=0, seconds=0.0)
    assert "0 workers" in page(empty)


def test_validations_within_epochs_have_a_table() -> None:
    more = (*RUN.validations, replace(RUN.validations[-1], step=10**6))
    parsed = Parsed(page(replace(RUN, validations=more)))
    assert "Validations" in parsed.texts["caption"]
    assert "1,000,000" in parsed.texts["td"]


@pytest.mark.parametrize("drop", ["workers", "history", "figures", "seconds"])
def test_values_with_a_hole_are_refused(drop: str) -> None:
    values = RUN.to_json()
    del values[drop]
    with pytest.raises(OptionError, match=drop):
        report.page(values)
    with pytest.raises(OptionError, match="format None"):
        report.page({})


def test_numbers_read_well() -> None:
    assert [count_text(v) for v in (0, 999, 54_362, 12_345_678, 2.5e9)] == [
        "0", "999", "54,362", "12.3 million", "2.50 billion",
    ]  # fmt: skip
    assert [bytes_text(v) for v in (0, 999, 1000, 4_799_528, 2e9)] == [
        "0 B",
        "999 B",
        "1 kB",
        "4.8 MB",
        "2 GB",
    ]
    assert [seconds_text(v) for v in (0.0123, 3.44, 59.99, 60, 125.4, 3725)] == [
        "0.012 s", "3.4 s", "60.0 s", "1:00 min", "2:05 min", "1:02:05 h",
    ]  # fmt: skip
    assert [number_text(v) for v in (0.123456, None, "NaN", float("inf"))] == [
        "0.1235",
        "\u2013",
        "nan",
        "inf",
    ]
    assert [percent_text(v) for v in (0, 0.0123, 0.5, 1)] == ["0 %", "1.2 %", "50 %", "100 %"]


def test_the_data_of_the_page_are_the_traces() -> None:
    worker = replace(RUN.workers[0], host=EVIL)
    text = page(replace(RUN, workers=(worker, *RUN.workers[1:])))
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert not {"<", ">", "&"} & set(found.group(1))
    data = json.loads(found.group(1))
    assert [w["trace"]["spans"] for w in data["workers"]] == [(w.trace or {})["spans"] for w in RUN.workers]
