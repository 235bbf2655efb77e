"""report.html in a real Chromium: no complaint, nothing loaded, tables sort, maps follow, themes, phone, print, no script."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from analysis_samples import MODULES, made_up
from browser import Browser, find_browser
from test_page import HOSTILE, renamed

from robustmerge_kit.report.page import render_page

REPORT = made_up()
SMALL, LARGE, STRANGE = "small.html", "large.html", "strange.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pages")
    large = made_up(layers=32, adapters=8, modules=MODULES, methods=("robustmerge", "linear", "ties"), rank=16)
    for name, report in ((SMALL, REPORT), (LARGE, large), (STRANGE, renamed(REPORT, HOSTILE))):
        (place / name).write_text(render_page(report), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium), and RMKIT_TEST_BROWSER names none")
    with Browser(executable, tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def keep(browser: Browser, name: str) -> None:
    """A screenshot for those who want to look, where RMKIT_SCREENSHOTS names a folder."""
    place = os.environ.get("RMKIT_SCREENSHOTS")
    if place:
        (Path(place) / f"{name}.png").write_bytes(browser.picture())


SORTED = """(() => {
  const table = [...document.querySelectorAll("table")].find((each) => each.caption && each.caption.textContent.includes("%s"));
  const column = (index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
  const click = (index) => { table.tHead.rows[0].cells[index].querySelector("button").click(); return column(index); };
  const sort = (index) => table.tHead.rows[0].cells[index].getAttribute("aria-sort");
  return %s;
})()"""

SITES = """(() => {
  const table = document.querySelector("table.sites");
  const cells = (index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
  const heads = () => [...table.tHead.rows[0].cells].map((each) => each.textContent);
  const click = (name) => { table.tHead.rows[0].cells[heads().indexOf(name)].querySelector("button").click(); };
  const selects = () => [...document.querySelectorAll(".controls select")];
  const choose = (at, text) => {
    const select = selects()[at];
    select.value = [...select.options].findIndex((each) => each.textContent === text);
    select.dispatchEvent(new Event("change"));
  };
  %s
})()"""


def number(text: str) -> float | None:
    return None if text == "–" else float(text.replace("−", "-").rstrip(" %°").replace(",", ""))


@pytest.mark.parametrize("name", [SMALL, LARGE, STRANGE])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_opens_without_a_complaint_and_loads_nothing(
    browser: Browser, pages: Path, name: str, dark: bool, width: int
) -> None:
    browser.open(pages / name, width=width, dark=dark)
    assert browser.complaints == []
    assert browser.requests == [(pages / name).as_uri()]
    assert browser.run("document.querySelectorAll('.heat i').length") > 0
    assert browser.run("document.documentElement.scrollWidth") == width, "the page is wider than the screen"
    keep(browser, f"{Path(name).stem}-{'dark' if dark else 'light'}-{width}")


def test_a_complaint_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    """The tests above can fail: an error, a warning, a refused load and a request are all noticed."""
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.warn('a'); throw new Error('b')</script>")
    browser.open(page)
    text = " ".join(browser.complaints)
    assert "console.warning" in text
    assert "Error: b" in text
    assert any("x.png" in address for address in browser.requests)


def test_numbers_sort_downwards_then_upwards(browser: Browser, pages: Path) -> None:
    browser.open(pages / SMALL)
    before, down, falling, up, rising = browser.run(SORTED % ("Pairs", "[column(1), click(1), sort(1), click(1), sort(1)]"))
    values = [number(text) for text in before]
    assert [number(text) for text in down] == sorted(values, reverse=True)
    assert [number(text) for text in up] == sorted(values)
    assert (falling, rising) == ("descending", "ascending")


def test_names_sort_and_rows_stay_whole(browser: Browser, pages: Path) -> None:
    browser.open(pages / SMALL)
    rows, names, back = browser.run(
        SORTED % ("Pairs", "[[column(0), column(1)], (click(0), click(0)), [column(0), column(1)]]"),
    )
    assert names == sorted(rows[0], reverse=True)
    assert dict(zip(*rows, strict=True)) == dict(zip(*back, strict=True))


def test_the_table_of_sites_sorts_with_what_is_missing_last(browser: Browser, pages: Path) -> None:
    browser.open(pages / SMALL)
    browser.run(SITES % 'choose(1, "task-a × task-c");')
    first = browser.run(SITES % "return cells(2);")
    down = browser.run(SITES % 'click("cosine"); return cells(2);')
    up = browser.run(SITES % 'click("cosine"); return cells(2);')
    sites = browser.run(SITES % "return cells(0);")
    expected = sorted(site.pairs[1].cosine or 0.0 for site in REPORT.sites[:-1])
    assert [number(text) for text in down[:-1]] == pytest.approx(expected[::-1], abs=6e-4)
    assert [number(text) for text in up[:-1]] == pytest.approx(expected, abs=6e-4)
    assert first == up, "what is worst comes first until a column is chosen"
    assert down[-1] == up[-1] == "–"
    assert sites[-1] == "lm_head"


def test_natural_order_of_layers(browser: Browser, pages: Path) -> None:
    browser.open(pages / LARGE)
    script = 'click("site"); document.querySelector(".more").click(); return cells(0);'
    layers = [int(name.split(".")[2]) for name in browser.run(SITES % script) if name.startswith("model")]
    assert len(layers) == 224
    assert layers == sorted(layers)


def test_the_worst_of_all_pairs_is_the_least_cosine_and_the_most_conflict(browser: Browser, pages: Path) -> None:
    browser.open(pages / SMALL)
    heads, names, cosines, conflicts = browser.run(SITES % "return [heads(), cells(0), cells(2), cells(3)];")
    assert heads[2:4] == ["cosine", "sign conflict"]
    sites = sorted(REPORT.sites, key=lambda site: names.index(site.site))
    least = [min(pair.cosine or 0.0 for pair in site.pairs) for site in sites]
    most = [100 * max(pair.sign_conflict or 0.0 for pair in site.pairs) for site in sites]
    assert least == sorted(least)
    assert [number(text) for text in cosines] == pytest.approx(least, abs=6e-4)
    assert [number(text) for text in conflicts] == pytest.approx(most, abs=6e-2)


def test_map_and_table_follow_the_choice(browser: Browser, pages: Path) -> None:
    browser.open(pages / SMALL)
    before = browser.run("document.querySelector('.heat i').style.getPropertyValue('--v')")
    script = 'choose(0, "an adapter in the merge"); choose(1, "linear"); choose(2, "task-b"); return [heads(), cells(2)];'
    heads, cells = browser.run(SITES % script)
    assert heads[2] == "destroyed"
    destroyed = [100 * task.destroyed for site in REPORT.sites for task in (site.merges[1].tasks[1],) if task]
    assert [number(text) for text in cells] == pytest.approx(sorted(destroyed, reverse=True), abs=6e-2)
    assert browser.run("document.querySelector('.heat i').style.getPropertyValue('--v')") != before
    for group in ("one adapter", "the merged update", "all adapters together", "two adapters"):
        assert browser.run(SITES % f'choose(0, "{group}"); return heads().length;') > 2
    assert browser.complaints == []


def test_every_figure_of_every_group_can_be_shown(browser: Browser, pages: Path) -> None:
    browser.open(pages / SMALL)
    script = """
    let shown = 0;
    for (const group of [...selects()[0].options].map((each) => each.textContent)) {
      choose(0, group);
      for (const figure of [...selects().at(-1).options].map((each) => each.textContent)) {
        choose(selects().length - 1, figure);
        const legend = document.querySelector(".scale").textContent;
        const text = legend + document.querySelector("table.sites").textContent;
        if (/NaN|Infinity|undefined|null/.test(text)) return [group, figure];
        shown += 1;
      }
    }
    return shown;"""
    assert browser.run(SITES % script) > 25


def test_a_cell_says_its_site_and_value_when_pointed_at(browser: Browser, pages: Path) -> None:
    browser.open(pages / SMALL)
    box = "(() => { const b = document.querySelector('.heat i').getBoundingClientRect(); return [b.x + 5, b.y + 5]; })()"
    browser.run("document.querySelector('.heat').scrollIntoView({block: 'center'})")
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")
    browser.move(*browser.run(box))
    tip = "document.querySelector('.tip')"
    said = browser.run(f"[...{tip}.children].map((each) => each.textContent)")
    pair = min(REPORT.sites[0].pairs, key=lambda pair: pair.cosine or 0.0)
    assert said[0] == REPORT.sites[0].site
    assert number(said[1].removeprefix("cosine ")) == pytest.approx(pair.cosine, abs=6e-4)
    assert said[2] == f"task-{'abc'[pair.first]} × task-{'abc'[pair.second]}"
    assert not browser.run(f"{tip}.hidden")
    browser.move(2, 2)
    assert browser.run(f"{tip}.hidden")


def test_the_theme_is_that_of_the_system_and_text_can_be_read(browser: Browser, pages: Path) -> None:
    paper: dict[bool, float] = {}
    for dark in (False, True):
        browser.open(pages / SMALL, dark=dark)
        style = "(name) => getComputedStyle(document.querySelector(name)).color"
        texts = browser.run(f"""["body", "section > p", ".proof", ".mark", "caption"].map({style})""")
        colours = [luminance(text) for text in texts]
        paper[dark] = luminance(browser.run("getComputedStyle(document.body).backgroundColor"))
        for colour in colours:
            low, high = sorted((colour, paper[dark]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, "too little contrast to read"
    assert paper[False] > 0.9
    assert paper[True] < 0.02


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_it_prints_in_light_colours_without_controls(browser: Browser, pages: Path) -> None:
    browser.open(pages / LARGE, dark=True)
    assert browser.pdf().startswith(b"%PDF")
    assert luminance(browser.run("getComputedStyle(document.body).backgroundColor")) > 0.9
    assert browser.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
    browser.theme(dark=False)


def test_without_a_script_the_verdict_and_the_totals_stand_there(browser: Browser, pages: Path) -> None:
    browser.open(pages / SMALL, script=False)
    keep(browser, "no-script")
    text = browser.run("document.body.innerText")
    assert all(finding.sentence in text for finding in REPORT.verdict)
    assert "switched off" in text
    assert "Pairs, all sites together" in text
    assert browser.complaints == []


def test_hostile_names_do_nothing_and_can_be_read(browser: Browser, pages: Path) -> None:
    browser.open(pages / STRANGE)
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('img, [onerror], [onmouseover]').length") == 0
    names = browser.run(SITES % "return cells(0);")
    assert f"layers.0.{HOSTILE[0]}" in names
    assert HOSTILE[1] in browser.run("document.body.innerText")
    assert browser.complaints == []
