"""Baselines: what comparing the models said without a crosscoder, gathered by pairs of sources."""

from dataclasses import dataclass
from typing import Any

from app.results.connection import Results
from app.results.features.feature import Logit
from app.results.features.tokens import Line, rows_of

STRONGEST = 0.6931471805599453
"""Divergence that is drawn strongest, ln 2: the models expect nothing in common."""


@dataclass(frozen=True)
class State:
    """Whether one baseline was measured."""

    baseline: str
    """lens, divergence or diff_sae."""
    state: str
    """measured, undefined, off or impossible."""
    reason: str
    """Why it was not measured; for a measured diff_sae the run that has it."""


@dataclass(frozen=True)
class Reading:
    """What a mean activation difference promotes and suppresses through one source's unembedding."""

    reader: str
    promoted: tuple[Logit, ...]
    suppressed: tuple[Logit, ...]


@dataclass(frozen=True)
class Position:
    """The mean difference at one of the first tokens of a text."""

    position: int
    """From 0."""
    texts: int
    of_typical: float
    """Its norm over that of the base's activations there."""
    of_expected: float | None
    """Its norm over what it would be if the texts' differences had no direction in common."""
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Difference:
    """The activation difference lens of two sources of one space: source minus base."""

    base: str
    source: str
    positions: tuple[Position, ...]


@dataclass(frozen=True)
class Part:
    """How differently two models go on from the text of one corpus part."""

    corpus: str
    """Empty for all together."""
    spans: int
    base_surprise: float
    """Nats per byte, as the other surprises."""
    source_surprise: float
    apart: float
    jensen_shannon: float | None
    """Nats, as the KL divergences."""
    kl_base_source: float | None
    kl_source_base: float | None


@dataclass(frozen=True)
class Cell:
    """A span of a passage."""

    byte_end: int
    """-1 for tokens that stand for no text."""
    tokens: tuple[tuple[str, ...], ...]
    """Of the base and of the source."""
    level: int
    """Place on the colour scale, 0 to 10."""
    peak: bool
    """Whether the models differ most here, of all places of the passage."""
    divergence: float | None
    """Jensen-Shannon, nats; None where it was not compared."""
    base_surprise: float | None
    """Nats, as the other."""
    source_surprise: float | None


@dataclass(frozen=True)
class Passage:
    """Text on which two models differ."""

    rank: int
    corpus: str
    apart: float
    """What passages are ranked by."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Pair:
    """Two models on the same text."""

    base: str
    source: str
    outcome: str
    """What their expectations are compared over: token or byte; empty when only surprises are."""
    parts: tuple[Part, ...]
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class Baselines:
    """Everything that was compared without a crosscoder; no states when a run says nothing of it."""

    states: dict[str, State]
    differences: tuple[Difference, ...]
    pairs: tuple[Pair, ...]


def baselines_of(results: Results) -> Baselines:
    """All baselines of a run."""
    states = [State(*row) for row in results.rows("select baseline, state, reason from baseline")]
    return Baselines({state.baseline: state for state in states}, tuple(_differences(results)), tuple(_pairs(results)))


def _differences(results: Results) -> list[Difference]:
    rows = results.rows(
        """
        select base, source, position, texts, norm / nullif(typical_norm, 0), norm / nullif(expected_norm, 0)
        from baseline_difference order by base, source, position
        """
    )
    tokens: dict[tuple[int, int, int], dict[int, list[Logit]]] = {}
    for base, source, position, reader, rank, token, effect in results.rows(
        """
        select base, source, position, reader, rank, token, effect
        from baseline_lens order by base, source, position, reader, abs(rank)
        """
    ):
        readers = tokens.setdefault((base, source, position), {})
        readers.setdefault(reader if rank > 0 else ~reader, []).append(Logit(token, effect))
    found: dict[tuple[int, int], list[Position]] = {}
    for base, source, position, texts, typical, expected in rows:
        by_reader = tokens.get((base, source, position), {})
        readings = tuple(
            Reading(results.sources[reader].name, tuple(by_reader[reader]), tuple(by_reader.get(~reader, ())))
            for reader in (base, source)
            if reader in by_reader
        )
        found.setdefault((base, source), []).append(Position(position, texts, typical or 0.0, expected, readings))
    return [
        Difference(results.sources[base].name, results.sources[source].name, tuple(positions))
        for (base, source), positions in found.items()
    ]


def _pairs(results: Results) -> list[Pair]:
    alone: dict[tuple[str, int], float] = {}
    together: dict[tuple[int, int], dict[str, dict[str, tuple[float, int]]]] = {}
    for corpus, base, source, measure, value, n in results.rows(
        """
        select coalesce(corpus, ''), base, source, measure, value, n
        from baseline_divergence order by base, source, coalesce(corpus, '')
        """
    ):
        if base is None:
            alone[corpus, source] = value
        else:
            together.setdefault((base, source), {}).setdefault(corpus, {})[measure] = (value, n)
    found = []
    for (base, source), corpora in together.items():
        outcome = next((name.rpartition("_")[2] for name in corpora[""] if name.startswith("jensen")), "")
        parts = tuple(
            Part(
                corpus,
                measures["surprise_apart"][1],
                alone[corpus, base],
                alone[corpus, source],
                measures["surprise_apart"][0],
                *(
                    measures.get(f"{name}_{outcome}", (None,))[0]
                    for name in ("jensen_shannon", "kl_base_source", "kl_source_base")
                ),
            )
            for corpus, measures in corpora.items()
        )
        names = results.sources[base].name, results.sources[source].name
        found.append(Pair(*names, outcome, parts, _passages(results, base, source)))
    return found


def _passages(results: Results, base: int, source: int) -> tuple[Passage, ...]:
    rows = results.rows(
        """
        select rank, corpus, apart, byte_start, "text", tokens, places
        from baseline_passage where base = $base and source = $source order by rank
        """,
        base=base,
        source=source,
    )
    return tuple(Passage(rank, corpus, apart, _cells(*text)) for rank, corpus, apart, *text in rows)


def _cells(start: int, text: str, tokens: list[list[dict[str, Any]]], places: list[dict[str, Any]]) -> tuple[Cell, ...]:
    """The spans of a passage; those without a divergence are shaded by how far apart the surprises are."""
    found = {place["byte_end"]: place for place in places}
    values = {
        end: abs(place["source_surprise"] - place["base_surprise"])
        if place["divergence"] is None
        else place["divergence"]
        for end, place in found.items()
    }
    bare = any(place["divergence"] is None for place in places)
    scale = max(values.values(), default=1.0) if bare else STRONGEST
    peak = max(values, key=lambda end: values[end], default=None)
    rows = rows_of([Line.of(line) for line in tokens], values, scale=scale, peak=peak, text=text.encode(), start=start)
    return tuple(
        Cell(
            row.byte_end,
            tuple(tuple(token.text for token in mine) for mine in row.tokens),
            row.level,
            row.peak,
            *(found.get(row.byte_end, {}).get(key) for key in ("divergence", "base_surprise", "source_surprise")),
        )
        for row in rows
    )
