"""A generation: one request to steer with every parameter and every text, at one moment."""

import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.inference.messages import Lane, Parameters

UNFINISHED = ("waiting", "running")


class Generation(BaseModel):
    """A generation as it stands, stored or under way."""

    model_config = ConfigDict(frozen=True)

    id: str
    run: str
    feature: int
    content_hash: str
    """Of the feature's decoder directions when it was asked for."""
    author: str | None
    parameters: Parameters
    state: str = Field(default="waiting", description="waiting, running, done, stopped or failed.")
    reason: str = Field(default="", description="Why it failed or stopped, as one sentence; empty otherwise.")
    place: int = Field(default=0, description="How many must finish first; 0 when it is its turn.")
    created_at: datetime.datetime
    updated_at: datetime.datetime = Field(exclude=True)
    """When it was last saved."""
    lanes: tuple[Lane, ...]

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.state not in UNFINISHED

    @property
    def by_source(self) -> dict[str, list[tuple[int, Lane]]]:
        """Lanes of each source in order, each with its index."""
        sources: dict[str, list[tuple[int, Lane]]] = {}
        for index, lane in enumerate(self.lanes):
            sources.setdefault(lane.source, []).append((index, lane))
        return sources
