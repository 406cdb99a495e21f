"""Plots as SVG inside a page: in the page's colours, light or dark, and with its font."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from sparsebert.report.plots import OWN_GROUND

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Grounds and inks of the page, light and dark, as in page.css.
GROUNDS = {"light": "#ffffff", "dark": "#14171a"}
INKS = {"light": "#1c2024", "dark": "#e4e7ea"}
# Least contrast ratios of text and of other marks (WCAG 2.2, criteria 1.4.3 and 1.4.11).
TEXT_CONTRAST, MARK_CONTRAST = 4.5, 3.0

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_PAINT = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})\b")
_FONT_FAMILY = re.compile(r"font-family: [^;]*;?\s*")
_FONT = re.compile(r"\bfont: (?:(\w+) )?([\d.]+px) [^;]*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
Colour = tuple[float, float, float]


def themed_svg(figure: Figure, prefix: str, alt: str) -> str:
    """Return a figure as an ``<svg>`` element for a page.

    Texts stay text. Greys follow the page from black on white to light on dark; other colours are kept as far
    as their contrast with the ground allows. Pixels of images are not changed.

    Args:
        figure: The figure.
        prefix: Start of the element's ids, unique in the page.
        alt: Description in words.
    """
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sparsebert"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(content.getvalue())
    _strip(root)
    _paint(root, own_ground=False)
    _rename(root, prefix)
    width = float(root.attrib["width"].removesuffix("pt"))
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "preserveAspectRatio": "xMinYMin",
        "role": "img",
        "aria-label": alt,
        "style": f"--width: {width / 72:.2f}in",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _strip(root: ElementTree.Element) -> None:
    """Remove what a page does not need: namespaces, metadata, indentation, and the style of all elements."""
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                element.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        if element.tag not in ("text", "tspan"):
            element.text = element.tail = None


def _paint(element: ElementTree.Element, own_ground: bool) -> None:
    """Replace the colours of an element and of those in it."""
    own_ground = own_ground or element.get("id", "").startswith(OWN_GROUND)
    text = element.tag in ("text", "tspan")
    style = element.get("style", "")
    if own_ground and element.tag == "text":
        element.set("class", OWN_GROUND)
        if "fill:" not in style:
            style = f"fill: #000000; {style}"
    elif not own_ground:
        least = TEXT_CONTRAST if text else MARK_CONTRAST
        style = _PAINT.sub(lambda match: f"{match[1]}: {themed(match[2], least)}", style)
    if text:
        style = _FONT.sub(
            lambda match: f"font-size: {match[2]}{_weight(match[1])}", _FONT_FAMILY.sub("", style)
        )
    if style:
        element.set("style", style)
    for child in element:
        _paint(child, own_ground)


def _weight(word: str | None) -> str:
    return f"; font-weight: {word}" if word else ""


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Give ids that are referred to the prefix, and remove the others."""
    used = {
        name
        for element in root.iter()
        for value in element.attrib.values()
        for name in (*_REFERENCE.findall(value), *([value[1:]] if value.startswith("#") else ()))
    }
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{prefix}{name}")
        for key, value in element.attrib.items():
            element.attrib[key] = _REFERENCE.sub(rf"url(#{prefix}\1)", value)
        if (target := element.get("href", "")).startswith("#"):
            element.set("href", f"#{prefix}{target[1:]}")


def themed(colour: str, least: float) -> str:
    """Return the CSS of a colour in both schemes, ``light-dark(...)``, or the colour if it serves both.

    Args:
        colour: ``#rrggbb``.
        least: Least contrast with the ground; greys between ink and ground, such as grid lines, keep their
            place between the two instead.
    """
    pair = [_grey(colour, scheme, least) or _legible(colour, scheme, least) for scheme in GROUNDS]
    return pair[0] if pair[0] == pair[1] else f"light-dark({pair[0]}, {pair[1]})"


def _grey(colour: str, scheme: str, least: float) -> str | None:
    """Return a grey's equal between the scheme's ink and ground; None for other colours."""
    red, green, blue = _parts(colour)
    if max(red, green, blue) - min(red, green, blue) > 0.02:
        return None
    mixed = _mix(INKS[scheme], GROUNDS[scheme], green)
    # Text is never a part of the ground; lines may be.
    return _legible(mixed, scheme, least) if least == TEXT_CONTRAST else mixed


def _legible(colour: str, scheme: str, least: float) -> str:
    """Return the colour, mixed with as much of the scheme's ink as its contrast needs."""
    for share in range(11):
        mixed = _mix(colour, INKS[scheme], share / 10)
        if contrast(mixed, GROUNDS[scheme]) >= least:
            return mixed
    return INKS[scheme]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, from 1 to 21 (WCAG 2.2)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _parts(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mix(one: str, other: str, share: float) -> str:
    """Return a colour with this share of the other."""
    parts = (a + share * (b - a) for a, b in zip(_parts(one), _parts(other), strict=True))
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def _parts(colour: str) -> Colour:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue
