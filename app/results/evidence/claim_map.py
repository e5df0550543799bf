"""Where the claims of each source lie by the two measures that decide them, in cells that a picture can show."""

import math
from collections import defaultdict
from dataclasses import dataclass

from app.results.connection import Results
from app.results.evidence.calibration import verdict_reliability
from app.results.evidence.criteria import thresholds
from app.results.runs.summary import recipe_of

PER_OCTAVE = 3
"""Cells per doubling of the excess over noise."""
LEAST, MOST = -2, 5
"""Octaves shown; what is beyond is counted in the last cell."""
PER_UNIT = 20
"""Cells per unit of the probe ratio."""
RATIOS = 24
"""Cells of the probe ratio, up to 1.2; what is beyond is counted in the last."""
EDGE = 1e-6
"""How far below a cell's upper edge its last value is, relative to it."""
COLUMNS = (MOST - LEAST) * PER_OCTAVE


@dataclass(frozen=True)
class ClaimCell:
    """Claims with about the same excess and probe ratio."""

    column: int
    """From 0 by excess over noise."""
    row: int
    """From 0 by probe ratio."""
    claims: int
    supported: int
    filters: dict[str, str]
    """Of the list, to give these claims."""


@dataclass(frozen=True)
class ClaimMap:
    """All claims of one source that were judged."""

    owner: str
    claims: int
    cells: tuple[ClaimCell, ...]
    excess_limit: float | None
    """Columns from the left to the excess that a supported claim needs."""
    ratio_limit: float | None
    """Rows from the bottom to the probe ratio that a supported claim must stay under."""
    noise_excess: float | None
    """Columns from the left to the excess that 95 % of the claims of the noise null stay under; None without it."""

    @property
    def most(self) -> int:
        """Claims of the fullest cell."""
        return max((one.claims for one in self.cells), default=1)


def claim_map(results: Results) -> tuple[ClaimMap, ...]:
    """A map for every source with judged claims, in the order of the sources."""
    limits, nulls = thresholds(recipe_of(results)), verdict_reliability(results).owners
    noise = {one.owner: one.noise.excess_95 for one in nulls if one.noise is not None}
    cells: dict[str, list[ClaimCell]] = defaultdict(list)
    for owner, column, row, claims, supported in results.rows(
        """
        select owner,
            greatest(least(floor((log2(greatest(excess, 1e-9)) - $least) * $octave), $columns - 1), 0)::integer as x,
            greatest(least(floor(probe_ratio * $unit), $ratios - 1), 0)::integer as y,
            count(*), count(*) filter (where verdict = 'supported')
        from feature where verdict not in ('', 'untested') and isfinite(excess) and isfinite(probe_ratio)
        group by all order by owner, x, y
        """,
        least=LEAST,
        octave=PER_OCTAVE,
        columns=COLUMNS,
        unit=PER_UNIT,
        ratios=RATIOS,
    ):
        cells[owner].append(ClaimCell(column, row, claims, supported, {"owner": owner, **_bounds(column, row)}))
    ratio = limits.get("probe_ratio")
    return tuple(
        ClaimMap(
            owner,
            sum(cell.claims for cell in cells[owner]),
            tuple(cells[owner]),
            _column(limits.get("excess")),
            None if ratio is None else min(max(ratio * PER_UNIT, 0), RATIOS),
            _column(noise.get(owner)),
        )
        for owner in (source.name for source in results.sources)
        if owner in cells
    )


def _column(excess: float | None) -> float | None:
    """Where an excess lies, in columns from the left; None for what is unknown or beyond."""
    if excess is None or not excess > 0:
        return None
    return min(max((math.log2(excess) - LEAST) * PER_OCTAVE, 0), COLUMNS)


def _bounds(column: int, row: int) -> dict[str, str]:
    """Filters of the list for a cell; those at the edges are open."""
    excess, ratio = {"excess_min": column, "excess_max": column + 1}, {"probe_min": row, "probe_max": row + 1}
    found = {name: 2 ** (LEAST + at / PER_OCTAVE) for name, at in excess.items() if 0 < at < COLUMNS}
    found |= {name: at / PER_UNIT for name, at in ratio.items() if 0 < at < RATIOS}
    # Cells have their lower edge and not their upper one; the list has both bounds.
    return {name: f"{value * (1 - EDGE) if name.endswith('max') else value:.9g}" for name, value in found.items()}
