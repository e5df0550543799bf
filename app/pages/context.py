"""One context: a whole sequence with everything that is known of one feature on it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse

from app.dependencies import RunView
from app.results.connection import Source
from app.results.contexts import WholeContext, check_tokens, whole_context
from app.results.feature import Feature, one_feature
from app.results.listing import Listing
from app.results.owners import Owner, owner_of
from app.templates import render

router = APIRouter(include_in_schema=False)

Index = Annotated[int, Path(ge=0, le=2**31 - 1)]


@dataclass(frozen=True)
class ContextPage:
    """A whole sequence; HTMX puts it in the place of its window."""

    template: ClassVar[str] = "context.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    sources: tuple[Source, ...]
    owner: Owner
    feature: Feature
    whole: WholeContext
    tokens: str
    """A source's name, or `both` for all of them."""
    listing: Listing


@router.get("/runs/{run}/contexts/{context}")
def show_context(
    request: Request,
    context: Index,
    view: RunView,
    feature: Annotated[int, Query(ge=0, le=2**31 - 1)],
    tokens: Annotated[str, Query(max_length=200)] = "both",
) -> HTMLResponse:
    """The whole text of a context, as one feature sees it."""
    check_tokens(tokens, view.results.sources)
    one = one_feature(view.results, feature)
    page = ContextPage(
        run=view.run,
        sources=view.results.sources,
        owner=owner_of(one.owner, view.results.sources),
        feature=one,
        whole=whole_context(view.results, context, feature, scale=one.max_activation),
        tokens=tokens,
        listing=view.listing,
    )
    return render(request, page)
