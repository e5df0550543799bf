"""Chart: lines over sizes in small panels, as SVG written by hand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Distinct in print and to colour-blind eyes (Okabe and Ito)."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 2")
"""A second sign beside the colour."""
PANEL_WIDTH, PANEL_HEIGHT = 260, 190
LEFT, TOP, GAP, LEGEND = 46, 34, 30, 30
TICKS = 4
FONT = 'font-family="sans-serif" font-size="12"'
GREY = 'fill="#555555"'


@dataclass(frozen=True)
class Panel:
    """One measure: a line per name over the sizes."""

    title: str
    lines: Mapping[str, Mapping[int, Sequence[float]]]
    """Values by name and size: a small dot each, and the line through their means."""
    top: float
    """Upper end of the axis."""
    bottom: float = 0.0
    """Lower end; above zero the axis is logarithmic, as sizes that double are."""
    x_title: str = ""
    """What the sizes are, in a panel that has sizes of its own."""

    def height(self, value: float) -> float:
        """How far up the axis a value stands, 0 to 1."""
        if self.bottom:
            share = math.log(max(value, self.bottom) / self.bottom) / math.log(self.top / self.bottom)
        else:
            share = value / self.top
        return min(max(share, 0.0), 1.0)

    def tick(self, share: float) -> float:
        """The value so far up the axis."""
        return self.bottom * (self.top / self.bottom) ** share if self.bottom else self.top * share


def svg(panels: Sequence[Panel], x_title: str) -> str:
    """The panels side by side with one legend, as a whole SVG document."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    sizes = sorted({size for panel in panels for line in panel.lines.values() for size in line})
    width = len(panels) * (LEFT + PANEL_WIDTH + GAP)
    height = TOP + PANEL_HEIGHT + 40 + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {FONT} role="img">',
        f"<title>{escape(', '.join(panel.title for panel in panels))}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        left = number * (LEFT + PANEL_WIDTH + GAP) + LEFT
        own = sorted({size for line in panel.lines.values() for size in line}) if panel.x_title else sizes
        drawn = _panel(panel, names, own, panel.x_title or x_title)
        parts += [f'<g transform="translate({left} {TOP})">', *drawn, "</g>"]
    for number, name in enumerate(names):
        x, y = LEFT + number * 170, height - 12
        parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 26}" y2="{y - 4}" {_stroke(number)}/>')
        parts.append(f'<text x="{x + 32}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, names: list[str], sizes: list[int], x_title: str) -> list[str]:
    """Axes, then a line for every name."""
    parts = [f'<text x="0" y="-14" font-weight="bold">{escape(panel.title)}</text>']
    for tick in range(TICKS + 1):
        value = panel.tick(tick / TICKS)
        y = _y(value, panel)
        parts.append(f'<line x1="0" y1="{y}" x2="{PANEL_WIDTH}" y2="{y}" stroke="#dddddd"/>')
        parts.append(f'<text x="-6" y="{y + 4}" text-anchor="end" {GREY}>{value:.3g}</text>')
    for size in sizes:
        x = _x(size, sizes)
        parts.append(f'<text x="{x}" y="{PANEL_HEIGHT + 17}" text-anchor="middle" {GREY}>{size}</text>')
    parts.append(
        f'<text x="{PANEL_WIDTH / 2}" y="{PANEL_HEIGHT + 34}" text-anchor="middle" {GREY}>{escape(x_title)}</text>'
    )
    for number, name in enumerate(names):
        parts += _line(panel, name, number, len(names), sizes)
    return parts


def _line(panel: Panel, name: str, number: int, count: int, sizes: list[int]) -> list[str]:
    line = panel.lines.get(name, {})
    # Dots of several lines stand side by side, or they would hide each other.
    aside = (number - (count - 1) / 2) * 6
    points = [(_x(size, sizes) + aside, values) for size, values in sorted(line.items()) if values]
    path = " ".join(f"{x:.1f},{_y(mean(values), panel)}" for x, values in points)
    parts = [f'<polyline points="{path}" fill="none" {_stroke(number)}/>'] if points else []
    for x, values in points:
        dots = [(_y(value, panel), 2) for value in values] + [(_y(mean(values), panel), 4)]
        parts += [f'<circle cx="{x:.1f}" cy="{y}" r="{radius}" fill="{_colour(number)}"/>' for y, radius in dots]
    return parts


def _x(size: int, sizes: list[int]) -> float:
    """Sizes stand at equal distances, whatever they are."""
    return round((sizes.index(size) + 0.5) * PANEL_WIDTH / len(sizes), 1)


def _y(value: float, panel: Panel) -> float:
    return round(PANEL_HEIGHT * (1 - panel.height(value)), 1)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _stroke(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f'stroke="{_colour(number)}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
