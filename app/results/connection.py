"""Opens results files read-only; each request gets a cursor of its own.

DuckDB keeps a file that was opened once alive inside the process, so a results file never changes under
its name: `current.json` points at the newest, and a new name is a new connection.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from app.errors import ResultsMissing, ResultsUnreadable, RunNotFound
from app.results.folders import results_pointer, run_names

SCHEMA_VERSION = 3
"""Of the results files that this explorer reads; `trainer/results/schema.sql` has the one that is written."""

OPTIONS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "2GB",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
"""DuckDB settings for the web process."""

OPEN_FILES = 16
"""Results files kept open at most."""

REPUBLISH = "`crossdiff analyse` with the recipe.yaml of the run's folder"
"""Remedy for unreadable results: the command that publishes them again."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Source:
    """One stream of activations that was compared."""

    source: int
    name: str
    model: str
    revision: str | None
    hookpoint: str
    layer: int | None
    width: int
    scale: float


@dataclass(frozen=True)
class Results:
    """One run's results, as one request sees them: a cursor of its own and what every page needs."""

    run: str
    cursor: duckdb.DuckDBPyConnection
    sources: tuple[Source, ...]
    features: int
    """Size of the dictionary."""
    file: str
    """Name of the results file; it changes whenever anything in it does."""

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of a query with named parameters. Raises ResultsUnreadable for a damaged file."""
        try:
            return self.cursor.execute(sql, parameters or None).fetchall()
        except duckdb.Error as error:
            raise unreadable(self.run, self.file, error) from error

    def row(self, sql: str, **parameters: Any) -> tuple[Any, ...] | None:
        """The first row of a query with named parameters. Raises ResultsUnreadable as `rows` does."""
        return next(iter(self.rows(sql, **parameters)), None)


@dataclass
class _OpenFile:
    path: Path
    connection: duckdb.DuckDBPyConnection
    sources: tuple[Source, ...]
    features: int
    cache: dict[str, Any]


class RunCatalog:
    """The runs on this machine; knows which results files are open. Safe to share between threads."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def folder(self, run: str) -> Path:
        """The folder of a run. Raises RunNotFound."""
        folder = self.runs / run
        if run.startswith(".") or folder.name != run or not folder.is_dir():
            raise RunNotFound(run, known=run_names(self.runs))
        return folder

    def results(self, run: str) -> Results:
        """A cursor into the run's published results. Raises RunNotFound, ResultsMissing or ResultsUnreadable."""
        opened = self._open_file(run)
        cursor = opened.connection.cursor()
        cursor.execute("set enable_progress_bar = false")  # it would draw on the server's terminal
        return Results(run, cursor, opened.sources, opened.features, opened.path.name)

    def cached(self, run: str, name: str, make: Callable[[Results], Value]) -> Value:
        """`make(results)`, computed once per results file, which never changes under its name."""
        opened = self._open_file(run)
        if name not in opened.cache:
            results = self.results(run)
            opened.cache[name] = make(results)
            results.cursor.close()
        return opened.cache[name]  # type: ignore[no-any-return]

    def forget(self, run: str) -> None:
        """Drop open files of a run, so that the next request opens its results anew."""
        with self._lock:
            for path in [path for path in self._open if path.parent.name == run]:
                del self._open[path]

    @property
    def open_files(self) -> int:
        """Results files that are open."""
        return len(self._open)

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].connection.close()

    def _open_file(self, run: str) -> _OpenFile:
        path = self._published(run)
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
            opened = _open(path, run)
            # Cursors of requests under way keep an older file alive until they are done.
            for other in [other for other in self._open if other.parent == path.parent]:
                del self._open[other]
            self._open[path] = opened
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
            return opened

    def _published(self, run: str) -> Path:
        folder = self.folder(run)
        try:
            name = results_pointer(folder)
        except ValueError as error:
            raise ResultsUnreadable(
                f"Run {run!r}: current.json cannot be read ({error}).", remedy=f"Publish again: {REPUBLISH}."
            ) from None
        if name is None:
            raise ResultsMissing(
                f"Run {run!r} has not published results yet.",
                remedy="The home page shows how far it is; start it again with the command that made it if it stopped.",
            )
        if not (folder / name).is_file():
            raise ResultsUnreadable(
                f"Run {run!r} points at {name}, which is not in its folder.", remedy=f"Publish again: {REPUBLISH}."
            )
        return folder / name


def _open(path: Path, run: str) -> _OpenFile:
    """Open and check one results file. Raises ResultsUnreadable."""
    try:
        connection = duckdb.connect(str(path), read_only=True, config=OPTIONS)
        (version,) = connection.execute("select max(schema_version) from run").fetchone() or (None,)
        if version != SCHEMA_VERSION:
            newer = version is not None and version > SCHEMA_VERSION
            update = "Update Crossdiff (`git pull`, then `make setup`) and start the explorer again."
            raise ResultsUnreadable(
                f"{path.name} of run {run!r} has schema {version}; this explorer reads schema {SCHEMA_VERSION}.",
                remedy=update if newer else f"Publish again: {REPUBLISH}.",
            )
        sources = connection.execute(
            "select source, name, model, revision, hookpoint, layer, width, scale from source order by source"
        ).fetchall()
        (features,) = connection.execute("select count(*) from feature").fetchone() or (0,)
    except duckdb.Error as error:
        raise unreadable(run, path.name, error) from error
    return _OpenFile(path, connection, tuple(Source(*row) for row in sources), features, {})


def unreadable(run: str, file: str, error: Exception) -> ResultsUnreadable:
    """The error for a file that DuckDB cannot read, with the remedy."""
    first = str(error).strip().splitlines()[0].rstrip(".")
    fact = f"The results of {run!r} ({file}) are damaged or not results at all: {first}."
    return ResultsUnreadable(fact, remedy=f"Publish them again: {REPUBLISH}.")
