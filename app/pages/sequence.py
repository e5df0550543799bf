"""Shows the whole text of one sequence with the known activations of one feature."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from app.results.connection import Source
from app.results.features.contexts import WholeSequence, check_tokens, whole_sequence
from app.results.features.feature import Feature, one_feature
from app.results.features.query import FeatureQuery
from app.results.owners import Owner, owner_of
from app.web.dependencies import RunView
from app.web.templates import address, render

router = APIRouter(include_in_schema=False)

Index = Annotated[int, Path(ge=0, le=2**31 - 1)]


@dataclass(frozen=True)
class SequencePage:
    """A whole sequence; HTMX inserts it below its context."""

    template: ClassVar[str] = "sequence.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    sources: tuple[Source, ...]
    owner: Owner
    feature: Feature
    whole: WholeSequence
    tokens: str
    """A source's name, or `both` for all of them."""
    query: FeatureQuery


@router.get("/runs/{run}/sequences/{sequence}")
def show_sequence(
    request: Request,
    sequence: Index,
    view: RunView,
    feature: Annotated[int, Query(ge=0, le=2**31 - 1)],
    tokens: Annotated[str, Query(max_length=200)] = "both",
) -> HTMLResponse:
    """The whole text of a sequence, as one feature sees it."""
    tag = view.tag(request)
    check_tokens(tokens, view.results.sources)
    one = one_feature(view.results, feature)
    page = SequencePage(
        run=view.run,
        sources=view.results.sources,
        owner=owner_of(one.owner, view.results.sources),
        feature=one,
        whole=whole_sequence(view.results, sequence, feature, scale=one.max_activation),
        tokens=tokens,
        query=view.query,
    )
    return render(request, page, tag=tag)


@router.get("/runs/{run}/contexts/{sequence}")
def show_under_former_address(request: Request, run: str, sequence: Index) -> RedirectResponse:
    """Redirects the former address of sequences, which people have shared."""
    path = address(request.app.state.settings.root_path, f"/runs/{run}/sequences/{sequence}")
    return RedirectResponse(f"{path}?{request.url.query}", 308)
