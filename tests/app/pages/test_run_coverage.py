"""What a source did not read as asked for, on a run's page."""

import html
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN, write_tiny_run


@pytest.mark.parametrize("told", [True, False])
def test_plain_chats_and_rows_that_are_not_finite_are_told(own_home: Path, told: bool):
    rows = "('chats', 0, 'plain_chats', 28), ('wiki', 1, 'not_finite', 5)"
    write_tiny_run(own_home, features=64, amend=(f"insert into coverage values {rows}",) if told else ())

    with TestClient(create_app(Settings(home=own_home))) as client:
        page = html.unescape(client.get(f"/runs/{RUN}/method").text)
        measured = client.get(f"/api/v1/runs/{RUN}").json()["coverage"]

    assert ("28 chats of chats were read as plain text in" in page) is told
    assert ("5 tokens of wiki were left out, because their activations in" in page) is told
    plain = {part["corpus"]: part["plain_chats"] for part in measured}
    assert plain["chats"] == ([28, None] if told else [None, None])
