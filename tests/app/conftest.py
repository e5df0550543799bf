"""An explorer with one tiny run, made once and only read."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.results.connection import Library, Results
from app.settings import Settings
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
def library(tiny_home: Path) -> Iterator[Library]:
    """The runs of that home."""
    library = Library(tiny_home / "runs")
    yield library
    library.close()


@pytest.fixture
def results(library: Library) -> Iterator[Results]:
    """The results of its run."""
    results = library.results(RUN)
    yield results
    results.cursor.close()


@pytest.fixture
def tables(tiny_home: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The tables of the same results, to work expected values out from by other ways."""
    folder = tiny_home / "runs" / RUN
    copy = folder.parent.parent / "copy.duckdb"
    copy.write_bytes(next(folder.glob("results-*.duckdb")).read_bytes())
    connection = duckdb.connect(str(copy), read_only=True)
    yield connection
    connection.close()
