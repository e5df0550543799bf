"""Shows the filtered, sorted and searched list of features; the address holds its whole state."""

from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from app.results.connection import Source
from app.results.features.context_line import ListExample, examples_of
from app.results.features.feature_list import FeatureList, list_features, random_feature
from app.results.features.query import FeatureQuery, SetFilter, share_source
from app.results.features.search import Match, matches_of
from app.results.owners import Owner
from app.web.dependencies import RunView
from app.web.templates import address, render

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class FeaturesPage:
    """One page of the list with its filters; HTMX asks for everything but the page's head."""

    template: ClassVar[str] = "features.html"
    fragments: ClassVar[dict[str, str]] = {"browser": "_features_browser.html"}

    run: str
    sources: tuple[Source, ...]
    owners: dict[str, Owner]
    query: FeatureQuery
    share_of: Source
    """The source whose norm share is shown."""
    found: FeatureList
    examples: dict[int, ListExample]
    """Promoted tokens and a line of text of every feature on this page that ever fired."""
    matches: dict[int, Match]
    """Where each feature on this page has what was searched; empty without a search."""
    set_filters: list[SetFilter]
    """What narrows the list, with the way to take each back."""
    labels: dict[int, str]


@router.get("/runs/{run}/features")
def show_features(request: Request, view: RunView) -> HTMLResponse:
    """The list; HTMX gets the shortest address of its state to push into the history."""
    results, query = view.results, view.query
    tag = view.tag(request)
    search = view.search()
    found = list_features(results, query, search)
    shown = [row.feature for row in found.rows]
    matches = matches_of(results, search, shown) if search else {}
    page = FeaturesPage(
        run=view.run,
        sources=results.sources,
        owners=view.owners,
        query=query,
        share_of=next(source for source in results.sources if source.source == share_source(query, results)),
        found=found,
        examples=examples_of(results, shown, search.words if search else (), matches),
        matches=matches,
        set_filters=query.set_filters(),
        labels=view.labels.latest(view.run, shown),
    )
    response = render(request, page, tag=tag)
    if request.headers.get("HX-Target", "").endswith("#browser"):
        root_path = request.app.state.settings.root_path
        response.headers["HX-Push-Url"] = address(root_path, f"/runs/{view.run}/features", query.pairs())
    return response


@router.get("/runs/{run}/random")
def show_random(request: Request, view: RunView) -> RedirectResponse:
    """Redirects to a random living feature of the filtered list, or to the list if it is empty."""
    feature = random_feature(view.results, view.query, view.search())
    path = f"/runs/{view.run}/features" + ("" if feature is None else f"/{feature}")
    root_path = request.app.state.settings.root_path
    return RedirectResponse(address(root_path, path, view.query.pairs()), 303, {"Cache-Control": "no-store"})
