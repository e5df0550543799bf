"""Serves the filtered list of features as JSON and CSV, and one feature in full."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from app.results.evidence.agreement import Agreement
from app.results.evidence.criteria import verdict_in_short
from app.results.evidence.feature_detail import feature_detail
from app.results.evidence.measures_in_words import claim_in_words, measures_in_words, verdict_in_words
from app.results.features.contexts import BUCKETS, Window, check_tokens, kept_windows, whole_sequence
from app.results.features.feature import one_feature
from app.results.features.feature_list import FeatureRow, every_feature, list_features
from app.results.features.query import PER_PAGE
from app.results.features.tokens import Row
from app.web.dependencies import RunRequest, RunView
from app.web.templates import as_json

router = APIRouter(prefix="/api/v1/runs/{run}", tags=["features"])

Index = Annotated[int, Path(ge=0, le=2**31 - 1)]

CSV_COLUMNS = [field.name for field in fields(FeatureRow)]
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


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


@router.get("/features.json", summary="The whole filtered list as a file", response_class=StreamingResponse)
def download_json(view: RunView) -> StreamingResponse:
    """Exactly the features that pass the filters, in the list's order."""
    rows = _with_labels(view)
    parts = (f"{',' if index else '['}\n{json.dumps(row, ensure_ascii=False)}" for index, row in enumerate(rows))
    return _file(view, _with_end(parts, "[", "\n]\n"), "application/json", "json")


@router.get("/features.csv", summary="The whole filtered list as CSV", response_class=StreamingResponse)
def download_csv(view: RunView) -> StreamingResponse:
    """Exactly the features that pass the filters, in the list's order; one line of column names."""
    head = _csv_line([*CSV_COLUMNS, "label"])
    lines = (_csv_line([_safe(value) for value in row.values()]) for row in _with_labels(view))
    return _file(view, itertools.chain([head], lines), "text/csv; charset=utf-8", "csv")


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


def _with_labels(view: RunRequest) -> Iterator[dict[str, Any]]:
    rows = every_feature(view.results, view.query, view.search())
    labels = view.labels.latest(view.run, [row.feature for row in rows])
    return (as_json(row) | {"label": labels.get(row.feature)} for row in rows)


def _with_end(parts: Iterable[str], empty: str, end: str) -> Iterator[str]:
    """Yields the parts and then `end`; without parts, `empty` and `end`."""
    first = True
    for part in parts:
        first = False
        yield part
    yield (empty if first else "") + end


def _csv_line(values: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()


def _safe(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def _file(view: RunRequest, parts: Iterator[str], kind: str, ending: str) -> StreamingResponse:
    name = f"{view.run}-features.{ending}"
    return StreamingResponse(parts, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
