"""Builds Plotly figures; traces name their colours, which the page's theme defines.

A trace's `meta.colour` names a custom property of site.css (`--o0`, `--shared`, …), which the script that draws
the figure looks up, so that one figure serves the light and the dark theme.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

GREY = "--muted"
FILLS = {"other": "--other-fill"}
"""Areas may be lighter than text of the same owner."""
DASHES, MARKERS = ("solid", "dash", "dot"), ("circle", "diamond", "square")
"""Line styles and markers, by frequency."""


def stacked_histogram(
    bins: Iterable[tuple[float, float, str, int]],
    looks: dict[str, str],
    *,
    x_title: str,
    logarithmic: bool,
    links: dict[tuple[str, float], str],
) -> dict[str, Any]:
    """Counts of features per bin and owner: stacked bars, or overlaid ones on a logarithmic axis.

    `bins` are (low, high, owner, count); `looks` gives each owner's colour name; `links` an address per owner and
    lower edge, opened on a click.
    """
    bins = list(bins)
    figure = go.Figure()
    for owner, look in looks.items():
        mine = [each for each in bins if each[2] == owner]
        if not mine:
            continue
        hover = f"%{{y:,}} features of {owner} from %{{customdata[1]:.3g}} to %{{customdata[2]:.3g}}<extra></extra>"
        bar = go.Bar(
            x=[(low + high) / 2 for low, high, _, _ in mine],
            y=[count for *_, count in mine],
            width=[high - low for low, high, _, _ in mine],
            name=owner,
            customdata=[[links.get((owner, low), ""), low, high] for low, high, _, _ in mine],
            hovertemplate=hover,
            meta={"colour": FILLS.get(look, f"--{look}")},
            opacity=0.8 if logarithmic else 1.0,
        )
        figure.add_trace(bar)
    # Parts of a stack cannot be read off a logarithmic axis, so there every owner starts at the axis.
    figure.update_layout(barmode="overlay" if logarithmic else "stack", bargap=0)
    figure.update_xaxes(title_text=x_title)
    if bins:
        figure.update_xaxes(range=[min(low for low, *_ in bins), max(high for _, high, *_ in bins)])
    if logarithmic:
        tallest = max((count for *_, count in bins), default=1)
        # From below 1, or a single feature would have no height.
        figure.update_yaxes(title_text="features", type="log", range=[-0.2, math.log10(tallest) * 1.05 + 0.1])
    else:
        figure.update_yaxes(title_text="features")
    return _plain(figure)


def curves(
    lines: Sequence[tuple[str, Sequence[int], Sequence[float]]], looks: dict[str, str], *, y_title: str
) -> dict[str, Any]:
    """Measures over training steps, one line each; a line's name ends in the source it is about, if any."""
    figure = go.Figure()
    for name, steps, values in lines:
        owner = name.rpartition(".")[2]
        look = looks.get(owner)
        meta = {"colour": f"--{look}" if look else GREY}
        hover = "step %{x:,}: %{y:.4g}"
        line = go.Scatter(x=steps, y=values, name=owner if look else name, mode="lines", meta=meta, hovertemplate=hover)
        figure.add_trace(line)
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(title_text=y_title, rangemode="tozero")
    return _plain(figure)


def recall(lines: Mapping[tuple[str, float], Sequence[tuple[float, float]]], looks: dict[str, str]) -> dict[str, Any]:
    """Shares of planted concepts over their amplitude, a line for every owner and frequency.

    The colour is the owner's; line style and marker give the frequency, the most frequent first. There is no
    legend, because several such figures stand side by side and the page has one for all.
    """
    figure = go.Figure()
    frequencies = sorted({frequency for _, frequency in lines}, reverse=True)
    for (owner, frequency), points in lines.items():
        style = frequencies.index(frequency) % len(DASHES)
        line = go.Scatter(
            x=[amplitude for amplitude, _ in points],
            y=[share for _, share in points],
            name=f"{owner}, {frequency:g} of rows",
            mode="lines+markers",
            line={"dash": DASHES[style]},
            marker={"symbol": MARKERS[style], "size": 7},
            meta={"colour": f"--{looks[owner]}" if owner in looks else GREY},
            hovertemplate="amplitude %{x}: %{y:.0%}",
        )
        figure.add_trace(line)
    figure.update_xaxes(title_text="amplitude", rangemode="tozero")
    figure.update_yaxes(range=[-0.05, 1.05], tickformat=".0%", dtick=0.5)
    plain = _plain(figure)
    plain["layout"]["showlegend"] = False
    return plain


def _plain(figure: go.Figure) -> dict[str, Any]:
    """The figure as JSON, without Plotly's own theme."""
    figure.update_layout(
        template=None,
        margin={"l": 56, "r": 12, "t": 8, "b": 44},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        showlegend=len(figure.data) > 1,
        hoverlabel={"align": "left"},
    )
    plain: dict[str, Any] = figure.to_plotly_json()
    return plain
