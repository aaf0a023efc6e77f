"""The pages in a real browser: nothing in its console, nothing of others run, at the width of a phone too."""

import shutil
import time

import pytest

from library.linting.findings import Finding, Kind, Place
from library.linting.page import findings_page
from library.reporting.index import SUMMARY, summary, write_index
from library.reporting.page import page
from library.reporting.server import Source, start
from library.reporting.texts import Text
from tests.helpers import browser
from tests.helpers.adapter_pages import page_of
from tests.helpers.dataset_files import draw
from tests.helpers.records import HOSTILE, record_of

PROGRAM = browser.installed()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium here: apt-get install chromium")
WIDTHS = {"phone": 390, "desk": 1280}


@pytest.fixture(scope="module")
def tab():
    with browser.started(PROGRAM) as running:
        yield running.page()


@pytest.fixture(scope="module")
def record():
    return record_of(HOSTILE, blocks=6)


@pytest.fixture(scope="module")
def folder(record, tmp_path_factory):
    """Two reports and their index."""
    folder = tmp_path_factory.mktemp("shown")
    document = record.document()
    text = page(record.outline.name, "run.js", {SUMMARY: summary(document), "record": document})
    (folder / "a_report.html").write_text(text, encoding="utf-8")
    shutil.copy(folder / "a_report.html", folder / "b'<i>&_report.html")
    write_index(folder)
    return folder


def check(tab) -> str:
    """Nothing of others ran or became an element, nothing is wider than the window; returns the text."""
    assert tab.run("typeof window.pwned") == "undefined"
    assert tab.run("document.querySelectorAll('img[src=x], svg[onload], main script, main i i').length") == 0
    width, window = tab.run("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= window
    assert tab.errors == []
    return tab.run("document.querySelector('main').innerText")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_report_shows_all_and_runs_nothing_of_others(tab, folder, width):
    tab.open((folder / "a_report.html").as_uri(), width, phone=width < 500)
    text = check(tab)
    assert text.count(HOSTILE) > 20  # as text
    tab.until("document.querySelectorAll('.plot svg').length === 11")
    assert tab.run("[...document.querySelectorAll('.plot path')].every((path) => !path.getAttribute('d').includes('NaN'))")
    assert tab.run("[...document.querySelectorAll('.strip figure')].slice(0, 3).map((each) => each.innerText.match(/step (\\d+)/)[1]).join()") == "200,1000,800"
    assert tab.run("[...document.images].every((image) => image.naturalWidth > 0 || image.loading === 'lazy')")


def test_a_chart_tells_its_values_where_the_pointer_is(tab, folder):
    tab.open((folder / "a_report.html").as_uri())
    tab.until("document.querySelector('.plot svg') !== null")
    tab.run("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    x, y = tab.run("(() => { const box = document.querySelector('.plot svg').getBoundingClientRect(); return [box.x + box.width / 2, box.y + 80]; })()")
    tab.pointer("mouseMoved", x, y)
    told = tab.until("document.querySelector('.plot .tip:not([hidden])')?.innerText")
    assert told.startswith("step ") and all(name in told for name in ("raw", "smoothed", "epoch mean"))


def test_language_and_theme_change_and_stay(tab, folder):
    tab.open((folder / "a_report.html").as_uri())
    before = tab.run("getComputedStyle(document.body).backgroundColor")
    for number in (0, 1):
        tab.run(f"document.querySelectorAll('.tools button')[{number}].click()")
    assert "学习率" in check(tab) and "learning rate" not in check(tab)
    assert tab.run("getComputedStyle(document.body).backgroundColor") != before
    for _ in range(20):  # the browser writes what a page remembers a little later
        tab.open((folder / "index.html").as_uri())
        if "训练对比" in check(tab):
            break
        time.sleep(0.1)
    assert "训练对比" in check(tab)
    tab.run("localStorage.clear()")


def test_a_table_is_sorted_by_the_column_that_is_clicked(tab, folder):
    tab.open((folder / "a_report.html").as_uri())
    rows = "[...document.querySelectorAll('th')].find((each) => each.innerText === 'pictures').closest('table')"
    tab.run("[...document.querySelectorAll('th')].find((each) => each.innerText === 'pictures').click()")
    assert tab.run(f"[...{rows}.querySelectorAll('tbody tr')].map((row) => row.cells[3].innerText).join()") == "3,12,25"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_index_compares_runs_and_leads_to_their_reports(tab, folder, width):
    tab.open((folder / "index.html").as_uri(), width, phone=width < 500)
    assert check(tab).count(HOSTILE) > 2
    tab.until("document.querySelectorAll('.plot svg').length === 2")
    links = tab.run("[...document.querySelectorAll('td a')].map((each) => each.getAttribute('href'))")
    assert sorted(links) == ["./a_report.html", "./b'%3Ci%3E%26_report.html"]
    tab.run("document.querySelectorAll('td a')[1].click()")
    tab.until("document.querySelectorAll('.plot svg').length === 11")


def test_the_live_page_follows_and_its_buttons_ask(tab, tmp_path):
    record = record_of(HOSTILE, steps=200, blocks=2)
    server = start(None, Source(record, tmp_path, lambda: record.step))
    try:
        tab.open(server.address, WIDTHS["phone"], phone=True)
        check(tab)
        record.step = 203
        tab.until("document.querySelector('.figure').innerText.startsWith('203 / 1600')")
        record.add_values(205, {"loss/current": 0.5, "eval/new": 1.0})
        record.add_note("WARNING", HOSTILE)
        tab.until("document.querySelectorAll('.notes li').length === 2")
        tab.run("document.querySelector('button.main').click()")
        tab.until("[...document.querySelectorAll('.words')].some((each) => each.innerText.includes('asked for'))")
        assert [file.name for file in tmp_path.iterdir()] == ["save"]
        record.end("done", "done: all steps")
        tab.until("document.querySelector('.pill').innerText === 'done'")
        assert "done: all steps" in check(tab)
    finally:
        server.close()
    assert tab.run("document.querySelectorAll('button.main').length") == 0
    assert tab.errors == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_page_about_adapters_shows_all_in_both_languages(tab, tmp_path, width):
    file = tmp_path / "adapters.html"
    file.write_text(page_of(HOSTILE).html(), encoding="utf-8")
    tab.open(file.as_uri(), width, phone=width < 500)
    english = check(tab)
    assert english.count(HOSTILE) > 20 and "（中文）" not in english
    tab.until("document.querySelectorAll('.plot svg').length === 1")
    cells = "[...document.querySelector('section:has(table.heat)').querySelectorAll('td')].map((each) => each.title).join('|')"
    first = tab.run(cells)
    assert "blocks.0.mlp.layer1: 0.25" in first.split("|")
    tab.run("document.querySelectorAll('section .tools button')[1].click()")
    assert "blocks.0.mlp.layer1: 0.5" in tab.run(cells).split("|")
    tab.run("document.querySelector('header .tools button').click()")
    assert "（中文）" in check(tab) and "more places" not in check(tab)
    tab.run("localStorage.clear()")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_page_of_findings_shows_pictures_and_words_of_others_as_text(tab, tmp_path, width):
    picture = draw(tmp_path / "a.png")
    alike = Place((picture, tmp_path / "gone.png"), (f"a.png{HOSTILE}", "gone.png"))
    alone = [Place((picture,), ("a.txt",), f"tag {n} {HOSTILE}") for n in range(9)]
    kind = Kind("kind", Text(f"a kind {HOSTILE}", "一种"), Text("mend it", "修改"))
    findings = [Finding(kind, (alike,)), Finding(kind, tuple(alone), HOSTILE), Finding(kind, (Place((), ()),))]
    file = tmp_path / "findings.html"
    file.write_text(findings_page(HOSTILE, findings, 3), encoding="utf-8")
    tab.open(file.as_uri(), width, phone=width < 500)
    assert check(tab).count(HOSTILE) > 14
    assert tab.run("document.images.length") == 10
    assert tab.run("[...document.images].every((image) => image.src.startsWith('data:'))")
    tab.run("document.querySelectorAll('.tools button')[0].click()")
    assert "一种" in check(tab) and "a kind" not in check(tab)
    tab.run("localStorage.clear()")
