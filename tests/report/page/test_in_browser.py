"""A page as a reader meets it: in a headless Chromium, light and dark, on a phone, on paper, by keyboard.

Screenshots for a person to look at go to the folder that ``SPARSEBERT_SCREENSHOTS`` names, by default a
temporary one. ``SPARSEBERT_CHROMIUM`` names a browser that is not on the path.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsebert
from sparsebert import Ticket
from sparsebert.report.page import Report
from sparsebert.report.sections import Section, sections
from sparsebert.report.table import Table
from sparsebert.results import read
from tests.report.page.test_content import picture

pytestmark = pytest.mark.browser
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHECKS = (Path(__file__).parent / "browser_checks.js").read_text().partition("\n")[2]
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Without them, a browser as root does not start, and looks for its updates.
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PHONE = {"width": 360, "height": 780}
DESKTOP = {"width": 1280, "height": 900}
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = (shutil.which(name) for name in NAMES)
        path = os.environ.get("SPARSEBERT_CHROMIUM") or next(filter(None, found), None)
        if path is None and not Path(own).exists():
            pytest.skip(
                f"no Chromium: none of {', '.join(NAMES)} is on the path, playwright has installed none"
            )
        launched = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def results_page(folder: Path) -> Path:
    """Lines, points, bars, and tables of all shapes, from the committed results."""
    files = [RESULTS / f"{name}.jsonl" for name in ("lottery", "arena", "models", "serving", "aot")]
    records = [row for file in files for row in read(file)]
    made = Report("Results", records, sections(records), [file.name for file in files])
    return write(folder / "results.html", made)


@pytest.fixture(scope="module")
def small_page(folder: Path) -> Path:
    """Heat maps, a picture as pixels, and titles, headings and cells of any length."""
    masks = {
        f"encoder.layer.{layer}.attention.self.{name}": torch.rand(
            24, 24, generator=torch.Generator().manual_seed(layer)
        )
        > 0.3 + 0.2 * layer
        for layer in range(2)
        for name in ("query", "key", "value")
    }
    tickets = [Ticket(masks, metadata={"seed": seed, "model": {"heads": 2}}) for seed in (1, 2)]
    inspection = sparsebert.inspect(tickets)
    wide = Table(
        "Wide " + "word" * 40, ("name " * 9, "ms", "unit"), (("a" * 90, "10", "2 s"), ("b", "9", "1 min"))
    )
    order = Table("Sorted", ("name", "ms"), (("c", "1,000"), ("a", "-"), ("b 10", "20.5?"), ("b 9", "3")))
    pixels = picture(1, 4000)
    made = Report(
        "Tickets " + "x" * 90,
        inspection.records,
        [Section(inspection.tables, inspection.pictures, "Weights"), Section([wide, order], [pixels])],
    )
    return write(folder / "small.html", made)


def write(file: Path, made: Report) -> Path:
    file.write_text(made.html(), encoding="utf-8")
    assert file.stat().st_size < 3_000_000
    return file


@pytest.fixture(params=["results_page", "small_page"])
def file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page; fails at the end if the page complained or asked for anything but itself."""
    contexts: list[Any] = []
    complaints: list[str] = []
    requests: set[str] = set()

    def open_page(file: Path, scheme: str = "light", size: dict[str, int] = DESKTOP, **options: Any) -> Any:
        context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.add(request.url))
        page.goto(file.as_uri())
        page.evaluate(CHECKS)
        requests.discard(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:image/png")} == set()


class TestColours:
    @pytest.mark.parametrize("scheme", GROUND)
    def test_every_text_has_the_contrast_that_readers_need(
        self, opened: Any, file: Path, scheme: str
    ) -> None:
        found = opened(file, scheme).evaluate("checks.contrasts()")
        assert found["texts"] > 100
        assert found["poor"] == []

    @pytest.mark.parametrize("system", GROUND)
    @pytest.mark.parametrize("chosen", GROUND)
    def test_a_reader_may_choose_another_scheme_than_the_system_s(
        self, opened: Any, small_page: Path, system: str, chosen: str
    ) -> None:
        page = opened(small_page, system)
        assert ground(page) == GROUND[system]
        page.get_by_role("radio", name=chosen).check()
        assert ground(page) == GROUND[chosen]
        assert page.evaluate("checks.contrasts()")["poor"] == []
        page.get_by_role("radio", name="system").check()
        assert ground(page) == GROUND[system]

    def test_paper_is_white_in_the_dark(self, opened: Any, small_page: Path) -> None:
        page = opened(small_page, "dark")
        page.get_by_role("radio", name="dark").check()
        page.emulate_media(media="print")
        assert ground(page) == GROUND["light"]
        assert not page.get_by_role("navigation").is_visible()
        assert page.evaluate("checks.contrasts()")["poor"] == []


def ground(page: Any) -> str:
    css: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return css


class TestNotebooks:
    """What objects show of themselves, on the grounds of JupyterLab's themes."""

    @pytest.mark.parametrize(("ink", "ground"), [("#000000", "#ffffff"), ("#ffffff", "#111111")])
    def test_every_text_is_legible_on_any_ground(
        self, opened: Any, folder: Path, ink: str, ground: str
    ) -> None:
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        ticket = sparsebert.prune(model, "magnitude", sparsity=0.5)
        objects = (
            ticket,
            sparsebert.plan(model, ticket, tokens=8, measure=False),
            sparsebert.inspect([ticket]),
        )
        shown = "".join(each._repr_html_() for each in objects)
        file = folder / "notebook.html"
        style = f"color: {ink}; background: {ground}"
        file.write_text(f'<!doctype html><title>Notebook</title><body style="{style}">{shown}')
        contrasts = opened(file).evaluate("checks.contrasts()")
        assert contrasts["texts"] > 30
        assert contrasts["poor"] == []


class TestLayout:
    @pytest.mark.parametrize("width", [320, 360, 1024, 1280, 1920])
    def test_nothing_is_wider_than_the_window(self, opened: Any, file: Path, width: int) -> None:
        page = opened(file, size={"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.mouse.wheel(300, 0)
        assert page.evaluate("window.scrollX") == 0

    def test_no_heading_is_skipped_and_each_part_is_a_landmark(self, opened: Any, file: Path) -> None:
        page = opened(file)
        levels = page.eval_on_selector_all(
            "h1, h2, h3, h4", "all => all.map((each) => Number(each.tagName[1]))"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        for role in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(role).count() == 1

    def test_links_are_large_enough_for_a_finger(self, opened: Any, file: Path) -> None:
        for size in (DESKTOP, PHONE):
            heights = opened(file, size=size).eval_on_selector_all(
                "nav a, .scheme label",
                "all => all.filter((each) => each.checkVisibility()).map((each) => each.offsetHeight)",
            )
            assert min(heights) >= 24

    def test_every_picture_has_a_name(self, opened: Any, file: Path) -> None:
        page = opened(file)
        pictures = page.locator("svg, img")
        assert pictures.count() == page.get_by_role("img", name="").count() > 2
        for name in pictures.evaluate_all("all => all.map((each) => each.ariaLabel ?? each.alt)"):
            assert len(name) > 5

    def test_without_scripts_all_is_there_but_the_buttons(self, opened: Any, small_page: Path) -> None:
        page = opened(small_page, java_script_enabled=False)
        assert page.get_by_role("cell", name="20.5?").is_visible()
        assert page.get_by_role("button").count() == 0


class TestKeyboard:
    @pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
    def test_tab_reaches_everything_in_order_and_shows_where_it_is(
        self, opened: Any, small_page: Path, size: dict[str, int]
    ) -> None:
        page = opened(small_page, size=size)
        expected = page.evaluate("checks.focusable()")
        assert len(expected) > 30
        reached = []
        for _ in expected:
            page.keyboard.press("Tab")
            focused = page.evaluate("checks.focused()")
            reached.append(focused["name"])
            assert focused["outline"] == "solid", focused
            assert focused["inside"], focused
        assert reached == expected

    def test_the_first_link_leads_past_the_contents(self, opened: Any, small_page: Path) -> None:
        page = opened(small_page)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "results"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main') !== null")

    def test_a_wide_table_takes_the_focus_and_scrolls_and_one_that_fits_does_not(
        self, opened: Any, small_page: Path
    ) -> None:
        page = opened(small_page, size=PHONE)
        wide = page.get_by_role("group", name="Table: Wide")
        wide.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(500)
        assert wide.evaluate("each => each.scrollLeft") > 0
        assert page.get_by_role("group", name="Table: Sorted").get_attribute("tabindex") is None


class TestSorting:
    def test_a_heading_sorts_up_down_and_back(self, opened: Any, small_page: Path) -> None:
        page = opened(small_page)
        table = page.get_by_role("group", name="Table: Sorted")
        names = table.get_by_role("rowheader")
        first = ["c", "a", "b 10", "b 9"]
        assert names.all_text_contents() == first
        for column, order, expected in [
            ("ms", "ascending", ["b 9", "b 10", "c", "a"]),
            ("ms", "descending", ["c", "b 10", "b 9", "a"]),
            ("ms", None, first),
            ("name", "ascending", ["a", "b 9", "b 10", "c"]),
        ]:
            header = table.get_by_role("columnheader", name=column)
            header.get_by_role("button").press("Enter")
            assert names.all_text_contents() == expected
            assert header.get_attribute("aria-sort") == order
        assert table.locator("[aria-sort]").count() == 1

    def test_figures_of_several_units_are_not_sorted_by_their_digits(self, opened: Any, folder: Path) -> None:
        rows = (("a", "2 s", "5 ms"), ("b", "1 min", "7 ms"), ("c", "3 s", "6 ms"))
        made = Report("Units", [], [Section([Table("Units", ("name", "time", "ms"), rows)], [])])
        page = opened(write(folder / "units.html", made))
        assert page.get_by_role("button").all_text_contents() == ["name", "ms"]


def test_screenshots_for_a_person(opened: Any, file: Path, tmp_path: Path) -> None:
    target = Path(os.environ.get("SPARSEBERT_SCREENSHOTS", tmp_path))
    target.mkdir(parents=True, exist_ok=True)
    for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
        for scheme in GROUND:
            page = opened(file, scheme, size)
            height = min(6000, page.evaluate("document.documentElement.scrollHeight"))
            clip = {"x": 0, "y": 0, "width": size["width"], "height": height}
            page.screenshot(path=target / f"{file.stem}-{name}-{scheme}.png", full_page=True, clip=clip)
    page.pdf(path=target / f"{file.stem}.pdf", prefer_css_page_size=True, print_background=True)
    assert len(list(target.glob(f"{file.stem}*"))) == 5
    print(f"screenshots: {target}")
