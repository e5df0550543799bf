"""Steering: store what is asked, begin it, and show how it goes; pages and API share it."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from fastapi import Depends, FastAPI, Request
from pydantic import ValidationError
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from app.database.engine import transaction
from app.errors import FeatureNotFound, NotFound, ReaderError
from app.generations.live import GenerationState, LaneSoFar, LiveGenerations
from app.generations.store import (
    StoredGeneration,
    StoredLane,
    find_generation,
    fingerprint,
    keep_generation,
    new_generation,
    recent_generations,
    same_generation,
)
from app.inference.client import Address, Client, RemoteWorker
from app.inference.messages import GenerationRequest, LaneRequest, Parameters, SourceState, explain
from app.inference.supervisor import Supervisor
from app.labels.store import labels_of
from app.results.connection import Results
from app.results.features.feature import Feature, InSource, in_sources, one_feature
from app.results.owners import Owner, owner_of
from app.settings import Settings

POLL = 1.0
"""Seconds between two looks at a generation that another process of this explorer runs."""


class CannotSteer(ReaderError):
    """What is asked of the models makes no sense."""

    status = 422
    title = "Not steered"

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__(" ".join(problems.values()), remedy="")
        self.problems = problems
        """By field of the form."""


class SteeringRequest(Parameters):
    """A feature, and everything a person chooses about steering with it."""

    feature: int
    rerun: bool = False
    """Run it although the same request was answered before."""

    def parameters(self) -> dict[str, Any]:
        """What decides the text, as plain data."""
        return self.model_dump(mode="json", exclude={"feature", "rerun"})


@dataclass(frozen=True)
class SteerForm:
    """What stands in the steering form."""

    run: str
    feature: Feature | None
    """None when the address names none, or one that is not there."""
    sources: tuple[str, ...]
    silent: tuple[str, ...]
    """Sources that the feature does not write to: there steering changes nothing at all."""
    values: dict[str, str]
    """By field; as typed, or the default."""
    problems: dict[str, str]
    """By field; empty when it can be sent."""
    panel: bool = False
    """Whether the form is part of a feature's page."""


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
    recent: list[StoredGeneration]
    states: list[SourceState]


@dataclass(frozen=True)
class GenerationSnapshot:
    """A generation at one moment of its life, and which lanes changed since the moment before."""

    generation: StoredGeneration
    place: int
    """How many must finish first; 0 when it is its turn."""
    version: int
    changed: frozenset[int]


def prepare_steering(app: FastAPI, settings: Settings, labels: Engine) -> None:
    """Give the app its way to the models; nothing is started."""
    supervisor = None if settings.worker_url else Supervisor(settings.home)
    app.state.supervisor = supervisor
    app.state.client = Client(supervisor or RemoteWorker(_address(settings)))
    app.state.broadcast = LiveGenerations(app.state.client, _keeper(labels))


@asynccontextmanager
async def steering_open(app: FastAPI) -> AsyncIterator[None]:
    """While the server runs; at its end everything under way is saved and the worker ends."""
    app.state.broadcast.open()
    try:
        yield
    finally:
        await app.state.broadcast.close()
        if app.state.supervisor is not None:
            await asyncio.to_thread(app.state.supervisor.stop)


def _broadcast(request: Request) -> LiveGenerations:
    broadcast: LiveGenerations = request.app.state.broadcast
    return broadcast


def _client(request: Request) -> Client:
    client: Client = request.app.state.client
    return client


UnderWay = Annotated[LiveGenerations, Depends(_broadcast)]
Inference = Annotated[Client, Depends(_client)]


def steer_page(session: Session, results: Results, client: Client, form: SteerForm) -> SteerPage:
    """The page around a form."""
    feature = form.feature.feature if form.feature else None
    label = labels_of(session, results.run, [feature]).get(feature) if feature is not None else None
    recent = recent_generations(session, results.run, feature)
    owner = owner_of(form.feature.owner, results.sources) if form.feature else None
    return SteerPage(results.run, form, owner, label, recent, source_states(client, results))


def steer_form(results: Results, typed: dict[str, str], problems: dict[str, str] | None = None) -> SteerForm:
    """The form for a feature of this run, filled with what was typed and defaults."""
    values = {
        name: "" if field.is_required() else str(field.default) for name, field in SteeringRequest.model_fields.items()
    }
    values |= {name: typed[name] for name in values if typed.get(name)}
    feature, wrong = None, dict(problems or {})
    silent: tuple[str, ...] = ()
    if values["feature"]:
        try:
            feature = one_feature(results, int(values["feature"]))
            silent = tuple(one.name for one in in_sources(results, feature.feature) if not one.writes)
        except (ValueError, FeatureNotFound) as error:
            wrong["feature"] = str(error) if isinstance(error, FeatureNotFound) else "feature: a number is needed."
    names = tuple(source.name for source in results.sources)
    return SteerForm(results.run, feature, names, silent, values, wrong)


def panel_form(results: Results, feature: Feature, inside: Sequence[InSource]) -> SteerForm:
    """The form on a feature's page, with every default; the page has read the feature already."""
    form = steer_form(results, {})
    values = {**form.values, "feature": str(feature.feature)}
    silent = tuple(one.name for one in inside if not one.writes)
    return replace(form, feature=feature, silent=silent, values=values, panel=True)


def parse_asked(fields: dict[str, Any]) -> SteeringRequest:
    """Check what a form or an address says; empty fields take their defaults. Raises CannotSteer."""
    try:
        return SteeringRequest.model_validate({name: value for name, value in fields.items() if value != ""})
    except ValidationError as error:
        raise CannotSteer(
            {str(one["loc"][-1]) if one["loc"] else "": explain(dict(one)) for one in error.errors()}
        ) from None


def ask(
    session: Session, results: Results, broadcast: LiveGenerations, asked: SteeringRequest, author: str | None
) -> tuple[StoredGeneration, bool]:
    """Store a request and begin it once that is committed; or find that it was answered before.

    Gives the generation, and whether it comes from storage. Raises FeatureNotFound, CannotSteer, WorkerBusy.
    """
    feature = one_feature(results, asked.feature)
    parameters = asked.parameters()
    if not feature.max_activation > 0:
        fact = "The feature never fired, so there is no unit to count its strength in. Choose a feature that is alive."
        raise CannotSteer({"feature": fact})
    if not asked.rerun:
        known = same_generation(session, fingerprint(results.run, feature.feature, feature.content_hash, parameters))
        if known is not None:
            return known, True
    broadcast.require_room()
    lanes = tuple(
        StoredLane(one.name, strength, writes=one.writes)
        for one in in_sources(results, feature.feature)
        for strength in (0.0, asked.strength)
    )
    now = datetime.datetime.now(datetime.UTC)
    stored = new_generation(
        session,
        StoredGeneration(
            "", results.run, feature.feature, feature.content_hash, author, parameters, "", "", now, now, lanes
        ),
    )
    request = _request(stored, feature.max_activation)
    event.listen(session, "after_commit", lambda _: broadcast.start(request), once=True)
    return stored, False


def shown(session: Session, broadcast: LiveGenerations, generation: str) -> GenerationSnapshot:
    """A generation as it stands now, here or in storage. Raises NotFound."""
    # First here, then there: what has ended here is in storage already.
    so_far = broadcast.so_far(generation)
    stored = find_generation(session, generation)
    if stored is None:
        raise NotFound("There is no such generation.", remedy="Check the address; it may have been cut off.")
    return _with_live(stored, so_far, 0) if so_far else _as_it_stands(stored)


async def follow(
    labels: Engine, broadcast: LiveGenerations, stored: StoredGeneration, seen: int
) -> AsyncIterator[GenerationSnapshot]:
    """Yield a generation now and after each change until it has finished.

    `seen` is the version that the viewer has already; only lanes changed since are named.
    """
    async for so_far in broadcast.follow(stored.id):
        yield _with_live(stored, so_far, seen)
        seen = so_far.version
    while True:
        latest = await asyncio.to_thread(_read, labels, stored.id)
        if latest is None:
            return
        yield _as_it_stands(latest)
        if latest.finished:
            return
        await asyncio.sleep(POLL)


def source_states(client: Client, results: Results) -> list[SourceState]:
    """How far the model of each source is; all absent while no worker runs, or it cannot say."""
    try:
        known = {state.source: state for state in client.states(results.run)}
    except ReaderError:
        known = {}
    return [known.get(one.name, SourceState(source=one.name, state="absent")) for one in results.sources]


def _keeper(labels: Engine) -> Callable[[GenerationState], None]:
    """Stores how far a generation has come."""

    def keep(so_far: GenerationState) -> None:
        lanes = [_stored_lane(lane) for lane in so_far.lanes]
        with transaction(labels, writing=True) as session:
            keep_generation(session, so_far.id, state=so_far.state, reason=so_far.reason, lanes=lanes)

    return keep


def _read(labels: Engine, generation: str) -> StoredGeneration | None:
    with transaction(labels) as session:
        return find_generation(session, generation)


def _with_live(stored: StoredGeneration, so_far: GenerationState, seen: int) -> GenerationSnapshot:
    lanes = tuple(
        _stored_lane(lane) if lane.writes is not None else replace(_stored_lane(lane), writes=before.writes)
        for lane, before in zip(so_far.lanes, stored.lanes, strict=True)
    )
    changed = frozenset(place for place, lane in enumerate(so_far.lanes) if lane.changed > seen)
    live = replace(stored, state=so_far.state, reason=so_far.reason, lanes=lanes)
    return GenerationSnapshot(live, so_far.place, so_far.version, changed)


def _as_it_stands(stored: StoredGeneration) -> GenerationSnapshot:
    return GenerationSnapshot(stored, 0, 0, frozenset(range(len(stored.lanes))))


def _stored_lane(lane: LaneSoFar) -> StoredLane:
    return StoredLane(**{name: value for name, value in lane.__dict__.items() if name != "changed"})


def _request(stored: StoredGeneration, max_activation: float) -> GenerationRequest:
    return GenerationRequest(
        id=stored.id,
        run=stored.run,
        feature=stored.feature,
        max_activation=max_activation,
        parameters=Parameters.model_validate(stored.parameters),
        lanes=tuple(LaneRequest(source=lane.source, strength=lane.strength) for lane in stored.lanes),
    )


def _address(settings: Settings) -> Address:
    url = str(settings.worker_url)
    if url.startswith("unix:"):
        return Address(socket="/" + url.removeprefix("unix:").lstrip("/"), token=settings.worker_token)
    return Address(url=url.rstrip("/"), token=settings.worker_token)
