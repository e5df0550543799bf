"""Report: what a bench found, as a table for people and as one line of JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.bench.repeats import Repeats

SIGNIFICANT = 4
"""Digits of a figure in JSON; the machine's noise is far larger."""


@dataclass(frozen=True)
class Report:
    """One bench's findings."""

    title: str
    head: tuple[str, ...]
    """Headings of the table's columns."""
    rows: tuple[tuple[str, ...], ...]
    figures: dict[str, Any]
    """What `--json` prints; the keys are a contract."""
    notes: tuple[str, ...] = ()
    """How to read the table, and what disturbed the measurement."""

    def text(self) -> str:
        """Title, aligned table and notes."""
        return "\n".join([self.title, "", table(self.head, self.rows), "", *self.notes])

    def json(self) -> str:
        """The figures as one line; raises ValueError for a number that is not finite."""
        return json.dumps(rounded(self.figures), allow_nan=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and numbers to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def shown(value: Repeats | float | None) -> str:
    """A figure for people; of several measurements the median with both ends, and a dash for what was not measured."""
    if value is None:
        return "–"
    if isinstance(value, Repeats):
        return f"{shown(value.median)} ({shown(value.least)}–{shown(value.most)})"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rounded(value: Any) -> Any:
    """Plain data with every fraction cut to four significant digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.{SIGNIFICANT}g}") if isinstance(value, float) else value
