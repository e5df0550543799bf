"""Tables of the labels database; Alembic checks its migrations against them."""

import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Every constraint has a name, so that a later migration can drop it on any database."""


class UtcDateTime(TypeDecorator[datetime.datetime]):
    """Time-zone-aware timestamp, stored and returned in UTC; SQLite drops the zone by itself."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, _dialect: Dialect) -> datetime.datetime | None:
        """Convert to UTC; a naive datetime is a bug."""
        if value is None:
            return None
        assert value.tzinfo is not None, "a timestamp needs a time zone"
        return value.astimezone(datetime.UTC)

    def process_result_value(self, value: datetime.datetime | None, _dialect: Dialect) -> datetime.datetime | None:
        """Return the stored time with its zone, UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


class Base(DeclarativeBase):
    """Declarative base with the naming convention for constraints."""

    metadata = MetaData(naming_convention=NAMES)


class Label(Base):
    """One revision of one author's label of a feature. Rows are only ever added.

    An author's current label is the row with the largest revision. The unique key is the optimistic lock:
    saving a second revision 3 violates it.
    """

    __tablename__ = "label"
    __table_args__ = (UniqueConstraint("run", "feature", "author", "revision"), Index(None, "content_hash"))

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run: Mapped[str] = mapped_column(String(200))
    feature: Mapped[int] = mapped_column(Integer)
    content_hash: Mapped[str] = mapped_column(String(128))
    """Of the feature's decoder directions: finds the feature again after a re-index."""
    author: Mapped[str] = mapped_column(String(60))
    revision: Mapped[int] = mapped_column(Integer)
    """1 for the author's first label of this feature, then counting up."""
    text: Mapped[str] = mapped_column(Text)
    """Empty when withdrawn."""
    note: Mapped[str] = mapped_column(Text)
    folded: Mapped[str] = mapped_column(Text)
    """Text and note with case folded, for search: SQLite by itself folds only ASCII."""
    withdrawn: Mapped[bool] = mapped_column(Boolean)
    restores: Mapped[int | None] = mapped_column(Integer)
    """The older revision that this one restores, if any."""
    created_at: Mapped[datetime.datetime] = mapped_column(UtcDateTime)


class GenerationRow(Base):
    """One request to steer: its parameters, and how it went."""

    __tablename__ = "generation"
    __table_args__ = (Index(None, "fingerprint", "created_at"), Index(None, "run", "feature", "created_at"))

    id: Mapped[str] = mapped_column(String(24), primary_key=True)
    """Random; part of the permalink."""
    run: Mapped[str] = mapped_column(String(200))
    feature: Mapped[int] = mapped_column(Integer)
    content_hash: Mapped[str] = mapped_column(String(128))
    author: Mapped[str | None] = mapped_column(String(60))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Everything that decides the text; the keys are those of the form."""
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Hash of run, feature and parameters: equal requests have equal fingerprints."""
    state: Mapped[str] = mapped_column(String(16))
    """waiting, running, done, stopped or failed."""
    reason: Mapped[str] = mapped_column(Text, default="")
    """Why it failed or stopped, as one sentence; empty otherwise."""
    created_at: Mapped[datetime.datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime.datetime] = mapped_column(UtcDateTime)
    """Heartbeat while it runs: tells a slow generation from one whose server died."""
    lanes: Mapped[list["LaneRow"]] = relationship(order_by="LaneRow.lane", back_populates="generation", lazy="selectin")


class LaneRow(Base):
    """One text of a generation: a source at one strength."""

    __tablename__ = "lane"

    generation_id: Mapped[str] = mapped_column(ForeignKey("generation.id"), primary_key=True)
    lane: Mapped[int] = mapped_column(Integer, primary_key=True)
    """Index in the grid, from 0."""
    source: Mapped[str] = mapped_column(String(64))
    strength: Mapped[float] = mapped_column(Float)
    """In units of the feature's largest activation; 0 is off."""
    writes: Mapped[bool | None] = mapped_column(Boolean)
    """Whether the feature writes to this source; null until the worker reports it."""
    prompt: Mapped[str] = mapped_column(Text, default="")
    """What the model read, with its template and special tokens; empty until the worker reports it."""
    text: Mapped[str] = mapped_column(Text, default="")
    tokens: Mapped[int] = mapped_column(Integer, default=0)
    seconds: Mapped[float] = mapped_column(Float, default=0.0)
    """Time spent sampling, without waiting and loading."""
    state: Mapped[str] = mapped_column(String(16))
    """waiting, loading, running, done, stopped or failed."""
    reason: Mapped[str] = mapped_column(Text, default="")
    """How it ended: `end` (end-of-sequence token), `length`, or a sentence when it failed."""
    generation: Mapped[GenerationRow] = relationship(back_populates="lanes")
