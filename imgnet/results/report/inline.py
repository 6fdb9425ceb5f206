"""Matplotlib's pictures as part of a page whose policy forbids styles that it does not know."""

import re
import xml.etree.ElementTree as ET
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from imgnet.results.pictures.panels import GID, UNFINISHED, Panel, Style

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
FONT_SIZE = re.compile(r"(\d+(?:\.\d+)?)px")
NUMBER = re.compile(r"-?\d+\.\d+")
INCHES = (4.6, 3.2)


def to_svg(panel: Panel, name: str) -> str:
    """Draw a panel as an ``svg`` element.

    Styles become attributes, which no policy forbids; what belongs to a group has ``data-group``; identifiers begin
    with ``name``, for a page has many pictures.
    """
    figure = Figure(figsize=INCHES, layout="constrained")
    panel.draw(figure.subplots())
    written = BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(written.getvalue())  # noqa: S314  (matplotlib wrote it)
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for element in root.iter():
        _make_inline(element, name)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": panel.title}
    return ET.tostring(root, encoding="unicode")


def _make_inline(element: ET.Element, name: str) -> None:
    element.tag = element.tag.removeprefix(SVG)
    attributes: dict[str, Any] = element.attrib
    attributes |= _attributes_of(attributes.pop("style", ""))
    if target := attributes.pop(HREF, None):
        attributes["href"] = target.replace("#", f"#{name}-")
    if identifier := attributes.pop("id", None):
        number = GID.fullmatch(identifier)
        attributes |= {"data-group": number[1]} if number else {"id": f"{name}-{identifier}"}
    for key, value in attributes.items():
        if "url(#" in value:
            attributes[key] = value.replace("url(#", f"url(#{name}-")
    for key in ("d", "x", "y"):
        if key in attributes:
            attributes[key] = NUMBER.sub(_tenths, attributes[key]).replace("\n", "")


def _tenths(number: re.Match[str]) -> str:
    """A picture of 330 units needs no finer ones."""
    return f"{float(number[0]):.1f}".removesuffix(".0")


def _attributes_of(style: str) -> dict[str, str]:
    pairs = [declaration.split(":", 1) for declaration in style.split(";") if ":" in declaration]
    found = {key.strip(): value.strip() for key, value in pairs}
    if size := FONT_SIZE.search(found.pop("font", "")):
        found["font-size"] = size[1]
    found.pop("font-family", None)
    return {key: value for key, value in found.items() if value}


def swatch_svg(index: int, *, is_finished: bool) -> str:
    """The line and the marker of a group, for the legend beside the pictures."""
    style = Style.of(index)
    dashes = style.line if is_finished else UNFINISHED
    drawn = f' stroke-dasharray="{" ".join(f"{1.6 * length:g}" for length in dashes[1])}"' if dashes[1] else ""
    line = f'<path d="M0 6H36" stroke="{style.colour}" stroke-width="1.6"{drawn}/>'
    marker = MarkerStyle(style.marker)
    outline = marker.get_path().transformed(marker.get_transform()).to_polygons()[0]
    points = " ".join(f"{18 + 7 * x:.1f},{6 - 7 * y:.1f}" for x, y in np.asarray(outline))
    return f'<svg viewBox="0 0 36 12" aria-hidden="true">{line}<polygon points="{points}" fill="{style.colour}"/></svg>'
