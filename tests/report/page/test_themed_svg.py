"""Plots inside a page: its colours and its font, legible in both schemes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sparsebert.report.page import themed_svg as module
from sparsebert.report.page.themed_svg import GROUNDS, INKS, contrast, themed, themed_svg
from sparsebert.report.plots import COLOURS, OWN_GROUND, new_figure

STYLE = (Path(module.__file__).parent / "page.css").read_text()


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [("#000000", "#ffffff", 21.0), ("#777777", "#ffffff", 4.48), ("#0072b2", "#0072b2", 1.0)],
)
def test_contrast_is_that_of_the_guidelines(one: str, other: str, ratio: float) -> None:
    assert contrast(one, other) == contrast(other, one) == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize("name", ["ink", "ground"])
def test_the_colours_are_those_of_the_page(name: str) -> None:
    pair = {"ink": INKS, "ground": GROUNDS}[name]
    assert f"--{name}: light-dark({pair['light']}, {pair['dark']});" in STYLE


@pytest.mark.parametrize("colour", [each.lower() for each in COLOURS])
@pytest.mark.parametrize("least", [3.0, 4.5])
def test_a_colour_is_legible_on_both_grounds_and_kept_where_it_is(colour: str, least: float) -> None:
    css = themed(colour, least)
    light, dark = re.fullmatch(r"light-dark\((.*), (.*)\)", css).groups() if "(" in css else (css, css)  # type: ignore[union-attr]
    for shown, scheme in ((light, "light"), (dark, "dark")):
        assert contrast(shown, GROUNDS[scheme]) >= least
        assert (shown == colour) == (contrast(colour, GROUNDS[scheme]) >= least)


def test_greys_turn_with_the_page() -> None:
    assert themed("#000000", 3.0) == f"light-dark({INKS['light']}, {INKS['dark']})"
    assert themed("#ffffff", 3.0) == f"light-dark({GROUNDS['light']}, {GROUNDS['dark']})"
    assert themed("#e6e6e6", 3.0) == "light-dark(#e9e9ea, #282b2e)"


@pytest.fixture
def svg() -> str:
    pytest.importorskip("matplotlib")
    figure, axes = new_figure()
    axes.plot([1, 2], [3, 4], color=COLOURS[4], marker="o", label="a line")
    axes.set_title("Title", color="0.5")
    axes.text(1.5, 3.5, "on a tile", color="white", gid=f"{OWN_GROUND}-1")
    axes.text(1.2, 3.2, "on a pale tile", color="black", gid=f"{OWN_GROUND}-2")
    axes.legend()
    return themed_svg(figure, "p7-", 'Described with "quotes" & <signs>')


def test_it_is_one_element_with_a_name(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert (root.tag, root.get("role")) == ("svg", "img")
    assert root.get("aria-label") == 'Described with "quotes" & <signs>'
    assert {"style", "metadata"}.isdisjoint(each.tag for each in root.iter())


def test_texts_stay_text_in_the_page_s_font(svg: str) -> None:
    assert ">Title</text>" in svg
    assert ">a line</text>" in svg
    assert "DejaVu" not in svg


def test_a_text_on_its_own_ground_keeps_its_colour(svg: str) -> None:
    for text, colour in (("on a tile", "#ffffff"), ("on a pale tile", "#000000")):
        (style,) = re.findall(rf'style="([^"]*)"[^>]*>{text}<', svg)
        assert f"fill: {colour}" in style
    assert "#ffffff" not in re.sub(r"<text[^>]*>on a tile", "", svg).replace("light-dark(#ffffff", "")


def test_ids_have_the_prefix_and_are_all_referred_to(svg: str) -> None:
    ids = set(re.findall(r' id="([^"]+)"', svg))
    referred = {one or other for one, other in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)}
    assert ids == referred != set()
    assert all(each.startswith("p7-") for each in ids)
