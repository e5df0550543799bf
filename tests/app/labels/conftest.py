"""Labels databases for tests: SQLite always, PostgreSQL where it is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.labels.database import migrate, open_database
from tests.worlds.databases import new_database, postgres_programs, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A running PostgreSQL server."""
    if postgres_programs() is None:
        pytest.skip("needs PostgreSQL's initdb (Debian: apt install postgresql)")
    with postgres_server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'home' / 'labels.db'}"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def labels(url: str) -> Iterator[Engine]:
    """An engine on a database with the current schema."""
    migrate(url)
    engine = open_database(url)
    yield engine
    engine.dispose()
