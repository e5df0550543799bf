"""Formats the result of a bench as a text table and as one line of JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.bench.repeats import Repeats

SIGNIFICANT = 4
"""Significant digits of a figure in JSON; measurement noise is far larger."""


@dataclass(frozen=True)
class Report:
    """Result of one bench."""

    title: str
    head: tuple[str, ...]
    """Headings of the table's columns."""
    rows: tuple[tuple[str, ...], ...]
    figures: dict[str, Any]
    """Printed by `--json`; the keys are a public interface."""
    notes: tuple[str, ...] = ()
    """How to read the table, and under which conditions it was measured."""

    def text(self) -> str:
        """Title, aligned table and notes."""
        return "\n".join([self.title, "", table(self.head, self.rows), "", *self.notes])

    def json(self) -> str:
        """The figures as one line. Raises ValueError for a number that is not finite."""
        return json.dumps(rounded(self.figures), allow_nan=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table: the first column aligned left, the others right."""
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


def formatted(value: Repeats | float | None) -> str:
    """A figure with three digits or whole thousands; Repeats as median (least–most), None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, Repeats):
        return f"{formatted(value.median)} ({formatted(value.least)}–{formatted(value.most)})"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rounded(value: Any) -> Any:
    """Plain data with every float rounded to SIGNIFICANT digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.{SIGNIFICANT}g}") if isinstance(value, float) else value
