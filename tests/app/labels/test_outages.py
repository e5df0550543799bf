"""A labels database that hangs, is damaged or silent: results stay readable, and labels say so and come back."""

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest
from starlette.testclient import TestClient

from app.database.engine import open_database
from app.main import create_app
from app.settings import Settings
from tests.worlds.databases import new_database
from tests.worlds.tiny_results import RUN

FEATURE = f"/runs/{RUN}/features/3"
PAGES = ("/", f"/runs/{RUN}/features", FEATURE)
LABEL = {"author": "Ada", "text": "German"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become fractions of them."""
    monkeypatch.setattr("app.database.engine.START_PATIENCE", 0.5)
    monkeypatch.setattr("app.database.engine.MIGRATION_PATIENCE", 2.0)
    monkeypatch.setattr("app.database.engine.RETRY_INTERVAL", 0.5)
    monkeypatch.setattr("app.database.engine.REST", 0.8)
    monkeypatch.setattr("app.database.engine.CONNECT_PATIENCE", 2)
    monkeypatch.setattr("app.main.open_database", partial(open_database, patience=1.0))


@contextmanager
def explorer(home: Path, url: str) -> Iterator[TestClient]:
    """An explorer with that labels database; fails when it takes long to start."""
    began = time.monotonic()
    with TestClient(create_app(Settings(home=home, database_url=url)), raise_server_exceptions=False) as client:
        assert time.monotonic() - began < 5
        yield client


def assert_only_labels_are_missing(client: TestClient) -> None:
    """Pages of results are there, and soon; everything about labels is a 503 that says when to come again."""
    for page in PAGES:
        began = time.monotonic()
        assert client.get(page).status_code == 200, page
        assert time.monotonic() - began < 6, page
    for answer in (
        client.get(f"{FEATURE}/labels"),
        client.post(f"{FEATURE}/labels", data=LABEL),
        client.get(f"/api/v1{FEATURE}/labels"),
        client.post(f"/api/v1{FEATURE}/labels", json=LABEL),
    ):
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert "labels database cannot be used" in answer.text
    assert client.get("/readyz").status_code == 503
    began = time.monotonic()
    client.get(FEATURE)
    assert time.monotonic() - began < 1, "what is known to be silent is not waited for again"


def garbage(file: Path) -> None:
    file.write_bytes(b"this is no database at all, " * 400)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(40_000))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def rot(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[100:] = b"\x5a" * (len(data) - 100)
    file.write_bytes(data)


def tables_gone(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("drop table label")


@pytest.mark.parametrize("damage", [garbage, zeros, folder, rot, tables_gone])
def test_a_damaged_file_takes_only_the_labels(tiny_home: Path, tmp_path: Path, damage: Callable[[Path], None]):
    url = f"sqlite:///{tmp_path / 'labels.db'}"
    with explorer(tiny_home, url) as client:
        assert client.post(f"/api/v1{FEATURE}/labels", json=LABEL).status_code == 201
    damage(tmp_path / "labels.db")

    with explorer(tiny_home, url) as client:
        if damage is zeros:  # SQLite takes a file of zeros for a new one; the migration says what it finds
            assert client.get(FEATURE).status_code == 200
        else:
            assert_only_labels_are_missing(client)


def test_a_file_that_another_program_locks_stops_writers_for_a_moment(tiny_home: Path, tmp_path: Path):
    file = tmp_path / "labels.db"
    with explorer(tiny_home, f"sqlite:///{file}") as client:
        client.post(f"/api/v1{FEATURE}/labels", json=LABEL)
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("begin immediate")
        answer = client.post(f"/api/v1{FEATURE}/labels", json={**LABEL, "text": "Dutch", "revision": 1})
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert "German" in client.get(FEATURE).text, "readers go on"
        other.execute("rollback")
        other.close()
        time.sleep(1)
        again = client.post(f"/api/v1{FEATURE}/labels", json={**LABEL, "text": "Dutch", "revision": 1})
        assert again.status_code == 201


def test_an_address_that_accepts_and_stays_silent_takes_only_the_labels(tiny_home: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with explorer(tiny_home, f"postgresql://tester@127.0.0.1:{port}/labels") as client:
            assert_only_labels_are_missing(client)


def test_an_address_where_nothing_listens_takes_only_the_labels(tiny_home: Path):
    with explorer(tiny_home, "postgresql://tester@127.0.0.1:9/labels") as client:
        assert_only_labels_are_missing(client)


def test_a_frozen_server_takes_only_the_labels_and_thawed_they_are_back(tiny_home: Path, postgres: str):
    url = new_database(postgres)
    with explorer(tiny_home, url) as client:
        assert client.post(f"/api/v1{FEATURE}/labels", json=LABEL).status_code == 201
        server = _server_of(url)
        try:
            for process in server:
                os.kill(process, signal.SIGSTOP)
            assert_only_labels_are_missing(client)
        finally:
            for process in server:
                os.kill(process, signal.SIGCONT)
        time.sleep(1)
        assert "German" in client.get(f"{FEATURE}/labels").text
        answer = client.post(f"/api/v1{FEATURE}/labels", json={**LABEL, "text": "Dutch", "revision": 1})
        assert answer.status_code == 201


def _server_of(url: str) -> list[int]:
    """Ids of the server's processes."""
    with psycopg.connect(url) as connection:
        (backend,) = connection.execute("select pg_backend_pid()").fetchone() or (0,)
        parent = psutil.Process(backend).parent()
        assert parent is not None
        return [parent.pid, *(child.pid for child in parent.children(recursive=True) if child.pid != backend)]
