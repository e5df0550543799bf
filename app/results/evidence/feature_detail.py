"""Reads everything the results hold about one feature but its contexts, in two queries.

DuckDB takes longer to start a query than to read the few rows of one feature, so its tables are read together.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from app.results.connection import Results
from app.results.evidence.agreement import Agreement, agreement_of
from app.results.evidence.criteria import CriterionResult, criterion_result, sorted_by_effect
from app.results.features.corpus_breakdown import CorpusBreakdown, CorpusShares, breakdown_entries
from app.results.features.feature import (
    ActivationBin,
    Feature,
    InSource,
    LayerProbe,
    Logit,
    Logits,
    Neighbour,
    PairDivergence,
    SourceProbe,
    one_feature,
)

TABLES = {
    "source": """
        source, null::bigint, null::text,
        [decoder_norm, encoder_norm, norm_share, relative_norm, nu_reconstruction, nu_error, readout]
        from feature_source
    """,
    "bar": "null, count, null, [low, high] from histogram",
    "logit": "source, rank, token, [effect] from logit",
    "corpus": "null, firings, corpus, null from feature_corpus",
    "language": "null, firings, language, null from feature_language",
    "agreement": "other, rows, null, [bin, other_bin] from agreement",
    "test": "null, n, test || ' ' || says, [value, threshold, low, high] from evidence",
    "probe": "source, null, null, [r_precision, auc] from probe",
    "layer": "source, layer, null, [probe_ratio, probe_low, probe_high] from other_layer",
    "divergence": "base, documents, source::text, [ratio, low, high] from feature_divergence",
    "neighbour": """
        other, null, kind || ' ' || owner, [cosine, correlation, density]
        from (select n.*, f.owner, f.density from neighbour n join feature f on f.feature = n.other)
    """,
}
"""The columns read of each table, in four common ones: an index, a count, a word and numbers."""
QUERY = " union all ".join(f"select '{name}', {part} where feature = $feature" for name, part in TABLES.items())
KINDS = ("twin", "similar", "coactive")
"""Kinds of neighbours, in the order they are shown."""

Rows = list[tuple[Any, Any, Any, Any]]


@dataclass(frozen=True)
class FeatureDetail:
    """Everything about one feature but its contexts."""

    feature: Feature
    inside: list[InSource]
    """In order of the sources."""
    bars: list[ActivationBin]
    """Bins of its activations, weakest first; empty bins are left out."""
    logits: list[Logits]
    """For every source that it writes to and that has logits."""
    neighbours: list[Neighbour]
    """Twins first, each kind by correlation."""
    probes: list[SourceProbe]
    """How well every source tells where it fires, in order of the sources; empty for a feature without a claim."""
    layers: list[LayerProbe]
    """How well other layers of the others' models tell it, by source and layer; empty where none was looked at."""
    divergences: list[PairDivergence]
    """How much more pairs of models differ where it fires; empty where predictions were not compared."""
    tests: list[CriterionResult]
    """Results of its claim, the most decisive first; empty for a feature without a claim."""
    agreement: Agreement | None
    """With the strongest twin of a claimed feature."""
    corpus_breakdown: CorpusBreakdown


def feature_detail(results: Results, feature: int, corpus_shares: CorpusShares) -> FeatureDetail:
    """Reads a feature; `corpus_shares` are the shares of all text. Raises FeatureNotFound."""
    found: defaultdict[str, Rows] = defaultdict(list)
    for table, *row in results.rows(QUERY, feature=feature):
        found[table].append((row[0], row[1], row[2], row[3]))
    one = one_feature(results, feature)
    names = {source.source: source.name for source in results.sources}
    firings = {kind: {name: count for _, count, name, _ in found[kind]} for kind in ("corpus", "language")}
    return FeatureDetail(
        feature=one,
        inside=[InSource(source, names[source], *values) for source, _, _, values in sorted(found["source"])],
        bars=sorted(
            (ActivationBin(low, high, count) for _, count, _, (low, high) in found["bar"]), key=lambda bar: bar.low
        ),
        logits=_logits(found["logit"]),
        neighbours=_neighbours(found["neighbour"]),
        probes=[SourceProbe(source, names[source], *values) for source, _, _, values in sorted(found["probe"])],
        layers=[LayerProbe(source, names[source], layer, *x) for source, layer, _, x in sorted(found["layer"])],
        divergences=[
            PairDivergence(names[base], names[int(source)], ratio, low, high, documents)
            for base, documents, source, (ratio, low, high) in sorted(found["divergence"])
        ],
        tests=_tests(found["test"]),
        agreement=agreement_of([(other, int(x), int(y), count) for other, count, _, (x, y) in found["agreement"]]),
        corpus_breakdown=CorpusBreakdown(
            *(breakdown_entries(firings[kind], corpus_shares.get(kind, {})) for kind in ("corpus", "language"))
        ),
    )


def _logits(rows: Rows) -> list[Logits]:
    found: dict[int, tuple[list[Logit], list[Logit]]] = {}
    for source, rank, token, (effect,) in sorted(rows, key=lambda row: (row[0], abs(row[1]))):
        promoted, suppressed = found.setdefault(source, ([], []))
        (promoted if rank > 0 else suppressed).append(Logit(token, effect))
    return [Logits(source, tuple(up), tuple(down)) for source, (up, down) in found.items()]


def _neighbours(rows: Rows) -> list[Neighbour]:
    found = []
    for other, _, words, (cosine, correlation, density) in rows:
        kind, _, owner = words.partition(" ")
        found.append(Neighbour(other, kind, owner, density, cosine, correlation))
    return sorted(found, key=_neighbour_order)


def _neighbour_order(one: Neighbour) -> tuple[int, float, float, int]:
    """Sort key: kind, then correlation and cosine, missing values last."""
    kind = KINDS.index(one.kind) if one.kind in KINDS else len(KINDS)
    correlation, cosine = (-2.0 if value is None else value for value in (one.correlation, one.cosine))
    return kind, -correlation, -cosine, one.feature


def _tests(rows: Rows) -> list[CriterionResult]:
    found = []
    for _, n, words, (value, threshold, low, high) in rows:
        test, _, says = words.rpartition(" ")
        found.append(criterion_result(test, value, threshold, n, says, low=low, high=high))
    return sorted_by_effect(found)
