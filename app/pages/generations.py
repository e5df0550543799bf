"""Generations: ask for one, watch it, stop it, and find it again under its permalink."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fastapi import APIRouter, Cookie, Depends, Header, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.datastructures import FormData

from app.errors import ReaderError
from app.generations.steer import (
    CannotSteer,
    GenerationSnapshot,
    Inference,
    UnderWay,
    ask,
    follow,
    parse_asked,
    shown,
    steer_form,
    steer_page,
)
from app.generations.store import StoredGeneration
from app.inference.client import WorkerBusy
from app.labels.wording import NAME_COOKIE, name_in_cookie
from app.results.connection import RunCatalog
from app.results.features.feature import Feature, one_feature
from app.results.owners import Owner, owner_of
from app.web.dependencies import LabelsToRead, LabelsToWrite, RunResults, Runs
from app.web.templates import address, render, wants_fragment

router = APIRouter(include_in_schema=False)

PACE = 0.05
"""Seconds between two frames of a stream at least; what is said meanwhile comes together."""
RETRY_AFTER = "10"
END = "end"
"""Id of the last event of every stream."""


@dataclass(frozen=True)
class GenerationPage:
    """A generation with every parameter and every text; HTMX gets it without the page around it."""

    template: ClassVar[str] = "generation.html"
    fragments: ClassVar[dict[str, str]] = {"steer-result": "_generation.html", "generation": "_generation.html"}

    run: str
    generation: StoredGeneration
    place: int
    """How many must finish first; 0 when it is its turn."""
    from_storage: bool
    """Whether it answers a request that was made before."""
    feature: Feature | None = None
    """What it was steered with, where the run's results still have it."""
    owner: Owner | None = None


async def _typed(request: Request) -> dict[str, str]:
    form: FormData = await request.form()
    return {name: value for name, value in form.items() if isinstance(value, str)}


Typed = Annotated[dict[str, str], Depends(_typed)]


@dataclass(frozen=True)
class Desk:
    """What a request to steer needs, gathered."""

    results: RunResults
    session: LabelsToWrite
    broadcast: UnderWay
    client: Inference
    name: Annotated[str, Cookie(alias=NAME_COOKIE, max_length=600)] = ""


@router.post("/runs/{run}/generations")
def start_generation(request: Request, typed: Typed, desk: Annotated[Desk, Depends()]) -> Response:
    """Begin a generation, or find the same one in storage; then lead to its permalink."""
    panel = typed.pop("panel", "")
    try:
        author = name_in_cookie(desk.name) or None
        generation, known = ask(desk.session, desk.results, desk.broadcast, parse_asked(typed), author)
    except (CannotSteer, WorkerBusy) as error:
        problems = error.problems if isinstance(error, CannotSteer) else {"": str(error)}
        form = steer_form(desk.results, typed, problems)
        page = steer_page(desk.session, desk.results, desk.client, form)
        answer: Response = render(request, page, error.status)
        if isinstance(error, WorkerBusy):
            answer.headers["Retry-After"] = RETRY_AFTER
        return answer
    where = address(
        request.app.state.settings.root_path, f"/generations/{generation.id}", {"again": "1"} if known else None
    )
    if not wants_fragment(request):
        return RedirectResponse(where, 303)
    answer = _page(request, GenerationSnapshot(generation, 0, 0, frozenset()), from_storage=known)
    if not panel:
        answer.headers["HX-Push-Url"] = where
    return answer


@router.get("/generations/{generation}")
def show_generation(
    request: Request, generation: str, session: LabelsToRead, *, broadcast: UnderWay, library: Runs, again: bool = False
) -> HTMLResponse:
    """A generation as it stands; a page that is open while it runs follows it."""
    now = shown(session, broadcast, generation)
    return _page(request, now, from_storage=again, steered_with=_steered_with(library, now.generation))


def _steered_with(library: RunCatalog, stored: StoredGeneration) -> tuple[Feature, Owner] | None:
    """The feature as the results have it now; None when they are gone, or have another one under its number."""
    try:
        results = library.results(stored.run)
        with contextlib.closing(results.cursor):
            feature = one_feature(results, stored.feature)
    except ReaderError:
        return None
    return (feature, owner_of(feature.owner, results.sources)) if feature.content_hash == stored.content_hash else None


@router.post("/generations/{generation}/stop")
def stop_generation(request: Request, generation: str, session: LabelsToRead, broadcast: UnderWay) -> Response:
    """End a generation within one token; what was said stays."""
    follow = shown(session, broadcast, generation)
    broadcast.stop(generation)
    if wants_fragment(request):
        return Response(status_code=204)
    where = address(request.app.state.settings.root_path, f"/generations/{follow.generation.id}")
    return RedirectResponse(where, 303)


def _followed(generation: str, session: LabelsToRead, broadcast: UnderWay) -> StoredGeneration:
    return shown(session, broadcast, generation).generation


@router.get("/generations/{generation}/events", response_class=EventSourceResponse)
async def stream_generation(
    request: Request,
    stored: Annotated[StoredGeneration, Depends(_followed, scope="function")],
    broadcast: UnderWay,
    last_event_id: Annotated[str, Header()] = "",
) -> AsyncIterator[ServerSentEvent]:
    """Replay a generation and follow it to its end; opening a stream never starts anything."""
    if last_event_id != END:
        seen = int(last_event_id) if last_event_id.isdigit() else 0
        async for now in follow(request.app.state.labels, broadcast, stored, seen):
            yield ServerSentEvent(raw_data=_frame(request, now), id=str(now.version))
            await asyncio.sleep(PACE)
    yield ServerSentEvent(raw_data="", event="done", id=END)


def _page(
    request: Request, now: GenerationSnapshot, *, from_storage: bool, steered_with: tuple[Feature, Owner] | None = None
) -> HTMLResponse:
    page = GenerationPage(now.generation.run, now.generation, now.place, from_storage, *(steered_with or ()))
    return render(request, page)


def _frame(request: Request, now: GenerationSnapshot) -> str:
    """The lanes that changed and the state of the whole, as HTML for HTMX."""
    template = request.app.state.environment.get_template("_generation_frame.html")
    frame: str = template.render(generation=now.generation, place=now.place, changed=now.changed)
    return frame
