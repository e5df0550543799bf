"""Ground: the parts of the text that a feature fires on, against how much of the text they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.results.connection import Results

SHOWN = 6
"""Parts of one kind that are shown at most; the rest is added up."""


@dataclass(frozen=True)
class Part:
    """One corpus part or language."""

    name: str
    """As the results have it, a language by its code; `3 others` for what is added up."""
    firings: int
    share: float
    """Of the feature's firings, 0 to 1."""
    usual: float | None
    """Of the rows analysed, 0 to 1; None when it is not known."""

    @property
    def times(self) -> float | None:
        """How many times as often as on any text."""
        return self.share / self.usual if self.usual else None


@dataclass(frozen=True)
class CorpusBreakdown:
    """What a feature fires on, most of it first."""

    corpora: tuple[Part, ...]
    languages: tuple[Part, ...]


Usual = Mapping[str, Mapping[str, float]]
"""Share of the rows analysed, by kind (corpus or language) and name."""


def usual_of(results: Results) -> dict[str, dict[str, float]]:
    """How much of the text is of each part."""
    rows: dict[str, dict[str, float]] = {}
    for kind, name, count in results.rows("select kind, name, rows from text_part"):
        rows.setdefault(kind, {})[name] = count
    return {
        kind: {name: count / max(sum(parts.values()), 1) for name, count in parts.items()}
        for kind, parts in rows.items()
    }


def parts_of(firings: Mapping[str, int], usual: Mapping[str, float]) -> tuple[Part, ...]:
    """Parts by their firings; those beyond the first few are added up as `others`."""
    total = max(sum(firings.values()), 1)
    ordered = sorted(firings.items(), key=lambda item: (-item[1], item[0]))
    shown = [Part(name, count, count / total, usual.get(name)) for name, count in _first(ordered)]
    rest = ordered[len(shown) :]
    if rest:
        count, known = sum(count for _, count in rest), [usual[name] for name, _ in rest if name in usual]
        shown.append(Part(f"{len(rest)} others", count, count / total, sum(known) if known else None))
    return tuple(shown)


def _first(ordered: Sequence[tuple[str, int]]) -> Sequence[tuple[str, int]]:
    # One more instead of a line that stands for one.
    return ordered if len(ordered) <= SHOWN + 1 else ordered[:SHOWN]
