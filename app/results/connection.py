"""Opens results files read-only; each request gets a cursor of its own.

DuckDB keeps a file that was opened once alive inside the process, so a results file never changes under
its name: `current.json` points at the newest, and a new name is a new connection.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

import duckdb

from app.errors import ResultsMissing, ResultsUnreadable, RunNotFound
from app.results.folders import is_run_name, results_pointer, run_names
from app.results.limits import LISTING_SECONDS, QUERY_SECONDS, ROWS_AT_MOST, WATCHDOG, memory_limit
from app.results.once import Once
from app.results.structure import active_content, wrong_table

SCHEMA_VERSION = 6
"""Of the results files that this explorer reads; `trainer/results/schema.sql` has the one that is written."""

OPTIONS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
"""DuckDB settings for the web process: a results file is data, and reaches nothing but itself."""

LARGEST_SOURCES = 64
"""Sources that a run can have."""
OPEN_FILES = 16
"""Results files kept open at most."""

ERROR_REST = 60.0
"""Seconds until a listing looks again at results that could not be read and have not changed."""

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

    seconds: float = QUERY_SECONDS
    """Time that each query may take."""

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of a query with named parameters. Raises ResultsUnreadable for a damaged or endless file."""
        try:
            with WATCHDOG.limit(self.cursor, self.seconds):
                found = self.cursor.execute(sql, parameters or None).fetchmany(ROWS_AT_MOST + 1)
        except duckdb.InterruptException:
            fact = f"A query on the results of {self.run!r} took longer than {self.seconds:g} seconds."
            remedy = f"Try again when this machine is less busy. If that does not help, publish again: {REPUBLISH}."
            raise ResultsUnreadable(fact, remedy=remedy) from None
        except (duckdb.Error, ValueError, OverflowError) as error:  # text that is no UTF-8, times that are none
            raise unreadable(self.run, self.file, error) from error
        if len(found) > ROWS_AT_MOST:
            raise unreadable(self.run, self.file, ValueError(f"more than {ROWS_AT_MOST:,} rows"))
        return found

    def row(self, sql: str, **parameters: Any) -> tuple[Any, ...] | None:
        """The first row of a query with named parameters. Raises ResultsUnreadable as `rows` does."""
        return next(iter(self.rows(sql, **parameters)), None)


@dataclass(frozen=True)
class _Publication:
    """A results file as it stands: another one under the same name is another publication."""

    path: Path
    changed: int
    size: int
    inode: int


@dataclass(frozen=True)
class _OpenFile:
    path: Path
    connection: duckdb.DuckDBPyConnection
    sources: tuple[Source, ...]
    features: int
    values: Once[str] = field(default_factory=Once)


class RunCatalog:
    """The runs on this machine; knows which results files are open. Safe to share between threads."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._open: Once[_Publication] = Once(OPEN_FILES)
        self._kept: Once[tuple[_Publication, str]] = Once(error_rest=ERROR_REST)

    def folder(self, run: str) -> Path:
        """The folder of a run. Raises RunNotFound."""
        folder = self.runs / run
        if not is_run_name(run) or folder.name != run or not os.path.isdir(folder):  # noqa: PTH112 - never raises
            raise RunNotFound(run, known=run_names(self.runs))
        return folder

    def results(self, run: str) -> Results:
        """A cursor into the run's published results. Raises RunNotFound, ResultsMissing or ResultsUnreadable."""
        return self._results(run, self._open_file(run, self._published(run)))

    def cached(self, run: str, name: str, make: Callable[[Results], Value]) -> Value:
        """`make(results)`, computed once per results file, which never changes under its name."""
        opened = self._open_file(run, self._published(run))
        return opened.values.get(name, lambda: self._made(run, opened, make, QUERY_SECONDS))

    def kept(self, run: str, name: str, make: Callable[[Results], Value]) -> Value:
        """As `cached`, for small values of listings: they outlive the open file, and so do their errors for a while."""
        publication = self._published(run)

        def compute() -> Value:
            path = publication.path
            self._kept.discard(lambda key: key[0] != publication and key[0].path.parent == path.parent)
            return self._made(run, self._open_file(run, publication), make, LISTING_SECONDS)

        return self._kept.get((publication, name), compute)

    def forget(self, run: str) -> None:
        """Drop open files of a run, so that the next request opens its results anew."""
        self._open.discard(lambda key: key.path.parent.name == run)

    @property
    def open_files(self) -> int:
        """Results files that are open."""
        return len(self._open)

    def close(self) -> None:
        """Close every file."""
        for opened in self._open.clear():
            opened.connection.close()

    @staticmethod
    def _results(run: str, opened: _OpenFile) -> Results:
        cursor = opened.connection.cursor()
        cursor.execute("set enable_progress_bar = false")  # it would draw on the server's terminal
        return Results(run, cursor, opened.sources, opened.features, opened.path.name)

    def _made(self, run: str, opened: _OpenFile, make: Callable[[Results], Value], seconds: float) -> Value:
        results = replace(self._results(run, opened), seconds=seconds)
        try:
            return make(results)
        finally:
            results.cursor.close()

    def _open_file(self, run: str, publication: _Publication) -> _OpenFile:
        def open_anew() -> _OpenFile:
            # Cursors of requests under way keep an older file alive until they are done.
            folder = publication.path.parent
            self._open.discard(lambda key: key != publication and key.path.parent == folder)
            return _open(publication.path, run)

        return self._open.get(publication, open_anew)

    def _published(self, run: str) -> _Publication:
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
        try:
            path = folder / name
            stat = path.stat()
        except (OSError, ValueError):
            stat = None
        if stat is None or not S_ISREG(stat.st_mode):
            raise ResultsUnreadable(
                f"Run {run!r} points at {name}, which is not in its folder.", remedy=f"Publish again: {REPUBLISH}."
            )
        return _Publication(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _open(path: Path, run: str) -> _OpenFile:
    """Open and check one results file. Raises ResultsUnreadable."""
    try:
        connection = duckdb.connect(str(path), read_only=True, config={**OPTIONS, "memory_limit": memory_limit()})
        results = Results(run, connection, (), 0, path.name, LISTING_SECONDS)
        if problem := active_content(connection):
            raise unreadable(run, path.name, ValueError(problem))
        _check_version(results)
        if problem := wrong_table(connection):
            raise unreadable(run, path.name, ValueError(problem))
        sources = results.rows(
            """
            select source, name, model, revision, hookpoint, layer, width, scale
            from source order by source limit $most
            """,
            most=LARGEST_SOURCES,
        )
        (features,) = results.row("select count(*) from feature") or (0,)
    except duckdb.Error as error:
        raise unreadable(run, path.name, error) from error
    if not sources:
        raise unreadable(run, path.name, ValueError("it names no sources"))
    return _OpenFile(path, connection, tuple(Source(*row) for row in sources), features)


def _check_version(results: Results) -> None:
    """Raise ResultsUnreadable for another schema than ours."""
    (version,) = results.row("select max(schema_version) from run") or (None,)
    if version == SCHEMA_VERSION:
        return
    newer = isinstance(version, int) and version > SCHEMA_VERSION
    update = "Update Crossdiff (`git pull`, then `make setup`) and start the explorer again."
    raise ResultsUnreadable(
        f"{results.file} of run {results.run!r} has schema {version}; this explorer reads schema {SCHEMA_VERSION}.",
        remedy=update if newer else f"Publish again: {REPUBLISH}.",
    )


def unreadable(run: str, file: str, error: Exception) -> ResultsUnreadable:
    """The error for a file that DuckDB cannot read, with the remedy."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    fact = f"The results of {run!r} ({file}) are damaged or not results at all: {first}."
    return ResultsUnreadable(fact, remedy=f"Publish them again: {REPUBLISH}.")
