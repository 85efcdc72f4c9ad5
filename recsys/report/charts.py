"""Charts for a page, as small SVG elements that take their colors from the page: light, dark or printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from recsys.report.markup import (
    Child,
    Element,
    cell_of,
    decimals_for,
    details,
    exact,
    fixed,
    percent,
    rounded,
    table,
    tag,
)

WIDTH, HEIGHT, MARGIN = 300, 24, 10  # of a row of intervals
LONG = 3  # typical widths that an interval may reach beyond its value before the axis is cut
FAR = 4  # the same for how far an UNRELIABLE value may lie from the others
TALL, BROAD, LEFT = 150, 520, 44  # of a chart of bars
SHARES = {"rows_share": "share of rows", "weight_share": "share of weight"}


@dataclass(frozen=True)
class Bar:
    """A row of a chart of intervals: an estimate with its interval, judged; NaN where there is no value.

    before, after: cells to the left of the numbers and to the right of the interval. mark: another value to show.
    """

    before: tuple[Child, ...]
    value: float
    low: float
    high: float
    level: str = ""
    mark: float = math.nan
    after: tuple[Child, ...] = ()
    chosen: bool = False

    @property
    def bounded(self) -> bool:
        """False where nothing is known of how far the estimate may be off."""
        return math.isfinite(self.low) or math.isfinite(self.high)


@dataclass(frozen=True)
class Axis:
    """From where to where a chart goes, and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        """The place of a value in a row, cut at the ends."""
        share = (value - self.low) / (self.high - self.low)
        return round(MARGIN + (WIDTH - 2 * MARGIN) * min(max(share, 0.0), 1.0), 1)

    def holds(self, value: float) -> bool:
        """True for a number between the ends."""
        return self.low <= value <= self.high


def axis_of(bars: Sequence[Bar], reference: float = math.nan) -> Axis:
    """An axis for all values that may be relied on, and for others not far away; long intervals are cut.

    The measure of far and long is the typical width of intervals, so that one absurd interval does not hide the rest.
    """
    known = [bar for bar in bars if math.isfinite(_middle(bar))]
    trusted = [bar for bar in known if bar.level != "UNRELIABLE"]
    widths = [bar.high - bar.low for bar in trusted or known if 0 < bar.high - bar.low < math.inf]
    typical = median(widths) if widths else 0.0
    center = median(map(_middle, trusted or known)) if known else 0.0
    ends = [reference] if math.isfinite(reference) else []
    for bar in known:
        middle, reach = _middle(bar), (LONG if bar in trusted else 1) * typical
        if bar in trusted or abs(middle - center) <= FAR * typical:
            ends += [
                middle,
                *(middle + min(max(end - middle, -reach), reach) for end in (bar.low, bar.high) if math.isfinite(end)),
            ]
            ends += [bar.mark] if abs(bar.mark - middle) <= reach else []
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = 0.04 * (high - low) or abs(high) / 10 or 1.0
    low, high = low - room, high + room
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return Axis(low, high, tuple(float(tick) for tick in ticks if low <= tick <= high))


def _middle(bar: Bar) -> float:
    return bar.value if math.isfinite(bar.value) else (bar.low + bar.high) / 2


def intervals(
    header: Sequence[str], groups: Sequence[tuple[str, Sequence[Bar]]], reference: float, what: str
) -> Element:
    """Groups of estimates as a table with a chart beside the numbers, all on one axis, with a line at `reference`.

    header: names of the cells before the numbers, and of those after the chart. what: the interval's name.
    """
    bars = [bar for _, group in groups for bar in group]
    axis = axis_of(bars, reference)
    decimals = decimals_for(bar.high - bar.low for bar in bars)
    before, after = len(bars[0].before), len(bars[0].after)
    shown = 3 if any(math.isfinite(bar.value) for bar in bars) else 2  # ranges without an estimate have two numbers
    names = [*header[:before], *["estimate"][: shown - 2], what, "", "", *header[before:]]
    grid = "".join(f"M{axis.x(tick)} 0v{HEIGHT}" for tick in axis.ticks)
    head = tag("tr", *(tag("th", name) for name in names))
    for name in (*head[before : before + shown - 1], *head[before + shown + 1 :]):
        name.set("class", "n")
    head[before + shown - 2].set("colspan", "2")
    body = tag("tbody")
    for title, group in groups:
        if title:
            body.append(tag("tr", tag("th", title, colspan=len(names) + 1), class_="group"))
        body.extend([_row(bar, axis, decimals, grid, reference, shown) for bar in group])
    foot = tag(
        "tr", tag("td", colspan=before + shown), tag("td", _scale(axis), class_="p"), tag("td", colspan=1 + after)
    )
    drawn = tag("div", tag("table", tag("thead", head), body, tag("tfoot", foot), class_="bars"), class_="wide")
    return tag("div", drawn, _cut(bars, axis))


def _row(bar: Bar, axis: Axis, decimals: int, grid: str, reference: float, shown: int) -> Element:
    numbers = [exact(x, fixed(x, decimals)) for x in (bar.value, bar.low, bar.high)[-shown:]]
    names = (tag("td", cell, title=cell if isinstance(cell, str) and len(cell) > 24 else None) for cell in bar.before)
    chart = tag("td", _interval(bar, axis, grid, reference), class_="p")
    classes = " ".join(name for name in (bar.level, "chosen" if bar.chosen else "") if name)
    judged = tag("td", chip(bar.level))
    return tag("tr", *names, *map(cell_of, numbers), chart, judged, *map(cell_of, bar.after), class_=classes or None)


def _interval(bar: Bar, axis: Axis, grid: str, reference: float) -> Element:
    """One row's picture: arrows where an interval goes on beyond the axis, a hollow mark for what is UNRELIABLE."""
    middle = HEIGHT // 2
    svg = tag("svg", tag("path", class_="g", d=grid), viewBox=f"0 0 {WIDTH} {HEIGHT}", aria_hidden="true")
    if axis.holds(reference):
        svg.append(tag("path", class_="r", d=f"M{axis.x(reference)} 0v{HEIGHT}"))
    if axis.holds(bar.mark):
        svg.append(tag("path", class_="k", d=f"M{axis.x(bar.mark)} 5v{HEIGHT - 10}"))
    if bar.bounded and not math.isnan(bar.low + bar.high):
        line = f"M{axis.x(bar.low)} {middle}H{axis.x(bar.high)}"
        for end, beyond, into in ((bar.low, bar.low < axis.low, 6), (bar.high, bar.high > axis.high, -6)):
            x = axis.x(end)
            line += f"M{x + into} {middle - 5}L{x} {middle}l{into} 5" if beyond else f"M{x} {middle - 4}v8"
        svg.append(tag("path", class_="i", d=line))
    if axis.holds(bar.value):
        svg.extend(_mark(axis.x(bar.value), middle, bar.level))
    return svg


def _mark(x: float, y: int, level: str) -> list[Element]:
    if level == "CAUTION":
        return [tag("path", class_="m", d=f"M{x - 5:.1f} {y + 4}h10l-5 -9z")]
    circle = tag("circle", class_="m", cx=x, cy=y, r=4)
    return [circle, tag("path", class_="i", d=f"M{x - 5:.1f} {y + 5}l10 -10")] if level == "UNRELIABLE" else [circle]


def _scale(axis: Axis) -> Element:
    step = axis.high - axis.low
    decimals = next((d for d in range(15) if all(abs(round(x, d) - x) < 1e-6 * step for x in axis.ticks)), 15)
    labels = [tag("text", fixed(tick, decimals), x=axis.x(tick), y=14) for tick in axis.ticks]
    return tag("svg", *labels, viewBox=f"0 0 {WIDTH} {HEIGHT}", aria_hidden="true")


def _cut(bars: Sequence[Bar], axis: Axis) -> Element | None:
    """A note on marks that the axis does not show."""
    outside = sum(math.isfinite(bar.value) and not axis.holds(bar.value) for bar in bars)
    longer = sum(bar.bounded and (bar.low < axis.low or bar.high > axis.high) for bar in bars)
    if not outside and not longer:
        return None
    told = f"The axis is cut: {longer} of {len(bars)} intervals go on where the arrows point"
    told += f", and {outside} of the estimates themselves lie beyond" if outside else ""
    return tag("p", f"{told}. The numbers are in the table.", class_="note")


def chip(level: str) -> Element | None:
    """A verdict: a word, with a color and a sign."""
    return tag("span", level, class_=f"chip {level}") if level else None


def shares(rows: Sequence[dict[str, Any]], what: str) -> Element:
    """Bars on a log axis for the share of rows and of weight in each bin; what is 0 stands apart, on the left.

    rows: low, high, rows, rows_share, weight_share; each bin an octave, the outermost perhaps open.
    """
    octaves = [_octave(row) for row in rows]
    some = [octave for octave in octaves if octave is not None]
    first, last = (min(some), max(some)) if some else (0, 0)
    zero = 1.5 if len(some) < len(rows) else 0.0  # the room for it, in bins
    step = min((BROAD - LEFT - 10) / (last - first + 1 + zero), 60)
    right = round(LEFT + 8 + step * (last - first + 1 + zero), 1)
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(0, max(_top(row) for row in rows))]
    svg = tag("svg", viewBox=f"0 0 {BROAD} {TALL + 40}", role="img", aria_label=f"shares by {what}", class_="shares")
    for tick in ticks:
        y = round(TALL * (1 - tick / ticks[-1]) + 8, 1)
        svg.append(tag("path", class_="g", d=f"M{LEFT} {y}H{right}"))
        svg.append(tag("text", percent(tick), x=LEFT - 6, y=y + 4, class_="e"))
    for row, octave in zip(rows, octaves):
        x = LEFT + 4 + step * (0 if octave is None else octave - first + zero)
        for name, shift in zip(SHARES, (0.06, 0.5)):
            tall = round(TALL * row[name] / ticks[-1], 1)
            place = {"x": round(x + shift * step, 1), "y": round(TALL + 8 - tall, 1), "width": round(0.44 * step, 1)}
            svg.append(tag("rect", class_=name, height=tall, **place))
    if zero:
        svg.append(tag("text", "0", x=round(LEFT + 4 + step / 2, 1), y=TALL + 23))
    for tick in _log_ticks(first, last + (rows[-1]["low"] < rows[-1]["high"])):
        x = round(LEFT + 4 + step * (math.log2(tick) - first + zero), 1)
        svg.append(tag("path", class_="t", d=f"M{x} {TALL + 8}v4"))
        svg.append(tag("text", _power(tick), x=x, y=TALL + 23))
    svg.append(tag("text", what, x=LEFT, y=TALL + 38, class_="s"))
    legend = [tag("span", text, class_=f"key {name}") for name, text in SHARES.items()]
    cells: list[list[Child]] = [
        [_bin(row), exact(row["rows"], rounded(row["rows"])), *(exact(row[k], percent(row[k])) for k in SHARES)]
        for row in rows
    ]
    numbers = details("numbers", table(["from, to", "rows", *SHARES.values()], cells))
    return tag("figure", tag("figcaption", *legend), svg, numbers)


def _octave(row: dict[str, Any]) -> int | None:
    """The power of 2 at which a bin begins; None for the one of 0."""
    if row["high"] == 0:
        return None
    return round(math.log2(row["low"])) if row["low"] > 0 else round(math.log2(row["high"])) - 1


def _top(row: dict[str, Any]) -> float:
    return max(row["rows_share"], row["weight_share"])


def _log_ticks(first: int, last: int) -> list[float]:
    """Round numbers from 2^first to 2^last: powers of 2, or of 10 for a long axis."""
    if last - first <= 12:
        return [2.0**k for k in range(first, last + 1)]
    ticks = LogLocator(10, numticks=8).tick_values(2.0**first, 2.0**last)
    return [float(tick) for tick in ticks if 2.0**first <= tick <= 2.0**last]


def _power(tick: float) -> str:
    """1/8 rather than 0.125, 10^-5 rather than 0.00001."""
    if tick < 1 and 1 / tick == round(1 / tick) and math.log2(tick).is_integer():
        return f"1/{1 / tick:,.0f}"
    return f"{tick:,g}" if 1e-4 < tick < 1e5 else f"{tick:.0e}".replace("e+0", "e").replace("e-0", "e−")


def _bin(row: dict[str, Any]) -> str:
    if row["low"] == row["high"]:
        return rounded(row["low"])
    return f"{rounded(row['low'])} to {rounded(row['high'])}"


def calibration(rows: Sequence[dict[str, Any]]) -> Element:
    """Predicted probabilities against how often that was shown, with two standard errors and the diagonal."""
    size, margin = 320, 46
    top = max(max(row["predicted"], row["shown"] + 2 * row["standard_error"]) for row in rows)
    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(0, top)]
    scale = size / ticks[-1]
    svg = tag("svg", viewBox=f"0 0 {size + margin + 20} {size + margin + 8}", role="img", class_="calibration")
    svg.set("aria-label", "shares shown against predicted probabilities")

    def place(x: int | float, y: int | float) -> tuple[float, float]:
        return round(margin + x * scale, 1), round(8 + size - min(max(y, 0), ticks[-1]) * scale, 1)

    for tick in ticks:
        (x, bottom), (left, y) = place(tick, 0), place(0, tick)
        svg.append(tag("path", class_="g", d=f"M{x} 8V{bottom}M{left} {y}h{size}"))
        svg.append(tag("text", f"{tick:g}", x=x, y=bottom + 16))
        svg.append(tag("text", f"{tick:g}", x=left - 6, y=y + 4, class_="e"))
    svg.append(tag("path", class_="r", d="M{} {}L{} {}".format(*place(0, 0), *place(ticks[-1], ticks[-1]))))
    most = max(row["pairs"] for row in rows)
    for row in rows:
        (x, low), (_, high) = (place(row["predicted"], row["shown"] + k * row["standard_error"]) for k in (-2, 2))
        svg.append(tag("path", class_="i", d=f"M{x} {low}V{high}"))
        radius = round(2 + 4 * math.sqrt(row["pairs"] / most), 1)
        svg.append(tag("circle", class_="m", cx=x, cy=place(0, row["shown"])[1], r=radius))
    svg.append(tag("text", "predicted probability", x=margin + size / 2, y=size + margin + 2))
    svg.append(tag("text", "share shown", transform=f"translate(12 {8 + size / 2}) rotate(-90)"))
    return tag("figure", svg)
