"""Serves pages of the filtered list of features, and one feature in full."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from app.results.evidence.agreement import Agreement
from app.results.evidence.criteria import verdict_in_short
from app.results.evidence.feature_detail import feature_detail
from app.results.evidence.measures_in_words import claim_in_words, measures_in_words, verdict_in_words
from app.results.features.contexts import BUCKETS, Window, check_tokens, kept_windows, whole_sequence
from app.results.features.feature import one_feature
from app.results.features.feature_list import list_features
from app.results.features.query import PER_PAGE
from app.results.features.tokens import Row
from app.web.dependencies import RunView
from app.web.templates import as_json

router = APIRouter(prefix="/api/v1/runs/{run}", tags=["features"])

Index = Annotated[int, Path(ge=0, le=2**31 - 1)]


@router.get("/features", summary="One page of the filtered, sorted list")
def read_features(view: RunView) -> dict[str, Any]:
    """The list of features, in pages of fifty; takes the same filters as the page."""
    found = list_features(view.results, view.query, view.search())
    labels = view.labels.latest(view.run, [row.feature for row in found.rows])
    return {
        "run": view.run,
        "total": found.total,
        "page": found.page,
        "pages": found.pages,
        "per_page": PER_PAGE,
        "features": [{**asdict(row), "label": labels.get(row.feature)} for row in found.rows],
        "facets": as_json(found.facets),
    }


@router.get("/features/{feature}", summary="One feature: measures, evidence, logits, neighbours, contexts")
def read_feature(
    feature: Index, view: RunView, bucket: Annotated[str, Query(pattern=f"^({'|'.join(BUCKETS)})$")] = "top"
) -> dict[str, Any]:
    """Everything on a feature's page; contexts of one bucket."""
    results = view.results
    found = feature_detail(results, feature, view.corpus_shares)
    one = found.feature
    return {
        "run": view.run,
        "file": results.file,
        **asdict(one),
        "label": view.labels.latest(view.run, [feature]).get(feature),
        "verdict_in_short": verdict_in_short(one.verdict, one.kind),
        "verdict_in_words": verdict_in_words(one, results.sources, found.tests, found.neighbours),
        "claim": as_json(claim_in_words(one, found.inside)),
        "probes": as_json(found.probes),
        "other_layers": as_json(found.layers),
        "divergences": as_json(found.divergences),
        "tests": as_json(found.tests),
        "findings": as_json(measures_in_words(found.inside, found.neighbours)),
        "sources": as_json(found.inside),
        "ground": as_json(found.corpus_breakdown),
        "agreement": _agreement(found.agreement),
        "histogram": as_json(found.bars),
        "logits": as_json(found.logits),
        "neighbours": as_json(found.neighbours),
        "contexts": [
            window
            for first in kept_windows(results, feature, bucket, "", scale=one.max_activation)
            for window in (_window(first), *map(_window, first.repeats))
        ],
    }


@router.get("/sequences/{sequence}", summary="A whole sequence as one feature sees it")
def read_sequence(sequence: Index, view: RunView, feature: Annotated[int, Query(ge=0)]) -> dict[str, Any]:
    """A whole sequence with the activations that are kept of a feature on it."""
    check_tokens("both", view.results.sources)
    one = one_feature(view.results, feature)
    whole = whole_sequence(view.results, sequence, feature, scale=one.max_activation)
    return {
        "run": view.run,
        "feature": feature,
        "sequence": whole.sequence,
        "document": whole.document,
        "corpus": whole.corpus,
        "held_out": whole.held_out,
        "rows": [_row(row) for row in whole.rows],
    }


def _agreement(found: Agreement | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "twin": found.other,
        "rows": [[cell.rows for cell in row] for row in found.cells],
        "both": found.both,
        "only_feature": found.only_feature,
        "only_twin": found.only_twin,
    }


def _window(window: Window) -> dict[str, Any]:
    return {
        "sequence": window.sequence,
        "rank": window.rank,
        "corpus": window.corpus,
        "peak": window.peak,
        "rows": [_row(row) for row in window.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "byte_end": row.byte_end,
        "activation": row.activation,
        "known": row.known,
        "tokens": [[token.text for token in tokens] for tokens in row.tokens],
    }
