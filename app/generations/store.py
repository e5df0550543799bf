"""Generations: what was asked of the models and what they said, kept under a permalink."""

import datetime
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.database.tables import Generation, Lane

UNFINISHED = ("waiting", "running")
SILENCE = datetime.timedelta(seconds=60)
"""An unfinished generation that was not renewed for this long has lost its server."""


@dataclass(frozen=True)
class StoredLane:
    """One text of a generation: a source at one strength."""

    source: str
    strength: float
    """In units of the feature's largest activation; 0 is off."""
    state: str = "waiting"
    """waiting, loading, running, done, stopped or failed."""
    reason: str = ""
    """How it ended: `end`, `length`, or a sentence when it failed."""
    writes: bool | None = None
    """Whether the feature writes to this source; None until the worker says."""
    prompt: str = ""
    """What the model read; empty until the worker says."""
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    """Time spent sampling, without waiting and loading."""


@dataclass(frozen=True)
class StoredGeneration:
    """A generation with every parameter and every text."""

    id: str
    run: str
    feature: int
    content_hash: str
    author: str | None
    parameters: dict[str, Any]
    state: str
    """waiting, running, done, stopped or failed."""
    reason: str
    """Why it failed or stopped, as one sentence; empty otherwise."""
    created_at: datetime.datetime
    updated_at: datetime.datetime
    lanes: tuple[StoredLane, ...]

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.state not in UNFINISHED

    @property
    def by_source(self) -> dict[str, list[tuple[int, StoredLane]]]:
        """Lanes of each source in order, each with its place."""
        sources: dict[str, list[tuple[int, StoredLane]]] = {}
        for place, lane in enumerate(self.lanes):
            sources.setdefault(lane.source, []).append((place, lane))
        return sources


def fingerprint(run: str, feature: int, content_hash: str, parameters: dict[str, Any]) -> str:
    """Equal for requests that must give the same text: 64 hex digits."""
    everything = [run, feature, content_hash, parameters]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def new_generation(session: Session, asked: StoredGeneration) -> StoredGeneration:
    """Store a request under a new random id; its `id` and times are filled in."""
    now = datetime.datetime.now(datetime.UTC)
    row = Generation(
        id=secrets.token_urlsafe(9),
        run=asked.run,
        feature=asked.feature,
        content_hash=asked.content_hash,
        author=asked.author,
        parameters=asked.parameters,
        fingerprint=fingerprint(asked.run, asked.feature, asked.content_hash, asked.parameters),
        state="waiting",
        reason="",
        created_at=now,
        updated_at=now,
        lanes=[
            Lane(lane=place, source=lane.source, strength=lane.strength, writes=lane.writes, state="waiting")
            for place, lane in enumerate(asked.lanes)
        ],
    )
    session.add(row)
    session.flush()
    return _stored(row)


def find_generation(session: Session, generation_id: str) -> StoredGeneration | None:
    """A generation by its id; one whose server died while it ran is given as failed."""
    row = session.get(Generation, generation_id)
    return _with_losses(_stored(row)) if row else None


def same_generation(session: Session, mark: str) -> StoredGeneration | None:
    """The newest generation with this fingerprint that is done or still going, if there is one."""
    query = sa.select(Generation).where(Generation.fingerprint == mark, Generation.state.in_(("done", *UNFINISHED)))
    for row in session.scalars(query.order_by(Generation.created_at.desc()).limit(5)):
        stored = _with_losses(_stored(row))
        if stored.state != "failed":
            return stored
    return None


def recent_generations(
    session: Session, run: str, feature: int | None = None, limit: int = 10
) -> list[StoredGeneration]:
    """The newest generations of a run, or of one of its features."""
    query = sa.select(Generation).where(Generation.run == run)
    if feature is not None:
        query = query.where(Generation.feature == feature)
    rows = session.scalars(query.order_by(Generation.created_at.desc()).limit(limit))
    return [_with_losses(_stored(row)) for row in rows]


def keep_generation(
    session: Session, generation_id: str, *, state: str, reason: str, lanes: Sequence[StoredLane]
) -> None:
    """Store how far a generation has come."""
    row = session.get_one(Generation, generation_id)
    row.state, row.reason, row.updated_at = state, reason, datetime.datetime.now(datetime.UTC)
    for kept, lane in zip(row.lanes, lanes, strict=True):
        kept.state, kept.reason = lane.state, lane.reason
        kept.writes = kept.writes if lane.writes is None else lane.writes
        kept.prompt, kept.text, kept.tokens, kept.seconds = lane.prompt, lane.text, lane.tokens, lane.seconds


def _with_losses(stored: StoredGeneration) -> StoredGeneration:
    """The same, or failed when nobody has renewed it for too long."""
    if stored.finished or datetime.datetime.now(datetime.UTC) - stored.updated_at < SILENCE:
        return stored
    reason = (
        "The server stopped while this was running. What had been said until then is kept; run it again for the rest."
    )
    lanes = tuple(lane if lane.state in ("done", "failed") else replace(lane, state="failed") for lane in stored.lanes)
    return replace(stored, state="failed", reason=reason, lanes=lanes)


def _stored(row: Generation) -> StoredGeneration:
    return StoredGeneration(
        row.id,
        row.run,
        row.feature,
        row.content_hash,
        row.author,
        row.parameters,
        row.state,
        row.reason,
        row.created_at,
        row.updated_at,
        tuple(
            StoredLane(
                lane.source,
                lane.strength,
                lane.state,
                lane.reason,
                lane.writes,
                lane.prompt,
                lane.text,
                lane.tokens,
                lane.seconds,
            )
            for lane in row.lanes
        ),
    )
