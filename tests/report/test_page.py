"""report.html as text: what stands in it, that it needs nothing else, and that no name can become markup or script."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from analysis_samples import MODULES, made_up
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustmerge_kit.report.analysis.records import Analysis
from robustmerge_kit.report.page import render_page

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!--<script>",
    "${alert(1)} `x` {{7*7}}",
    "]]>&lt;&amp;\u2028\u2029",
    "nul\x00 esc\x1b[31m \ud800 del\x7f",
    "‮right to left",
)


class Reader(HTMLParser):
    """Elements with their attributes, and the text outside of style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: list[tuple[dict[str, str | None], str]] = []
        self.tables: list[list[list[str]]] = []
        self.inside = ""
        self.cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style"):
            self.raw.append((self.elements[-1][1], data))
            return
        self.text += data
        if self.cell:
            self.tables[-1][-1][-1] += data


def data_of(page: str) -> dict[str, Any]:
    (text,) = [text for attributes, text in Reader(page).raw if attributes.get("id") == "data"]
    return json.loads(text)


def renamed(report: Analysis, names: tuple[str, ...]) -> Analysis:
    """The report with hostile names wherever a name can stand."""

    def name(index: int) -> str:
        return names[index % len(names)]

    adapters = tuple(
        each.model_copy(update={"label": name(i), "reference": name(i + 1), "base": name(i)})
        for i, each in enumerate(report.adapters)
    )
    methods = tuple(
        each.model_copy(update={"label": name(i), "method": name(i), "space": name(i), "parameters": {name(i): name(i + 1)}})
        for i, each in enumerate(report.methods)
    )
    sites = tuple(
        each.model_copy(update={"site": f"layers.{i}.{name(i)}", "module": name(i), "stack": name(i)})
        for i, each in enumerate(report.sites)
    )
    verdict = tuple(each.model_copy(update={"sentence": name(i), "path": name(i)}) for i, each in enumerate(report.verdict))
    changes = {"recipe": name(0), "notes": names, "adapters": adapters, "methods": methods, "sites": sites, "verdict": verdict}
    return report.model_copy(update=changes)


def test_the_verdict_and_the_totals_are_there_without_a_script() -> None:
    report = made_up()
    page = Reader(render_page(report))
    for finding in report.verdict:
        assert finding.sentence in page.text
        assert report.thresholds[finding.threshold].meaning in page.text
        assert finding.path in page.text
    heads = {" ".join(table[0][:2]): table for table in page.tables}
    assert [row[:2] for row in heads["adapter rank"][1:]] == [[f"task-{x}adapters/task-{x}", "8"] for x in "abc"]
    cosine = report.totals.pairs[0].cosine
    assert cosine is not None
    assert heads["pair cosine"][1][:2] == ["task-a × task-b", f"{cosine:.3f}".replace("-", "−")]
    norm = f"{report.totals.merges[0].norm:.2f}"
    assert heads["method norm"][1][:4] == ["robustmerge", norm, "8", "100.0 %"]


def test_every_table_is_rectangular_and_every_task_has_a_row() -> None:
    page = Reader(render_page(made_up()))
    assert all(len({len(row) for row in table}) == 1 for table in page.tables)
    (tasks,) = [table for table in page.tables if table[0][:2] == ["adapter", "method"]]
    assert len(tasks) == 1 + 3 * 2


def test_the_data_are_the_figures_of_the_report() -> None:
    report = made_up()
    data = data_of(render_page(report))
    assert data["sites"] == [site.site for site in report.sites]
    groups = {group["key"]: group for group in data["groups"]}
    assert [axis["labels"] for axis in groups["task"]["axes"]] == [["robustmerge", "linear"], ["task-a", "task-b", "task-c"]]
    destroyed = next(figure for figure in groups["task"]["figures"] if figure["key"] == "destroyed")
    for method in range(2):
        for adapter in range(3):
            for index, site in enumerate(report.sites):
                task = site.merges[method].tasks[adapter]
                expected = None if task is None else pytest.approx(task.destroyed, rel=1e-3)
                assert destroyed["values"][3 * method + adapter][index] == expected
    cosine = next(figure for figure in groups["pair"]["figures"] if figure["key"] == "cosine")
    assert groups["pair"]["axes"][0]["labels"] == ["task-a × task-b", "task-a × task-c", "task-b × task-c"]
    assert cosine["values"][1][0] == pytest.approx(report.sites[0].pairs[1].cosine, rel=1e-3)
    assert cosine["values"][2][-1] is None, "the last adapter lacks the last site"


def test_every_site_has_one_cell() -> None:
    report = made_up()
    data = data_of(render_page(report))
    cells = sorted(site for panel in data["panels"] for _, _, *members in panel["cells"] for site in members)
    assert cells == list(range(len(report.sites)))


def test_the_page_needs_nothing_else() -> None:
    page = render_page(made_up())
    assert not re.search(r"https?://|@import|url\(", page)
    reader = Reader(page)
    loads = {
        (tag, key): value for tag, attributes in reader.elements for key, value in attributes.items() if key in ("src", "href")
    }
    assert loads == {("link", "href"): "data:,"}


def test_only_the_pages_own_script_may_run() -> None:
    page = render_page(renamed(made_up(), HOSTILE))
    reader = Reader(page)
    (policy,) = [a["content"] or "" for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"]
    scripts = [text for attributes, text in reader.raw if attributes == {}]
    own = next(text for text in scripts if "use strict" in text)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert page.count("<script") == page.count("</script>") == 2


def test_hostile_names_are_text() -> None:
    page = render_page(renamed(made_up(), HOSTILE))
    reader = Reader(page)
    page.encode()
    plain = Reader(render_page(made_up()))
    assert {tag for tag, _ in reader.elements} == {tag for tag, _ in plain.elements}
    known = {key for _, attributes in plain.elements for key in attributes}
    assert {key for _, attributes in reader.elements for key in attributes} <= known
    assert "</script><script>alert(1)</script>" in reader.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", page)
    assert data_of(page)["sites"][0] == f"layers.0.{HOSTILE[0]}"


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=30))
def test_any_name_is_text(name: str) -> None:
    page = render_page(renamed(made_up(layers=1, adapters=2, methods=("linear",)), (name,)))
    page.encode()
    assert page.count("<script") == page.count("</script>") == 2
    assert data_of(page)["sites"][0] == f"layers.0.{name}"


@pytest.mark.parametrize(
    "changes",
    [{"adapters": 1}, {"adapters": 2, "methods": ("linear",)}, {"layers": 0}, {"rank": 1}, {"adapters": 9, "layers": 1}],
    ids=str,
)
def test_reports_of_any_size(changes: dict[str, Any]) -> None:
    report = made_up(**changes)
    data = data_of(render_page(report))
    assert len(data["sites"]) == len(report.sites)
    assert ("pair" in {group["key"] for group in data["groups"]}) == (len(report.adapters) > 1)


def test_a_report_that_knows_little() -> None:
    """An update that is zero everywhere, no pair, no verdict, no notes."""
    report = made_up(adapters=2)
    empty = {"updates": (None, None), "pairs": (), "norm_ratio": None, "cancelled": None}
    merges = tuple(
        merge.model_copy(update={"tasks": (None, None), "energy": (), "spectrum": ()}) for merge in report.totals.merges
    )
    totals = report.totals.model_copy(update={**empty, "merges": merges})
    page = Reader(render_page(report.model_copy(update={"totals": totals, "verdict": (), "notes": (), "sites": ()})))
    assert "Nothing stands out" in page.text
    assert "None" not in page.text


def test_the_same_report_gives_the_same_page() -> None:
    assert render_page(made_up()) == render_page(made_up())


def test_a_page_of_224_sites_and_8_adapters_is_light() -> None:
    page = render_page(made_up(layers=32, adapters=8, modules=MODULES, methods=("robustmerge", "linear", "ties"), rank=16))
    assert len(page) < 1_500_000
