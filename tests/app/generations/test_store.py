"""Stored generations: every parameter and every text under one id."""

import datetime

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from app.database.engine import transaction
from app.database.tables import Generation
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

NEVER = datetime.datetime.fromtimestamp(0, datetime.UTC)
LANES = (StoredLane("smol", 0.0), StoredLane("smol", 2.5))


def asked(prompt: str = "Hello", feature: int = 3) -> StoredGeneration:
    """A request that was not stored yet."""
    return StoredGeneration("", "pair", feature, "f00d", "Ada", {"prompt": prompt}, "", "", NEVER, NEVER, LANES)


def test_a_generation_comes_back_with_its_parameters_and_lanes_in_order(labels: Engine):
    with transaction(labels, writing=True) as session:
        stored = new_generation(session, asked("Grüße <b>\n"))
    with transaction(labels) as session:
        found = find_generation(session, stored.id)
    assert found == stored
    assert found.parameters == {"prompt": "Grüße <b>\n"}
    assert [(lane.source, lane.strength, lane.state) for lane in found.lanes] == [
        ("smol", 0.0, "waiting"),
        ("smol", 2.5, "waiting"),
    ]


def test_text_so_far_is_kept(labels: Engine):
    with transaction(labels, writing=True) as session:
        stored = new_generation(session, asked())
    said = (
        StoredLane("smol", 0.0, "done", "length", writes=True, prompt="<s>Hello", text=" wörld", tokens=2, seconds=0.5),
        StoredLane("smol", 2.5, "running", writes=True, prompt="<s>Hello", text=" wor"),
    )
    with transaction(labels, writing=True) as session:
        keep_generation(session, stored.id, state="running", reason="", lanes=said)
    with transaction(labels) as session:
        found = find_generation(session, stored.id)
    assert found is not None
    assert (found.state, found.lanes) == ("running", said)


def test_the_same_request_is_found_when_done_or_going_but_not_when_it_failed(labels: Engine):
    mark = fingerprint("pair", 3, "f00d", {"prompt": "Hello"})
    with transaction(labels, writing=True) as session:
        assert same_generation(session, mark) is None
        stored = new_generation(session, asked())
        new_generation(session, asked("another"))
        assert same_generation(session, mark) == stored
        keep_generation(session, stored.id, state="failed", reason="it broke", lanes=stored.lanes)
        assert same_generation(session, mark) is None
        keep_generation(session, stored.id, state="done", reason="", lanes=stored.lanes)
        same = same_generation(session, mark)
        assert same is not None
        assert same.id == stored.id


@pytest.mark.parametrize(
    "other",
    [
        ("another", 3, "f00d", {"prompt": "Hello"}),
        ("pair", 4, "f00d", {"prompt": "Hello"}),
        ("pair", 3, "beef", {"prompt": "Hello"}),
        ("pair", 3, "f00d", {"prompt": "hello"}),
    ],
)
def test_anything_that_changes_the_text_changes_the_fingerprint(other):
    assert fingerprint("pair", 3, "f00d", {"prompt": "Hello"}) != fingerprint(*other)


def test_one_whose_server_died_is_shown_as_failed_with_its_text(labels: Engine):
    with transaction(labels, writing=True) as session:
        stored = new_generation(session, asked())
        keep_generation(
            session, stored.id, state="running", reason="", lanes=(StoredLane("smol", 0.0, "done"), LANES[1])
        )
        long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
        session.execute(sa.update(Generation).values(updated_at=long_ago))
    with transaction(labels) as session:
        found = find_generation(session, stored.id)
        assert found is not None
        assert (found.state, [lane.state for lane in found.lanes]) == ("failed", ["done", "failed"])
        assert "server stopped" in found.reason
        assert same_generation(session, fingerprint("pair", 3, "f00d", {"prompt": "Hello"})) is None


def test_recent_generations_come_newest_first(labels: Engine):
    with transaction(labels, writing=True) as session:
        ids = [new_generation(session, asked(str(n), feature=n % 2)).id for n in range(4)]
    with transaction(labels) as session:
        assert [one.id for one in recent_generations(session, "pair")] == ids[::-1]
        assert [one.id for one in recent_generations(session, "pair", feature=1)] == [ids[3], ids[1]]
        assert recent_generations(session, "another") == []
