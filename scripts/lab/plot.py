"""A benchmark's results as an SVG picture: bars of medians, and how far the rounds spread."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from lab.quantities import Quantity, quantities
from lab.regimes import Regime
from lab.results import Results
from lab.tables import TITLES

WIDTH = 960
PANELS_ACROSS = 2
MARGIN = 16
LABEL_WIDTH = 110
VALUE_WIDTH = 64
BAR_HEIGHT = 14
BAR_PITCH = 20
TITLE_HEIGHT = 34
PANEL_GAP = 18
FONT = "font-family='sans-serif' font-size='12'"

OWN_COLOUR = "#1565c0"
OTHER_COLOUR = "#90a4ae"
SPREAD_COLOUR = "#263238"


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    form: str
    bars: tuple[Bar, ...]

    @property
    def height(self) -> int:
        return TITLE_HEIGHT + BAR_PITCH * len(self.bars) + PANEL_GAP


def plot(results: Results) -> str:
    """Return the SVG document."""
    panels = _panels(results)
    rows = [panels[at : at + PANELS_ACROSS] for at in range(0, len(panels), PANELS_ACROSS)]
    body: list[str] = []
    y = MARGIN + 20
    for row in rows:
        for place, panel in enumerate(row):
            body += _drawn(panel, MARGIN + place * (WIDTH - MARGIN) // PANELS_ACROSS, y)
        y += max(panel.height for panel in row)
    caption = f"{results.machine.line}; medians, lines from the least to the most of the rounds"
    return "\n".join(
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{y}' "
            f"viewBox='0 0 {WIDTH} {y}' {FONT}>",
            f"<rect width='{WIDTH}' height='{y}' fill='white'/>",
            f"<text x='{MARGIN}' y='{MARGIN + 6}' fill='#555'>{escape(caption)}</text>",
            *body,
            "</svg>\n",
        )
    )


def _panels(results: Results) -> list[Panel]:
    panels = []
    for regime in results.series:
        for quantity in quantities(results.settings):
            bars = _bars(results, regime, quantity)
            if bars:
                panels.append(Panel(f"{TITLES[regime]}: {quantity.title}", quantity.form, bars))
    return panels


def _bars(results: Results, regime: Regime, quantity: Quantity) -> tuple[Bar, ...]:
    bars = []
    for name, series in results.series[regime].items():
        median = series.median(quantity.key)
        if median is not None:
            values = series.rounds[quantity.key]
            scaled = (one * quantity.factor for one in (median, min(values), max(values)))
            bars.append(Bar(name, *scaled))
    return tuple(bars)


def _drawn(panel: Panel, x: int, y: int) -> list[str]:
    room = (WIDTH - MARGIN) // PANELS_ACROSS - MARGIN - LABEL_WIDTH - VALUE_WIDTH
    largest = max(bar.most for bar in panel.bars) or 1.0
    zero = x + LABEL_WIDTH
    drawn = [f"<text x='{x}' y='{y + 18}' font-weight='bold'>{escape(panel.title)}</text>"]
    for number, bar in enumerate(panel.bars):
        top = y + TITLE_HEIGHT + number * BAR_PITCH
        middle = top + BAR_HEIGHT / 2
        length, least, most = (
            room * value / largest for value in (bar.median, bar.least, bar.most)
        )
        colour = OWN_COLOUR if bar.name.startswith("vela") else OTHER_COLOUR
        drawn += [
            f"<text x='{zero - 6}' y='{top + 11}' text-anchor='end'>{escape(bar.name)}</text>",
            f"<rect x='{zero}' y='{top}' width='{length:.1f}' height='{BAR_HEIGHT}' "
            f"fill='{colour}'/>",
            f"<line x1='{zero + least:.1f}' x2='{zero + most:.1f}' y1='{middle}' y2='{middle}' "
            f"stroke='{SPREAD_COLOUR}'/>",
            f"<text x='{zero + max(length, most) + 6:.1f}' y='{top + 11}'>"
            f"{panel.form.format(bar.median)}</text>",
        ]
    return drawn
