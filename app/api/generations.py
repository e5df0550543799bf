"""Generations as JSON: steer all sources, follow, stop, and read the texts."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.responses import JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from app.generations.generation import Generation
from app.generations.request import SteeringRequest, steer
from app.inference.client import WorkerBusy
from app.inference.messages import SourceState
from app.web.dependencies import Inference, LabelsEngine, Live, RunResults

router = APIRouter(prefix="/api/v1", tags=["steering"])

LAST_EVENT = "end"
"""Id of the last event of every stream."""


class StartedGeneration(Generation):
    """A generation, and whether it comes from storage."""

    from_storage: bool = Field(default=False, description="Whether it answers a request that was made before.")


class ModelStates(BaseModel):
    """Whether the model of each source is loaded."""

    run: str
    sources: list[SourceState]


@router.get("/runs/{run}/steer", summary="Whether the models of a run are loaded")
def read_models(results: RunResults, client: Inference) -> ModelStates:
    """The state of each source's model; asking loads nothing."""
    names = tuple(source.name for source in results.sources)
    return ModelStates(run=results.run, sources=client.states_or_absent(results.run, names))


@router.post(
    "/runs/{run}/generations",
    summary="Steer all sources with a feature, with and without",
    status_code=202,
    response_model=StartedGeneration,
    responses={503: {"description": "Too many are under way; try again after the seconds in Retry-After."}},
)
def start_generation(
    results: RunResults, labels: LabelsEngine, live: Live, asked: SteeringRequest
) -> StartedGeneration | Response:
    """Start a generation, or give the answer to the same request from storage."""
    try:
        generation, known = steer(labels, results, live, asked, author=None)
    except WorkerBusy as busy:
        error = {"status": 503, "title": busy.title, "message": busy.fact, "remedy": busy.remedy}
        return JSONResponse({"error": error}, 503, {"Retry-After": "10"})
    return StartedGeneration(**dict(generation), from_storage=known)


@router.get("/generations/{generation}", summary="A generation as it stands")
def read_generation(generation: str, live: Live) -> Generation:
    """Its parameters, and the text of every lane so far."""
    return live.snapshot(generation).generation


@router.delete(
    "/generations/{generation}",
    summary="Stop a generation",
    status_code=202,
    responses={409: {"description": "Another explorer runs it, with models that are out of reach from here."}},
)
def stop_generation(generation: str, live: Live) -> Generation:
    """End it within one token; its text is kept under the same address."""
    now = live.snapshot(generation).generation
    live.stop(generation)
    return now


def _existing(generation: str, live: Live) -> str:
    """The id of a generation that exists; looked up before a stream begins, so that a wrong one is a 404."""
    return live.snapshot(generation).generation.id


@router.get(
    "/generations/{generation}/events",
    summary="Follow a generation as server-sent events",
    response_class=EventSourceResponse,
)
async def stream_generation(
    generation: Annotated[str, Depends(_existing, scope="function")],
    live: Live,
    last_event_id: Annotated[str, Header()] = "",
) -> AsyncIterator[ServerSentEvent]:
    """Each event carries the whole generation as it stands; the last one is named `done`."""
    if last_event_id != LAST_EVENT:
        async for now in live.follow(generation):
            yield ServerSentEvent(raw_data=now.generation.model_dump_json(), id=str(now.version))
    yield ServerSentEvent(raw_data="{}", event="done", id=LAST_EVENT)
