"""Plots: figures for the browser, built with Plotly; colours are named and chosen by the page's theme.

A trace's `meta.colour` names a custom property of site.css (`--o0`, `--shared`, …), which the script that draws
the figure looks up, so that one figure serves the light and the dark theme.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

GREY = "--muted"
FILLS = {"other": "--other-fill"}
"""Areas may be lighter than text of the same owner."""


def stacked_histogram(
    bins: Iterable[tuple[float, float, str, int]],
    looks: dict[str, str],
    *,
    x_title: str,
    logarithmic: bool,
    links: dict[tuple[str, float], str],
) -> dict[str, Any]:
    """Counts of features per bin and owner: stacked bars, or with a logarithmic axis one stepped line each.

    `bins` are (low, high, owner, count); `looks` gives each owner's colour name; `links` an address per owner and
    lower edge, opened on a click.
    """
    bins = list(bins)
    figure = go.Figure()
    for owner, look in looks.items():
        mine = [each for each in bins if each[2] == owner]
        if not mine:
            continue
        middle = [(low + high) / 2 for low, high, _, _ in mine]
        count = [each[3] for each in mine]
        meta = {"colour": FILLS.get(look, f"--{look}")}
        hover = f"%{{y:,}} features of {owner} from %{{customdata[1]:.3g}} to %{{customdata[2]:.3g}}<extra></extra>"
        data = [[links.get((owner, low), ""), low, high] for low, high, _, _ in mine]
        if logarithmic:
            line = go.Scatter(
                x=middle, y=count, name=owner, mode="lines+markers", line_shape="hvh", customdata=data,
                hovertemplate=hover, meta=meta, marker_size=4,
            )  # fmt: skip
            figure.add_trace(line)
        else:
            width = [high - low for low, high, _, _ in mine]
            figure.add_trace(
                go.Bar(x=middle, y=count, width=width, name=owner, customdata=data, hovertemplate=hover, meta=meta)
            )
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text="features", type="log" if logarithmic else "linear")
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
