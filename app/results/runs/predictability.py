"""Reads how much the sources of a run tell of each other linearly."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from app.results.connection import Results


@dataclass(frozen=True)
class Told:
    """A share of variance that is told, with its 90 % interval."""

    name: str
    """The part of the text, the language's code, or the principal directions; empty for all."""
    share: float | None
    """Share of the source's variance in these directions; None without a band."""
    groups: int
    """Document groups that were looked at."""
    r2: float
    low: float
    high: float


@dataclass(frozen=True)
class Predictability:
    """How much of one source others tell."""

    source: str
    given: tuple[str, ...]
    whole: Told
    bands: tuple[Told, ...]
    """By falling variance."""
    corpora: tuple[Told, ...]
    languages: tuple[Told, ...]

    @property
    def least(self) -> tuple[str, Told] | None:
        """The language, or else the corpus part, of which clearly least is told, with its kind.

        None unless its interval lies below those of all others of its kind.
        """
        languages = [language for language in self.languages if language.name != "und"]
        for kind, parts in (("language", languages), ("corpus", self.corpora)):
            if (found := clearly_least(parts)) is not None:
                return kind, found
        return None


def clearly_least(parts: Sequence[Told]) -> Told | None:
    """The part whose interval lies below those of all others; None if there is none, or nothing to compare with."""
    lowest = min(parts, key=lambda part: part.high, default=None)
    if lowest is None or len(parts) < 2:
        return None
    return lowest if all(lowest.high < part.low for part in parts if part is not lowest) else None


def predictability_of(results: Results) -> list[Predictability]:
    """Every source given all others, then given each of them, in the order of the sources."""
    rows = results.rows(
        """
        select p.source, p.given, p.corpus, p.language, p.band, p.share, p.groups, p.r2, p.low, p.high
        from predictability p where isfinite(p.r2) and isfinite(p.low) and isfinite(p.high) order by p.rowid
        """
    )
    names = {source.source: source.name for source in results.sources}
    found = []
    ordered = sorted(rows, key=lambda row: (row[0], -row[1].count("+")))
    for (source, given), of_pair in itertools.groupby(ordered, key=lambda row: row[:2]):
        cells = list(of_pair)
        kinds = [_told(cells, column) for column in (4, 2, 3)]
        whole = [_share(cell, "") for cell in cells if cell[2:5] == (None, None, None)]
        if source in names and whole:
            found.append(Predictability(names[source], tuple(given.split("+")), whole[0], *kinds))
    return found


def _told(cells: Sequence[tuple[object, ...]], column: int) -> tuple[Told, ...]:
    """The cells of one kind, named by a column."""
    return tuple(_share(cell, str(cell[column])) for cell in cells if cell[column] is not None)


def _share(cell: tuple[object, ...], name: str) -> Told:
    return Told(name, *cell[5:])  # type: ignore[arg-type]
