"""The strongest contexts of one feature, each as a line of text."""

import json

from app.results.connection import Results
from app.results.features.context_line import ListExample, context_line


def strongest_lines(results: Results, feature: int, *, most: int) -> tuple[ListExample, ...]:
    """The first few of the ten that lists keep, the strongest first; none for a feature that never fired."""
    rows = results.rows(
        "select shown from example where feature = $feature order by rank limit $most", feature=feature, most=most
    )
    windows = [json.loads(shown) for (shown,) in rows]
    return tuple(ListExample(context_line(window, ()), tuple(window["promoted"] or ())) for window in windows)
