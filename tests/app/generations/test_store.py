"""Stored generations: every parameter and every text under one id."""

import datetime

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from app.database.engine import transaction
from app.database.tables import GenerationRow
from app.generations.generation import Generation
from app.generations.store import (
    find_generation,
    fingerprint,
    new_generation,
    recent_generations,
    same_generation,
    save_generation,
)
from app.inference.messages import Lane, Parameters

LANES = (Lane(source="smol", strength=0.0), Lane(source="smol", strength=2.5))
HELLO = Parameters(prompt="Hello")


def store(session, prompt: str = "Hello", feature: int = 3) -> Generation:
    """Store a request."""
    return new_generation(
        session,
        run="pair",
        feature=feature,
        content_hash="f00d",
        author="Ada",
        parameters=Parameters(prompt=prompt),
        lanes=LANES,
    )


def test_a_generation_comes_back_with_its_parameters_and_lanes_in_order(labels: Engine):
    with transaction(labels, writing=True) as session:
        stored = store(session, "Grüße <b>\n")
    with transaction(labels) as session:
        found = find_generation(session, stored.id)
    assert found == stored
    assert found.parameters == Parameters(prompt="Grüße <b>\n")
    assert [(lane.source, lane.strength, lane.state) for lane in found.lanes] == [
        ("smol", 0.0, "waiting"),
        ("smol", 2.5, "waiting"),
    ]


def test_text_so_far_is_kept(labels: Engine):
    with transaction(labels, writing=True) as session:
        stored = store(session)
    ended = {"state": "done", "reason": "length", "tokens": 2, "seconds": 0.5}
    lanes = (
        Lane(source="smol", strength=0.0, writes=True, prompt="<s>Hello", text=" wörld", **ended),
        Lane(source="smol", strength=2.5, state="running", writes=True, prompt="<s>Hello", text=" wor"),
    )
    with transaction(labels, writing=True) as session:
        save_generation(session, stored.model_copy(update={"state": "running", "lanes": lanes}))
    with transaction(labels) as session:
        found = find_generation(session, stored.id)
    assert found is not None
    assert (found.state, found.lanes) == ("running", lanes)


def test_the_same_request_is_found_when_done_or_going_but_not_when_it_failed(labels: Engine):
    mark = fingerprint("pair", 3, "f00d", HELLO)
    with transaction(labels, writing=True) as session:
        assert same_generation(session, mark) is None
        stored = store(session)
        store(session, "another")
        assert same_generation(session, mark) == stored
        save_generation(session, stored.model_copy(update={"state": "failed", "reason": "it broke"}))
        assert same_generation(session, mark) is None
        save_generation(session, stored.model_copy(update={"state": "done"}))
        same = same_generation(session, mark)
        assert same is not None
        assert same.id == stored.id


@pytest.mark.parametrize(
    "other",
    [
        ("another", 3, "f00d", HELLO),
        ("pair", 4, "f00d", HELLO),
        ("pair", 3, "beef", HELLO),
        ("pair", 3, "f00d", Parameters(prompt="hello")),
    ],
)
def test_anything_that_changes_the_text_changes_the_fingerprint(other):
    assert fingerprint("pair", 3, "f00d", HELLO) != fingerprint(*other)


def test_one_whose_server_died_is_shown_as_failed_with_its_text(labels: Engine):
    with transaction(labels, writing=True) as session:
        stored = store(session)
        lanes = (LANES[0].model_copy(update={"state": "done"}), LANES[1])
        save_generation(session, stored.model_copy(update={"state": "running", "lanes": lanes}))
        long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
        session.execute(sa.update(GenerationRow).values(updated_at=long_ago))
    with transaction(labels) as session:
        found = find_generation(session, stored.id)
        assert found is not None
        assert (found.state, [lane.state for lane in found.lanes]) == ("failed", ["done", "failed"])
        assert "server stopped" in found.reason
        assert same_generation(session, fingerprint("pair", 3, "f00d", HELLO)) is None


def test_recent_generations_come_newest_first(labels: Engine):
    with transaction(labels, writing=True) as session:
        ids = [store(session, str(n), feature=n % 2).id for n in range(4)]
    with transaction(labels) as session:
        assert [one.id for one in recent_generations(session, "pair")] == ids[::-1]
        assert [one.id for one in recent_generations(session, "pair", feature=1)] == [ids[3], ids[1]]
        assert recent_generations(session, "another") == []
