"""The HTML report in a real browser: nothing is fetched, nothing fails, plots are drawn, it fits and it prints."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeprune.report import write_report
from tests import sample_results as sample
from tests.test_report import hostile_result

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = os.environ.get("EDGEPRUNE_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
LATENCY_COLUMN = 3

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"none of {', '.join(PROGRAMS)} is installed, and EDGEPRUNE_CHROMIUM names no browser"
)
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=PROGRAM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    one, bare = sample.result(), sample.result("bare")
    bare.update(measurements=[], comparisons=[], history=[], best_epoch=None)
    several = [one, sample.result("digits-r25", 0.25, 0.66, 0.9917), sample.result("digits-r75", 0.75, 0.16, 0.955)]
    results = {"one": one, "several": several, "hostile": hostile_result(), "bare": bare}
    return {name: write_report(result, folder / f"{name}.html") for name, result in results.items()}


@pytest.fixture
def opened(browser: Browser, files: dict[str, Path]) -> Iterator[Open]:
    """Open a report and fail on anything that a browser complains about or fetches."""
    problems: list[str] = []
    contexts = []

    def show(name: str, width: int = 1100, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request", lambda request: problems.append(request.url) if request.url != files[name].as_uri() else None
        )
        page.goto(files[name].as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert problems == []


def until(page: Page, expression: str, timeout_s: float = 20.0) -> None:
    """Wait for an expression to be true. Asked from outside: the page's own policy forbids evaluating text."""
    end = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"still not true after {timeout_s} s: {expression}"
        page.wait_for_timeout(50)


def drawn(page: Page) -> list[dict[str, Any]]:
    """Return for every plot what plotly made of it: its traces with points, and the width of its drawing."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.plot')].map((place) => ({
            name: place.dataset.figure,
            traces: place.querySelectorAll('.scatterlayer .trace').length,
            marks: place.querySelectorAll('.scatterlayer path').length,
            width: place.querySelector('svg') ? place.querySelector('svg').getBoundingClientRect().width : 0,
            room: place.getBoundingClientRect().width,
        }))"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1100])
def test_every_plot_is_drawn_and_nothing_sticks_out(opened: Open, width: int, scheme: str) -> None:
    page = opened("one", width, scheme)
    plots = drawn(page)
    assert len(plots) == 6
    for plot in plots:
        assert plot["traces"] >= 2, plot
        assert plot["marks"] >= 3, plot
        assert 0 < plot["width"] <= plot["room"] + 1, plot
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_table_reads_right(opened: Open) -> None:
    page = opened("one")
    lines = page.locator("table.data.wide").first.locator("tbody tr:not(.block)").all_inner_texts()
    assert [[cell.strip() for cell in line.split("\t")] for line in lines] == [
        ["baseline.onnx", "428 kB", "0.9944", "67.9 µs ± 0.6", "71.3 µs", "1.00x", "baseline"],
        ["model.onnx", "154 kB", "0.9861", "27.1 µs ± 0.2", "28.4 µs", "2.51x ± 0.04", "faster"],
        ["baseline.tflite", "416 kB", "0.9944", "88.4 µs ± 0.8", "92.8 µs", "1.00x", "baseline"],
        ["model.tflite", "150 kB", "0.9861", "35.2 µs ± 0.3", "37.0 µs", "2.51x ± 0.04", "faster"],
    ]
    assert page.locator("h1").inner_text() == "digits-r50"
    assert page.locator(".verdict").inner_text().startswith("onnx 2.51x faster")


def test_numbers_of_a_column_end_below_each_other(opened: Open) -> None:
    page = opened("one")
    edges = page.evaluate(
        f"""() => [...document.querySelectorAll('table.data.wide')][0].querySelectorAll(
            'tbody td:nth-child({LATENCY_COLUMN}) span').values().map((cell) => cell.getBoundingClientRect().right)
            .toArray()"""
    )
    assert len(edges) == 4
    assert max(edges) - min(edges) < 0.5


def test_a_phone_names_every_value(opened: Open) -> None:
    page = opened("one", 380)
    assert page.locator("table.data thead").first.bounding_box()["width"] <= 1
    shown = page.evaluate(
        """() => [...document.querySelectorAll('table.data.wide')][0].querySelectorAll('tbody tr')[1]
            .querySelectorAll('td').values().map((cell) => getComputedStyle(cell, '::before').content).toArray()"""
    )
    assert shown == ['"Size"', '"top1"', '"Latency p50"', '"p90"', '"Against baseline"', '"Verdict"']


def test_plots_follow_the_colour_scheme(opened: Open) -> None:
    page = opened("one", scheme="light")
    fill = "() => getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    light = page.evaluate(fill)
    page.emulate_media(color_scheme="dark")
    until(page, f"({fill})() !== {json.dumps(light)}")
    page.emulate_media(media="print")
    until(page, f"({fill})() === {json.dumps(light)}")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_several_runs_draw_their_plots_when_a_run_is_opened(opened: Open) -> None:
    page = opened("several")
    assert page.locator("h1").inner_text() == "3 runs"
    assert page.locator("table.data.wide").first.locator("tbody tr:not(.block)").count() == 6
    page.locator("details.run > summary").nth(1).click()
    until(page, "document.querySelectorAll('#run1 .plot svg.main-svg').length > 0")
    plots = [plot for plot in drawn(page) if plot["name"].startswith(("front", "run1"))]
    assert len(plots) == 2 + 4
    assert all(0 < plot["width"] <= plot["room"] + 1 for plot in plots)


@pytest.mark.parametrize("width", [380, 1100])
def test_hostile_names_run_nothing_and_fit(opened: Open, width: int) -> None:
    page = opened("hostile", width)
    assert page.evaluate("window.hacked") is None
    assert "</script><script>hacked = 1" in page.locator("h1").inner_text()
    assert page.locator("img").count() == 0
    assert all(plot["traces"] >= 1 for plot in drawn(page))
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_run_without_measurements_says_so(opened: Open) -> None:
    page = opened("bare")
    assert drawn(page) == []
    assert page.get_by_text("No latency was measured, so there is nothing to plot.").is_visible()


def test_the_raw_results_can_be_saved(opened: Open, tmp_path: Path) -> None:
    page = opened("one")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save it").click()
    download.value.save_as(tmp_path / "saved.json")
    (saved,) = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(sample.result()))


def test_it_prints_on_paper(opened: Open, tmp_path: Path) -> None:
    page = opened("one", scheme="dark")
    content = page.pdf(format="A4", print_background=False)
    assert content.startswith(b"%PDF")
    assert 2 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 8
