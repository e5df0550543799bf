"""Stores generations under a permalink, which is made here, and finds them again."""

import datetime
import hashlib
import json
import secrets
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.database.tables import GenerationRow, LaneRow
from app.generations.generation import UNFINISHED, Generation
from app.inference.messages import Lane, Parameters

SILENCE = datetime.timedelta(seconds=60)
"""An unfinished generation that was not saved for this long has lost its server."""


def fingerprint(run: str, feature: int, content_hash: str, parameters: Parameters) -> str:
    """64 hex digits, equal for requests that must give the same text."""
    everything = [run, feature, content_hash, parameters.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def new_generation(
    session: Session,
    *,
    run: str,
    feature: int,
    content_hash: str,
    author: str | None,
    parameters: Parameters,
    lanes: Sequence[Lane],
) -> Generation:
    """Store a request under a new random id."""
    now = datetime.datetime.now(datetime.UTC)
    row = GenerationRow(
        id=secrets.token_urlsafe(9),
        run=run,
        feature=feature,
        content_hash=content_hash,
        author=author,
        parameters=parameters.model_dump(mode="json"),
        fingerprint=fingerprint(run, feature, content_hash, parameters),
        state="waiting",
        reason="",
        created_at=now,
        updated_at=now,
        lanes=[LaneRow(lane=index, source=lane.source, strength=lane.strength) for index, lane in enumerate(lanes)],
    )
    for stored, lane in zip(row.lanes, lanes, strict=True):
        _update(stored, lane)
    session.add(row)
    session.flush()
    return _generation(row)


def find_generation(session: Session, generation_id: str) -> Generation | None:
    """A generation by its id; one whose server died while it ran is given as failed."""
    row = session.get(GenerationRow, generation_id)
    return _failed_if_silent(_generation(row)) if row else None


def same_generation(session: Session, mark: str) -> Generation | None:
    """The newest generation with this fingerprint that is done or still going, if there is one."""
    query = sa.select(GenerationRow).where(
        GenerationRow.fingerprint == mark, GenerationRow.state.in_(("done", *UNFINISHED))
    )
    for row in session.scalars(query.order_by(GenerationRow.created_at.desc()).limit(5)):
        generation = _failed_if_silent(_generation(row))
        if generation.state != "failed":
            return generation
    return None


def recent_generations(session: Session, run: str, feature: int | None = None, limit: int = 10) -> list[Generation]:
    """The newest generations of a run, or of one of its features."""
    query = sa.select(GenerationRow).where(GenerationRow.run == run)
    if feature is not None:
        query = query.where(GenerationRow.feature == feature)
    rows = session.scalars(query.order_by(GenerationRow.created_at.desc()).limit(limit))
    return [_failed_if_silent(_generation(row)) for row in rows]


def save_generation(session: Session, generation: Generation) -> None:
    """Store how far a generation has come: its state and its lanes."""
    row = session.get_one(GenerationRow, generation.id)
    row.state, row.reason, row.updated_at = generation.state, generation.reason, datetime.datetime.now(datetime.UTC)
    for stored, lane in zip(row.lanes, generation.lanes, strict=True):
        _update(stored, lane)


def remove_generation(session: Session, generation_id: str) -> None:
    """Remove a generation that never began: the worker refused it."""
    session.execute(sa.delete(LaneRow).where(LaneRow.generation_id == generation_id))
    session.execute(sa.delete(GenerationRow).where(GenerationRow.id == generation_id))


def _update(row: LaneRow, lane: Lane) -> None:
    row.state = lane.state
    row.reason = lane.reason
    row.writes = lane.writes
    row.prompt = lane.prompt
    row.text = lane.text
    row.tokens = lane.tokens
    row.seconds = lane.seconds


def _lane(row: LaneRow) -> Lane:
    return Lane.model_validate(
        {
            "source": row.source,
            "strength": row.strength,
            "state": row.state,
            "reason": row.reason,
            "writes": row.writes,
            "prompt": row.prompt,
            "text": row.text,
            "tokens": row.tokens,
            "seconds": row.seconds,
        }
    )


def _generation(row: GenerationRow) -> Generation:
    return Generation(
        id=row.id,
        run=row.run,
        feature=row.feature,
        content_hash=row.content_hash,
        author=row.author,
        parameters=Parameters.model_validate(row.parameters),
        state=row.state,
        reason=row.reason,
        created_at=row.created_at,
        updated_at=row.updated_at,
        lanes=tuple(map(_lane, row.lanes)),
    )


def _failed_if_silent(generation: Generation) -> Generation:
    """The same, or failed when nobody has saved it for too long."""
    if generation.finished or datetime.datetime.now(datetime.UTC) - generation.updated_at < SILENCE:
        return generation
    reason = "The server stopped while this was running. The text until then is kept; run it again for the rest."
    lanes = tuple(
        lane if lane.state in ("done", "failed") else lane.model_copy(update={"state": "failed"})
        for lane in generation.lanes
    )
    return generation.model_copy(update={"state": "failed", "reason": reason, "lanes": lanes})
