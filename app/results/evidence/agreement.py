"""Counts rows by the activations of a claimed feature and of its strongest twin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 6
"""Bins of a feature's activation: not firing, and the fifths of its range."""
LEVELS = 10
"""Steps of the colour scale."""


@dataclass(frozen=True)
class AgreementCell:
    """Rows in one pair of bins."""

    rows: int
    level: int
    """Step of a logarithmic colour scale over all cells but the one where neither fires, 0 to 10."""


@dataclass(frozen=True)
class Agreement:
    """Rows by how strongly either of two features fires on them."""

    other: int
    """The twin."""
    cells: tuple[tuple[AgreementCell, ...], ...]
    """By the feature's bin, then the twin's: not firing, and the fifths of each one's range, weakest first."""

    @property
    def both(self) -> int:
        """Rows on which both fire."""
        return sum(cell.rows for row in self.cells[1:] for cell in row[1:])

    @property
    def only_feature(self) -> int:
        """Rows on which the feature fires and the twin does not."""
        return sum(row[0].rows for row in self.cells[1:])

    @property
    def only_twin(self) -> int:
        """Rows on which the twin fires and the feature does not."""
        return sum(cell.rows for cell in self.cells[0][1:])


def agreement_of(rows: Sequence[tuple[int, int, int, int]]) -> Agreement | None:
    """From (twin, bin, twin's bin, rows); None when there is no twin."""
    if not rows:
        return None
    counts = {(mine, theirs): count for _, mine, theirs, count in rows}
    most = math.log1p(max((count for position, count in counts.items() if position != (0, 0)), default=1))
    cells = tuple(
        tuple(_cell(counts.get((mine, theirs), 0), most, neither_fires=mine == theirs == 0) for theirs in range(BINS))
        for mine in range(BINS)
    )
    return Agreement(rows[0][0], cells)


def _cell(rows: int, most: float, *, neither_fires: bool) -> AgreementCell:
    return AgreementCell(rows, 0 if neither_fires or not rows else max(1, round(LEVELS * math.log1p(rows) / most)))
