"""Shares of a feature's firings by corpus part and language, beside those of all text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.results.connection import Results

SHOWN = 6
"""Most entries of one kind that are shown; the others are summed."""


@dataclass(frozen=True)
class BreakdownEntry:
    """One corpus part or language."""

    name: str
    """As the results have it, a language by its code; `3 others` for what is added up."""
    firings: int
    share: float
    """Of the feature's firings, 0 to 1."""
    usual: float | None
    """Its share of all rows analysed, 0 to 1; None when unknown."""

    @property
    def times(self) -> float | None:
        """The share of firings over the share of all text; None when the latter is unknown."""
        return self.share / self.usual if self.usual else None


@dataclass(frozen=True)
class CorpusBreakdown:
    """Firings of a feature by corpus part and language, most frequent first."""

    corpora: tuple[BreakdownEntry, ...]
    languages: tuple[BreakdownEntry, ...]


CorpusShares = Mapping[str, Mapping[str, float]]
"""Share of the rows analysed, by kind (corpus or language) and name."""


def corpus_shares(results: Results) -> dict[str, dict[str, float]]:
    """Share of the rows analysed, by kind and name."""
    rows: dict[str, dict[str, float]] = {}
    for kind, name, count in results.rows("select kind, name, rows from text_part"):
        rows.setdefault(kind, {})[name] = count
    return {
        kind: {name: count / max(sum(parts.values()), 1) for name, count in parts.items()}
        for kind, parts in rows.items()
    }


def breakdown_entries(firings: Mapping[str, int], shares: Mapping[str, float]) -> tuple[BreakdownEntry, ...]:
    """Entries by firings, most first; those beyond the first few are summed as `others`."""
    total = max(sum(firings.values()), 1)
    ordered = sorted(firings.items(), key=lambda item: (-item[1], item[0]))
    shown = [BreakdownEntry(name, count, count / total, shares.get(name)) for name, count in _largest(ordered)]
    rest = ordered[len(shown) :]
    if rest:
        count, known = sum(count for _, count in rest), [shares[name] for name, _ in rest if name in shares]
        shown.append(BreakdownEntry(f"{len(rest)} others", count, count / total, sum(known) if known else None))
    return tuple(shown)


def _largest(ordered: Sequence[tuple[str, int]]) -> Sequence[tuple[str, int]]:
    # A summary line for a single entry would save nothing.
    return ordered if len(ordered) <= SHOWN + 1 else ordered[:SHOWN]
