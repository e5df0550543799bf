"""An explorer with one tiny run that is only read, and databases: SQLite, and PostgreSQL where it is installed."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from app.database.engine import migrate, open_database
from app.main import create_app
from app.results.connection import Results, RunCatalog
from app.settings import Settings
from tests.worlds.databases import new_database, postgres_programs, postgres_server
from tests.worlds.tiny_results import RUN, write_tiny_run


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished run."""
    home = tmp_path_factory.mktemp("tiny-home")
    write_tiny_run(home)
    return home


@pytest.fixture(scope="session")
def reader(tiny_home: Path) -> Iterator[TestClient]:
    """A client of an explorer over that home."""
    with TestClient(create_app(Settings(home=tiny_home))) as client:
        yield client


@pytest.fixture
def catalog(tiny_home: Path) -> Iterator[RunCatalog]:
    """The runs of that home."""
    catalog = RunCatalog(tiny_home / "runs")
    yield catalog
    catalog.close()


@pytest.fixture
def results(catalog: RunCatalog) -> Iterator[Results]:
    """The results of its run."""
    results = catalog.results(RUN)
    yield results
    results.cursor.close()


@pytest.fixture
def tables(tiny_home: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The tables of the same results, to compute expected values independently."""
    folder = tiny_home / "runs" / RUN
    copy = folder.parent.parent / "copy.duckdb"
    copy.write_bytes(next(folder.glob("results-*.duckdb")).read_bytes())
    connection = duckdb.connect(str(copy), read_only=True)
    yield connection
    connection.close()


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
