"""Takes a request to steer: checks it, stores it, and starts the generation."""

from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine

from app.database.engine import transaction
from app.errors import ReaderError
from app.generations.generation import Generation
from app.generations.live import LiveGenerations
from app.generations.store import fingerprint, new_generation, remove_generation, same_generation
from app.inference.client import WorkerBusy
from app.inference.messages import GenerationRequest, Lane, Parameters, explain
from app.results.connection import Results
from app.results.features.feature import in_sources, one_feature


class CannotSteer(ReaderError):
    """The request makes no sense."""

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

    def parameters(self) -> Parameters:
        """What decides the text."""
        return Parameters.model_validate(self.model_dump(exclude={"feature", "rerun"}))


def parse_request(fields: dict[str, Any]) -> SteeringRequest:
    """Check what a form or an address says; empty fields take their defaults. Raises CannotSteer."""
    try:
        return SteeringRequest.model_validate({name: value for name, value in fields.items() if value != ""})
    except ValidationError as error:
        raise CannotSteer(
            {str(one["loc"][-1]) if one["loc"] else "": explain(dict(one)) for one in error.errors()}
        ) from None


def steer(
    labels: Engine, results: Results, live: LiveGenerations, request: SteeringRequest, author: str | None
) -> tuple[Generation, bool]:
    """Store a request, commit it, and start it; or find that it was answered before.

    Every source gets two lanes, off and steered. Returns the generation, and whether it comes from storage.
    Raises FeatureNotFound, CannotSteer, WorkerBusy and LabelsUnusable.
    """
    feature = one_feature(results, request.feature)
    if not feature.max_activation > 0:
        fact = "The feature never fired, so there is no unit to count its strength in. Choose a feature that is alive."
        raise CannotSteer({"feature": fact})
    parameters = request.parameters()
    lanes = tuple(
        Lane(source=source.name, strength=strength, writes=source.writes)
        for source in in_sources(results, feature.feature)
        for strength in (0.0, parameters.strength)
    )
    with transaction(labels, writing=True) as session:
        if not request.rerun:
            mark = fingerprint(results.run, feature.feature, feature.content_hash, parameters)
            known = same_generation(session, mark)
            if known is not None:
                return known, True
        live.require_capacity()
        generation = new_generation(
            session,
            run=results.run,
            feature=feature.feature,
            content_hash=feature.content_hash,
            author=author,
            parameters=parameters,
            lanes=lanes,
        )
    try:
        live.start(generation, _request_to_worker(generation, feature.max_activation))
    except WorkerBusy:
        with transaction(labels, writing=True) as session:
            remove_generation(session, generation.id)
        raise
    return generation, False


def _request_to_worker(generation: Generation, max_activation: float) -> GenerationRequest:
    return GenerationRequest(
        id=generation.id,
        run=generation.run,
        feature=generation.feature,
        max_activation=max_activation,
        parameters=generation.parameters,
        lanes=generation.lanes,
    )
