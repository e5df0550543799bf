"""Steering: the form, and generations: start one, watch it, stop it, find it again under its permalink."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.datastructures import FormData

from app.database.engine import transaction
from app.errors import ReaderError
from app.generations.form import SteerForm, steer_form
from app.generations.generation import Generation
from app.generations.live import GenerationSnapshot
from app.generations.request import CannotSteer, parse_request, steer
from app.generations.store import recent_generations
from app.inference.client import WorkerBusy
from app.inference.messages import SourceState
from app.labels.store import latest_labels
from app.results.connection import Results, RunCatalog
from app.results.features.feature import Feature, one_feature
from app.results.owners import Owner, owner_of
from app.web.dependencies import Inference, LabelsEngine, Live, RunResults, Runs, Visitor
from app.web.templates import address, render, wants_fragment

router = APIRouter(include_in_schema=False)

FRAME_EVERY = 0.05
"""Seconds between two frames of a stream at least; changes in between come together."""
RETRY_AFTER = "10"
LAST_EVENT = "end"
"""Id of the last event of every stream."""


@dataclass(frozen=True)
class SteerPage:
    """The form with what was asked of the run before; HTMX gets the problems alone, and keeps the form as typed."""

    template: ClassVar[str] = "steer.html"
    fragments: ClassVar[dict[str, str]] = {
        "steer-result": "_steer_problems.html",
        "steer-models": "_steer_models.html",
    }

    run: str
    steer_form: SteerForm
    owner: Owner | None
    """Of the feature, when there is one."""
    label: str | None
    recent: list[Generation]
    states: list[SourceState]


@dataclass(frozen=True)
class GenerationPage:
    """A generation with every parameter and every text; HTMX gets it without the page around it."""

    template: ClassVar[str] = "generation.html"
    fragments: ClassVar[dict[str, str]] = {"steer-result": "_generation.html", "generation": "_generation.html"}

    run: str
    generation: Generation
    from_storage: bool
    """Whether it answers a request that was made before."""
    feature: Feature | None = None
    """What it was steered with, where the run's results still have it."""
    owner: Owner | None = None


@router.get("/runs/{run}/steer")
def show_steer(request: Request, results: RunResults, labels: LabelsEngine, client: Inference) -> HTMLResponse:
    """The form, prefilled entirely from the address; nothing runs until it is sent."""
    form = steer_form(results, dict(request.query_params))
    return render(request, _steer_page(results, labels, client, form))


async def _typed(request: Request) -> dict[str, str]:
    form: FormData = await request.form()
    return {name: value for name, value in form.items() if isinstance(value, str)}


@dataclass(frozen=True)
class _Asking:
    """What starting a generation needs from the app and the request."""

    typed: Annotated[dict[str, str], Depends(_typed)]
    results: RunResults
    labels: LabelsEngine
    live: Live
    client: Inference
    visitor: Visitor


@router.post("/runs/{run}/generations")
def start_generation(request: Request, asking: Annotated[_Asking, Depends()]) -> Response:
    """Start a generation, or find the same one in storage; then lead to its permalink."""
    typed = dict(asking.typed)
    panel = typed.pop("panel", "")
    try:
        author = asking.visitor or None
        generation, known = steer(asking.labels, asking.results, asking.live, parse_request(typed), author)
    except (CannotSteer, WorkerBusy) as error:
        return _refused(request, asking, typed, error)
    where = address(
        request.app.state.settings.root_path, f"/generations/{generation.id}", {"again": "1"} if known else None
    )
    if not wants_fragment(request):
        return RedirectResponse(where, 303)
    answer = _generation_page(request, generation, from_storage=known)
    if not panel:
        answer.headers["HX-Push-Url"] = where
    return answer


@router.get("/generations/{generation}")
def show_generation(
    request: Request, generation: str, *, live: Live, catalog: Runs, again: bool = False
) -> HTMLResponse:
    """A generation as it stands; a page that is open while it runs follows it."""
    now = live.snapshot(generation).generation
    return _generation_page(request, now, from_storage=again, steered_with=_steered_with(catalog, now))


@router.post("/generations/{generation}/stop")
def stop_generation(request: Request, generation: str, live: Live) -> Response:
    """End a generation within one token; its text so far stays."""
    live.snapshot(generation)
    live.stop(generation)
    if wants_fragment(request):
        return Response(status_code=204)
    return RedirectResponse(address(request.app.state.settings.root_path, f"/generations/{generation}"), 303)


def _existing(generation: str, live: Live) -> str:
    """The id of a generation that exists; looked up before a stream begins, so that a wrong one is a 404."""
    return live.snapshot(generation).generation.id


@router.get("/generations/{generation}/events", response_class=EventSourceResponse)
async def stream_generation(
    request: Request,
    generation: Annotated[str, Depends(_existing, scope="function")],
    live: Live,
    last_event_id: Annotated[str, Header()] = "",
) -> AsyncIterator[ServerSentEvent]:
    """Replay a generation and follow it to its end; opening a stream never starts anything."""
    if last_event_id != LAST_EVENT:
        seen = int(last_event_id) if last_event_id.isdigit() else 0
        async for now in live.follow(generation):
            yield ServerSentEvent(raw_data=_frame(request, now, seen), id=str(now.version))
            seen = now.version
            await asyncio.sleep(FRAME_EVERY)
    yield ServerSentEvent(raw_data="", event="done", id=LAST_EVENT)


def _steer_page(results: Results, labels: LabelsEngine, client: Inference, form: SteerForm) -> SteerPage:
    feature = form.feature.feature if form.feature else None
    with transaction(labels) as session:
        label = latest_labels(session, results.run, [feature]).get(feature) if feature is not None else None
        recent = recent_generations(session, results.run, feature)
    owner = owner_of(form.feature.owner, results.sources) if form.feature else None
    names = tuple(source.name for source in results.sources)
    return SteerPage(results.run, form, owner, label, recent, client.states_or_absent(results.run, names))


def _refused(request: Request, asking: _Asking, typed: dict[str, str], error: CannotSteer | WorkerBusy) -> Response:
    """The form as it was typed, with what is wrong."""
    problems = error.problems if isinstance(error, CannotSteer) else {"": str(error)}
    form = steer_form(asking.results, typed, problems)
    answer = render(request, _steer_page(asking.results, asking.labels, asking.client, form), error.status)
    if isinstance(error, WorkerBusy):
        answer.headers["Retry-After"] = RETRY_AFTER
    return answer


def _steered_with(catalog: RunCatalog, generation: Generation) -> tuple[Feature, Owner] | None:
    """The feature as the results have it now; None when they are gone, or have another one under its number."""
    try:
        results = catalog.results(generation.run)
        with contextlib.closing(results.cursor):
            feature = one_feature(results, generation.feature)
    except ReaderError:
        return None
    if feature.content_hash != generation.content_hash:
        return None
    return feature, owner_of(feature.owner, results.sources)


def _generation_page(
    request: Request,
    generation: Generation,
    *,
    from_storage: bool,
    steered_with: tuple[Feature, Owner] | None = None,
) -> HTMLResponse:
    return render(request, GenerationPage(generation.run, generation, from_storage, *(steered_with or ())))


def _frame(request: Request, now: GenerationSnapshot, seen: int) -> str:
    """The lanes that changed since version `seen` and the state of the whole, as HTML for HTMX."""
    template = request.app.state.environment.get_template("_generation_frame.html")
    frame: str = template.render(generation=now.generation, changed=now.lanes_changed_since(seen))
    return frame
