"""Generations as JSON: steer all sources, follow, stop, and read what was said."""

import datetime
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from app.generations.steer import (
    GenerationSnapshot,
    Inference,
    SteeringRequest,
    UnderWay,
    ask,
    follow,
    shown,
    source_states,
)
from app.generations.store import StoredGeneration
from app.inference.client import WorkerBusy
from app.inference.messages import Parameters, SourceState
from app.web.dependencies import LabelsToRead, LabelsToWrite, RunResults

router = APIRouter(prefix="/api/v1", tags=["steering"])

END = "end"
"""Id of the last event of every stream."""


class LaneRead(BaseModel):
    """One text: a source at one strength."""

    source: str
    strength: float = Field(description="In units of the feature's largest activation; 0 is off.")
    state: str = Field(description="waiting, loading, running, done, stopped or failed.")
    reason: str = Field(description="How it ended: end, length, or a sentence when it failed.")
    writes: bool | None = Field(
        description="Whether the feature writes to this source; if not, steering is exactly off."
    )
    prompt: str = Field(description="What the model read, with its template.")
    text: str
    tokens: int
    seconds: float = Field(description="Time spent sampling.")


class GenerationRead(BaseModel):
    """A generation with every parameter and every text."""

    id: str
    run: str
    feature: int
    content_hash: str
    author: str | None
    parameters: Parameters
    state: str = Field(description="waiting, running, done, stopped or failed.")
    reason: str
    place: int = Field(description="How many must finish first; 0 when it is its turn.")
    created_at: datetime.datetime
    lanes: list[LaneRead]
    from_storage: bool = Field(default=False, description="Whether it answers a request that was made before.")


class Models(BaseModel):
    """How far the model of each source is."""

    run: str
    sources: list[SourceState]


@router.get("/runs/{run}/steer", summary="How far the models of a run are")
def read_models(results: RunResults, client: Inference) -> Models:
    """The state of each source's model; asking loads nothing."""
    return Models(run=results.run, sources=source_states(client, results))


@router.post(
    "/runs/{run}/generations",
    summary="Steer all sources with a feature, with and without",
    status_code=202,
    response_model=GenerationRead,
    responses={503: {"description": "Too many are under way; try again after the seconds in Retry-After."}},
)
def start_generation(
    results: RunResults, session: LabelsToWrite, broadcast: UnderWay, asked: SteeringRequest
) -> GenerationRead | Response:
    """Begin a generation, or give the answer to the same request from storage."""
    try:
        generation, known = ask(session, results, broadcast, asked, author=None)
    except WorkerBusy as busy:
        error = {"status": 503, "title": busy.title, "message": busy.fact, "remedy": busy.remedy}
        return JSONResponse({"error": error}, 503, {"Retry-After": "10"})
    return _read(GenerationSnapshot(generation, 0, 0, frozenset()), from_storage=known)


@router.get("/generations/{generation}", summary="A generation as it stands")
def read_generation(generation: str, session: LabelsToRead, broadcast: UnderWay) -> GenerationRead:
    """Its parameters, and what every lane has said so far."""
    return _read(shown(session, broadcast, generation))


@router.delete("/generations/{generation}", summary="Stop a generation", status_code=202)
def stop_generation(generation: str, session: LabelsToRead, broadcast: UnderWay) -> GenerationRead:
    """End it within one token; what was said is kept under the same address."""
    now = shown(session, broadcast, generation)
    broadcast.stop(generation)
    return _read(now)


def _followed(generation: str, session: LabelsToRead, broadcast: UnderWay) -> StoredGeneration:
    return shown(session, broadcast, generation).generation


@router.get(
    "/generations/{generation}/events",
    summary="Follow a generation as server-sent events",
    response_class=EventSourceResponse,
)
async def stream_generation(
    request: Request,
    stored: Annotated[StoredGeneration, Depends(_followed, scope="function")],
    broadcast: UnderWay,
    last_event_id: Annotated[str, Header()] = "",
) -> AsyncIterator[ServerSentEvent]:
    """Each event carries the whole generation as it stands; the last one is named `done`."""
    if last_event_id != END:
        async for now in follow(request.app.state.labels, broadcast, stored, 0):
            yield ServerSentEvent(raw_data=_read(now).model_dump_json(), id=str(now.version))
    yield ServerSentEvent(raw_data="{}", event="done", id=END)


def _read(now: GenerationSnapshot, *, from_storage: bool = False) -> GenerationRead:
    generation = now.generation
    lanes: list[dict[str, Any]] = [dict(lane.__dict__) for lane in generation.lanes]
    fields = {**generation.__dict__, "lanes": lanes, "place": now.place, "from_storage": from_storage}
    del fields["updated_at"]
    return GenerationRead.model_validate(fields)
