"""Elements of an HTML page, and numbers in tables and words. The serializer escapes all text, wherever it is from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str | None
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
MINUS = str.maketrans("-", "−")


def tag(name: str, /, *children: Child, **attributes: object) -> Element:
    """An element: `class_` means class, `aria_label` aria-label; children and attributes that are None are left out."""
    named = {key.rstrip("_").replace("_", "-"): _text(value) for key, value in attributes.items() if value is not None}
    element = Element(name, named)
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child is not None and len(element):
            element[-1].tail = (element[-1].tail or "") + _text(child)
        elif child is not None:
            element.text = (element.text or "") + _text(child)
    return element


def html(root: Element) -> str:
    """The document, in ASCII: whatever writes or reads it, no letter is lost."""
    return f"<!DOCTYPE html>\n{fragment(root)}\n"


def fragment(root: Element) -> str:
    """An element in ASCII, as a part of a document."""
    return ElementTree.tostring(root, encoding="us-ascii", method="html").decode()


def table(header: Sequence[Child], rows: Iterable[Sequence[Child]], class_: str = "") -> Element:
    """A plain table; columns that hold numbers (`exact`) stand to the right."""
    body = tag("tbody", *(tag("tr", *(cell_of(cell) for cell in row)) for row in rows))
    right = [cell.get("class") for cell in body[0]] if len(body) else [None] * len(header)
    head = tag("thead", tag("tr", *(tag("th", cell, class_=side) for cell, side in zip(header, right))))
    return tag("div", tag("table", head, body, class_=class_ or None), class_="wide")


def cell_of(cell: Child) -> Element:
    """A table's cell."""
    return tag("td", cell, class_="n" if isinstance(cell, Element) and cell.tag == "data" else None)


def details(summary: str, *inside: Child) -> Element:
    """Elements that open on a click."""
    return tag("details", tag("summary", summary), *inside)


def exact(value: int | float, shown: str) -> Element:
    """A number as it is shown, which a program can read in full."""
    return tag("data", shown, value=repr(float(value)))


def number(value: Any) -> float:
    """A number of a report; JSON keeps infinities as text. NaN for what is none."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def fixed(value: int | float, decimals: int) -> str:
    """With so many decimals; never -0."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "–")
    if abs(value) >= 1e9:
        return f"{value:.3g}".translate(MINUS)
    return f"{value:z,.{decimals}f}".translate(MINUS)


def signed(value: int | float, decimals: int) -> str:
    """As `fixed`, with a plus where it is above 0."""
    return ("+" if value > 0 else "") + fixed(value, decimals)


def rounded(value: int | float, digits: int = 3) -> str:
    """With so many significant digits, counts whole."""
    if not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    if value == int(value) and abs(value) < 1e9:
        return fixed(value, 0)
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}".translate(MINUS)
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def percent(share: int | float) -> str:
    """A share as percent, small ones with more digits."""
    if not math.isfinite(share):
        return "–"
    return f"{rounded(100 * share, 2)}\N{NO-BREAK SPACE}%"


def decimals_for(widths: Iterable[float]) -> int:
    """Decimals that intervals of these widths deserve: two digits of a typical one, one more for narrow ones."""
    finite = sorted(width for width in widths if math.isfinite(width) and width > 0)
    if not finite:
        return 4
    typical, least = (1 - math.floor(math.log10(width / 2)) for width in (finite[len(finite) // 2], finite[0]))
    return min(max(0, typical, min(least, typical + 1)), 15)


def _text(value: object) -> str:
    return UNPRINTABLE.sub("�", str(value))
