"""Features: the filtered, sorted list, its facets, and the neighbours of a feature in it."""

from dataclasses import dataclass
from typing import Any

from app.results.connection import Results
from app.results.listing import FACETS, FROM, PER_PAGE, Listing, Selection, select


@dataclass(frozen=True)
class FeatureRow:
    """One feature as the list shows it."""

    feature: int
    group: str
    owner: str
    verdict: str
    q_value: float | None
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


COLUMNS = """
    f.feature, f.group_name, f.owner, f.verdict, f.q_value, f.firings, f.density, f.max_activation, s.norm_share,
    f.template_share, f.documents, f.main_corpus, f.main_corpus_share, f.score
"""


@dataclass(frozen=True)
class FacetValue:
    """One value that a facet can be narrowed to."""

    value: str
    count: int
    chosen: bool


@dataclass(frozen=True)
class FeatureList:
    """One page of the list, and what surrounds it."""

    rows: list[FeatureRow]
    total: int
    """Features that pass the filters."""
    pages: int
    facets: dict[str, list[FacetValue]]


@dataclass(frozen=True)
class Neighbours:
    """Where a feature stands in the filtered list."""

    place: int | None
    """From 1; None when the filters leave it out."""
    total: int
    previous: int | None
    next: int | None


def list_features(results: Results, listing: Listing, found: set[int] | None) -> FeatureList:
    """The page of features that the listing asks for. Raises BadQuery."""
    chosen = select(listing, results, found=found)
    (total,) = results.row(f"select count(*) {FROM} {chosen.where}", **chosen.parameters) or (0,)
    rows = results.rows(
        f"select {COLUMNS} {FROM} {chosen.where} order by {listing.order} limit $limit offset $offset",
        **chosen.parameters,
        limit=PER_PAGE,
        offset=(listing.page - 1) * PER_PAGE,
    )
    facets = {facet: _facet(results, listing, facet, found) for facet in FACETS}
    pages = max((total + PER_PAGE - 1) // PER_PAGE, 1)
    return FeatureList([FeatureRow(*row) for row in rows], total, pages, facets)


def every_feature(results: Results, listing: Listing, found: set[int] | None) -> list[FeatureRow]:
    """All features that pass the filters, in order, whatever the page. Raises BadQuery."""
    chosen = select(listing, results, found=found)
    rows = results.rows(f"select {COLUMNS} {FROM} {chosen.where} order by {listing.order}", **chosen.parameters)
    return [FeatureRow(*row) for row in rows]


def random_feature(results: Results, listing: Listing, found: set[int] | None) -> int | None:
    """Any living feature that passes the filters, or any at all when none of them lives."""
    chosen = select(listing, results, found=found)
    row = results.row(
        f"select f.feature {FROM} {chosen.where} order by f.firings = 0, random() limit 1", **chosen.parameters
    )
    return int(row[0]) if row else None


def neighbours(results: Results, listing: Listing, found: set[int] | None, feature: int) -> Neighbours:
    """The features before and after this one in the filtered list. Raises BadQuery."""
    chosen = select(listing, results, found=found)
    numbered = f"""
        select f.feature, row_number() over wanted as place, count(*) over () as total,
            lag(f.feature) over wanted as previous, lead(f.feature) over wanted as next
        {FROM} {chosen.where}
        window wanted as (order by {listing.order})
    """
    row = results.row(
        f"select place, total, previous, next from ({numbered}) where feature = $feature",  # noqa: S608 - our own parts
        **chosen.parameters,
        feature=feature,
    )
    if row is not None:
        return Neighbours(*row)
    return _outside(results, listing, chosen)


def _outside(results: Results, listing: Listing, chosen: Selection) -> Neighbours:
    """For a feature that the filters leave out: the list begins after it."""
    row = results.row(
        f"select f.feature, count(*) over () {FROM} {chosen.where} order by {listing.order} limit 1",
        **chosen.parameters,
    )
    first, total = row or (None, 0)
    return Neighbours(None, total, None, first)


def _facet(results: Results, listing: Listing, facet: str, found: set[int] | None) -> list[FacetValue]:
    """Counts of a facet's values under the other filters; chosen values stay even when they count nothing."""
    others = select(listing, results, found=found, without=facet)
    column = FACETS[facet]
    counts: dict[str, int] = dict.fromkeys(_values(listing, facet), 0)
    rows: list[tuple[Any, ...]] = results.rows(
        f"""
        select {column}, count(*) {FROM} {others.where} group by 1 having {column} is not null
        order by 2 desc, 1 limit 30
        """,
        **others.parameters,
    )
    counts |= {_shown(facet, value): count for value, count in rows}
    return [FacetValue(value, count, value in _values(listing, facet)) for value, count in counts.items()]


def _values(listing: Listing, facet: str) -> tuple[str, ...]:
    return getattr(listing, facet)  # type: ignore[no-any-return]


def _shown(facet: str, value: str) -> str:
    """Features that make no claim have an empty verdict, which an address cannot carry."""
    return "none" if facet == "verdict" and value == "" else value
