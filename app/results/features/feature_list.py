"""Queries the filtered, sorted list, its facets, and a feature's position in it."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.results.connection import Results
from app.results.features.query import FACETS, PER_PAGE, FeatureQuery, Selection, select
from app.results.features.search import Search

FACET_VALUES = 30
"""Values that a facet shows at most."""


@dataclass(frozen=True)
class FeatureRow:
    """One feature as the list shows it."""

    feature: int
    group: str
    owner: str
    verdict: str
    kind: str | None
    """absent, weaker, analogue or noise: how the owner differs, if the claim stands."""
    probe_ratio: float | None
    """R-precision of the other sources' best probe over that of the owner's."""
    probe_low: float | None
    """Bounds of its 90 % interval over documents."""
    probe_high: float | None
    excess: float | None
    """Firings over those that noise of the same shape would give."""
    excess_low: float | None
    """Bounds of its 90 % interval over documents."""
    excess_high: float | None
    fdr: float | None
    """Expected share of noise among claims as strong; None without calibration."""
    firings: int
    density: float
    """Firings per row analysed, 0 to 1."""
    max_activation: float
    norm_share: float | None
    """Of the chosen source, 0 to 1."""
    template_share: float | None
    documents: int | None
    corpus: str | None
    """The corpus part that holds most of its firings."""
    corpus_share: float | None
    score: float | None
    polysemous: bool | None
    """Warning that it may stand for several things."""
    found_in: int | None
    """Other trainings that have it too."""
    looked_in: int | None
    """Other trainings that were searched for it."""


COLUMNS = """
    f.feature, f.group_name, f.owner, f.verdict, f.kind, f.probe_ratio, f.probe_low, f.probe_high, f.excess,
    f.excess_low, f.excess_high, f.fdr, f.firings, f.density, f.max_activation, s.norm_share, f.template_share,
    f.documents, f.main_corpus, f.main_corpus_share, f.score,
    f.polysemous, f.found_in, f.looked_in
"""


@dataclass(frozen=True)
class FacetValue:
    """One value of a facet, with the number of features that have it."""

    value: str
    count: int
    chosen: bool


@dataclass(frozen=True)
class FeatureList:
    """One page of the list, with totals and facets."""

    rows: list[FeatureRow]
    total: int
    """Features that pass the filters."""
    page: int
    """The page shown: the one asked for, or the last one when there are fewer."""
    pages: int
    facets: dict[str, list[FacetValue]]


@dataclass(frozen=True)
class ListPosition:
    """Position of a feature in the filtered list, with the features around it."""

    position: int | None
    """From 1; None when the filters leave it out."""
    total: int
    previous: int | None
    next: int | None


def list_features(results: Results, query: FeatureQuery, found: Search | None) -> FeatureList:
    """The page of features that the query asks for. Raises BadQuery."""
    total, facets = facets_of(results, query, found)
    pages = max((total + PER_PAGE - 1) // PER_PAGE, 1)
    page = min(query.page, pages)
    from_where, parameters = select(query, results, found=found).from_where(COLUMNS)
    rows = results.rows(
        f"select {COLUMNS} {from_where} order by {query.order} limit $limit offset $offset",
        **parameters,
        limit=PER_PAGE,
        offset=(page - 1) * PER_PAGE,
    )
    return FeatureList([FeatureRow(*row) for row in rows], total, page, pages, facets)


def every_feature(results: Results, query: FeatureQuery, found: Search | None) -> list[FeatureRow]:
    """All features that pass the filters, in order, whatever the page. Raises BadQuery."""
    from_where, parameters = select(query, results, found=found).from_where(COLUMNS)
    rows = results.rows(f"select {COLUMNS} {from_where} order by {query.order}", **parameters)
    return [FeatureRow(*row) for row in rows]


def random_feature(results: Results, query: FeatureQuery, found: Search | None) -> int | None:
    """A random living feature that passes the filters; a dead one if none is alive, None if none passes."""
    from_where, parameters = select(query, results, found=found).from_where()
    row = results.row(f"select f.feature {from_where} order by f.firings = 0, random() limit 1", **parameters)
    return int(row[0]) if row else None


def feature_order(results: Results, query: FeatureQuery, found: Search | None) -> "FeatureOrder":
    """All features that pass the filters, in the list's order. Raises BadQuery."""
    from_where, parameters = select(query, results, found=found).from_where(query.order)
    rows = results.rows(f"select f.feature {from_where} order by {query.order}", **parameters)
    order = array("i", [feature for (feature,) in rows])
    places = array("i", [-1]) * results.features
    for place, feature in enumerate(order):
        places[feature] = place
    return FeatureOrder(order, places)


@dataclass(frozen=True)
class FeatureOrder:
    """An ordered list of features."""

    features: Sequence[int]
    places: Sequence[int]
    """By feature, its place from 0; -1 for features that are not in the list."""

    def position(self, feature: int) -> ListPosition:
        """Position of a feature; one that is not in the list counts as before the first."""
        order, place = self.features, self.places[feature]
        if place < 0:
            return ListPosition(None, len(order), None, order[0] if order else None)
        previous = order[place - 1] if place else None
        following = order[place + 1] if place + 1 < len(order) else None
        return ListPosition(place + 1, len(order), previous, following)


def facets_of(results: Results, query: FeatureQuery, found: Search | None) -> tuple[int, dict[str, list[FacetValue]]]:
    """Features that pass the filters; and counts of every facet's values under the other filters.

    Chosen values stay even with a count of 0.
    """
    free = [facet for facet in FACETS if not getattr(query, facet)]
    total, counts = _counts(results, select(query, results, found=found), free)
    for facet in FACETS:
        if facet not in free:
            counts |= _counts(results, select(query, results, found=found, without=facet), [facet])[1]
    return total, {facet: _values(query, facet, counts[facet]) for facet in FACETS}


def _counts(results: Results, chosen: Selection, facets: list[str]) -> tuple[int, dict[str, dict[str, int]]]:
    """Features in all, and by value of several facets, in one pass."""
    counts: dict[str, dict[str, int]] = {facet: {} for facet in facets}
    from_where, parameters = chosen.from_where()
    # Without a facet to group by, a constant stands for one.
    columns = ", ".join(FACETS[facet] for facet in facets) or "null"
    sets = ", ".join(["()", *(f"({FACETS[facet]})" for facet in facets)])
    which = f"grouping_id({columns})" if facets else "0"
    rows: list[tuple[Any, ...]] = results.rows(
        f"select {which}, {columns}, count(*) {from_where} group by grouping sets ({sets})", **parameters
    )
    total = 0
    for bits, *values, count in rows:
        # A facet's bit is 0 where the rows are grouped by it.
        index = next((index for index in range(len(facets)) if not bits >> (len(facets) - 1 - index) & 1), None)
        if index is None:
            total = count
        elif values[index] is not None:
            counts[facets[index]][_shown(facets[index], values[index])] = count
    return total, counts


def _values(query: FeatureQuery, facet: str, counts: dict[str, int]) -> list[FacetValue]:
    chosen: tuple[str, ...] = getattr(query, facet)
    known = dict.fromkeys(chosen, 0) | counts
    ordered = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    return [FacetValue(value, count, value in chosen) for value, count in ordered[:FACET_VALUES]]


def _shown(facet: str, value: str) -> str:
    """Value of a facet in an address; the empty verdict of features without a claim is written `none`."""
    return "none" if facet == "verdict" and value == "" else value
