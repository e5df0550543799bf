"""Reads the training-free comparisons of the models, by pairs of sources."""

from dataclasses import dataclass

from app.results.connection import Results
from app.results.features.feature import Logit
from app.results.runs.passages import PassageSpan, passage_spans


@dataclass(frozen=True)
class BaselineState:
    """Whether a baseline was measured."""

    baseline: str
    """lens, divergence or diff_sae."""
    state: str
    """measured, undefined, off or impossible."""
    reason: str
    """Why it was not measured; for a measured diff_sae the run that has it."""


@dataclass(frozen=True)
class LogitLens:
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
    readings: tuple[LogitLens, ...]


@dataclass(frozen=True)
class Difference:
    """The activation difference lens of two sources of one space: source minus base."""

    base: str
    source: str
    positions: tuple[Position, ...]


@dataclass(frozen=True)
class CorpusDivergence:
    """How far two models' predictions diverge on one corpus part."""

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
class Passage:
    """Text on which two models differ."""

    rank: int
    corpus: str
    apart: float
    """Score that passages are ranked by."""
    cells: tuple[PassageSpan, ...]


@dataclass(frozen=True)
class SourcePair:
    """Two models on the same text."""

    base: str
    source: str
    outcome: str
    """Outcome space of the divergence: token or byte; empty when only surprises are."""
    parts: tuple[CorpusDivergence, ...]
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class Baselines:
    """All training-free comparisons; `states` is empty for a run that recorded none."""

    states: dict[str, BaselineState]
    differences: tuple[Difference, ...]
    pairs: tuple[SourcePair, ...]


def baselines_of(results: Results) -> Baselines:
    """All baselines of a run."""
    states = [BaselineState(*row) for row in results.rows("select baseline, state, reason from baseline")]
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
            LogitLens(results.sources[reader].name, tuple(by_reader[reader]), tuple(by_reader.get(~reader, ())))
            for reader in (base, source)
            if reader in by_reader
        )
        found.setdefault((base, source), []).append(Position(position, texts, typical or 0.0, expected, readings))
    return [
        Difference(results.sources[base].name, results.sources[source].name, tuple(positions))
        for (base, source), positions in found.items()
    ]


def _pairs(results: Results) -> list[SourcePair]:
    surprises: dict[tuple[str, int], float] = {}
    divergences: dict[tuple[int, int], dict[str, dict[str, tuple[float, int]]]] = {}
    for corpus, base, source, measure, value, n in results.rows(
        """
        select coalesce(corpus, ''), base, source, measure, value, n
        from baseline_divergence order by base, source, coalesce(corpus, '')
        """
    ):
        if base is None:
            surprises[corpus, source] = value
        else:
            divergences.setdefault((base, source), {}).setdefault(corpus, {})[measure] = (value, n)
    found = []
    for (base, source), corpora in divergences.items():
        outcome = next((name.rpartition("_")[2] for name in corpora[""] if name.startswith("jensen")), "")
        parts = tuple(
            CorpusDivergence(
                corpus,
                measures["surprise_apart"][1],
                surprises[corpus, base],
                surprises[corpus, source],
                measures["surprise_apart"][0],
                *(
                    measures.get(f"{name}_{outcome}", (None,))[0]
                    for name in ("jensen_shannon", "kl_base_source", "kl_source_base")
                ),
            )
            for corpus, measures in corpora.items()
        )
        names = results.sources[base].name, results.sources[source].name
        found.append(SourcePair(*names, outcome, parts, _passages(results, base, source)))
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
    return tuple(Passage(rank, corpus, apart, passage_spans(*text)) for rank, corpus, apart, *text in rows)
