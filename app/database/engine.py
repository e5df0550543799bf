"""Opens the labels database, migrates its schema and provides transactions."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from app.errors import ReaderError
from app.settings import REPOSITORY, Settings

log = logging.getLogger("crossdiff.labels")

RETRY_INTERVAL = 20.0
"""Seconds between attempts to migrate a labels database that was unusable at server start."""
WRITE_TIMEOUT = 15.0
"""Seconds a writer waits for another writer of the same SQLite file."""
URL_REMEDY = "Set CROSSDIFF_DATABASE_URL to postgresql://user:password@host/name, or unset it to use a file."
MIGRATION_KEY = 7_203_941
"""Key of the PostgreSQL advisory lock that serialises migrations of several servers."""


class LabelsUnusable(ReaderError):
    """The labels database cannot be opened or brought up to date."""

    status = 503
    title = "The labels cannot be read"

    def __init__(self, fact: str, *, remedy: str) -> None:
        super().__init__(f"The labels database cannot be used: {fact}", remedy=remedy)


def database_url(settings: Settings | None = None) -> str:
    """URL of the labels database: `labels.db` in the home folder unless the settings name another."""
    settings = settings or Settings.from_environment()
    return settings.database_url or f"sqlite:///{settings.home / 'labels.db'}"


def open_database(url: str, *, foreign_keys: bool = True) -> Engine:
    """An engine on a labels database, SQLite or PostgreSQL; nothing is connected yet.

    `foreign_keys` is off for migrations alone, because SQLite changes a table by replacing it.
    Raises LabelsUnusable for an address that is neither.
    """
    try:
        address = make_url(url)
    except sa.exc.ArgumentError:
        raise LabelsUnusable("its address is not a database URL.", remedy=URL_REMEDY) from None
    if address.drivername in ("postgres", "postgresql"):
        address = address.set(drivername="postgresql+psycopg")
    if address.get_backend_name() == "postgresql":
        return sa.create_engine(address, pool_pre_ping=True)
    if address.get_backend_name() != "sqlite":
        raise LabelsUnusable(f"labels cannot be kept in {address.get_backend_name()}.", remedy=URL_REMEDY)
    engine = sa.create_engine(address, connect_args={"timeout": WRITE_TIMEOUT})
    event.listen(engine, "connect", _configure_with_foreign_keys if foreign_keys else _configure_connection)
    event.listen(engine, "begin", _begin)
    return engine


def migrate(url: str) -> None:
    """Bring the schema up to date in one transaction, one process at a time.

    Raises LabelsUnusable when the database cannot be opened, is damaged, or is newer than this program.
    """
    engine = open_database(url, foreign_keys=False)
    try:
        with _file_lock(engine), engine.connect().execution_options(writing=True) as connection, connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_KEY)))
            command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        remedy = "Start the newer Crossdiff, or name another database with CROSSDIFF_DATABASE_URL."
        raise LabelsUnusable(f"its schema is newer than this program knows ({error}).", remedy=remedy) from error
    except (sa.exc.DBAPIError, OSError) as error:
        cause = str(getattr(error, "orig", None) or error).strip().rstrip(".")
        remedy = "Check that the server runs and the file can be written, or restore a backup."
        raise LabelsUnusable(f"{cause}.", remedy=remedy) from error
    finally:
        engine.dispose()


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; given a connection, its commands run in that connection's transaction."""
    config = Config(REPOSITORY / "alembic.ini")
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest revision of the schema that this program knows."""
    newest = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert newest is not None, "there is no migration at all"
    return newest


@contextlib.contextmanager
def transaction(engine: Engine, *, writing: bool = False) -> Iterator[Session]:
    """One transaction: committed when the body ends, rolled back when it raises.

    Pass `writing` for a transaction that writes: SQLite then takes the write lock at the beginning and waits for it.
    A transaction that reads first and writes later fails at once if another one wrote in between.
    Raises LabelsUnusable when the database fails.
    """
    bound = engine.execution_options(writing=True) if writing else engine
    try:
        with Session(bound, expire_on_commit=False) as session, session.begin():
            yield session
    except (sa.exc.OperationalError, sa.exc.ProgrammingError) as error:
        # No connection, no table, a full disk: the visitor can do nothing about it, and must not lose the text.
        cause = str(error.orig or error).strip().splitlines()[0].rstrip(".")
        raise LabelsUnusable(
            f"{cause}.", remedy="Nothing was saved. Copy what you typed and try again soon."
        ) from error


@contextlib.asynccontextmanager
async def migrated(url: str) -> AsyncIterator[None]:
    """Migrate, then run the body; retries an unusable database in the background, since results stay readable."""
    waiting: asyncio.Task[None] | None = None
    try:
        await asyncio.to_thread(migrate, url)
    except LabelsUnusable as error:
        log.error("%s", error)
        waiting = asyncio.create_task(_migrate_later(url))
    try:
        yield
    finally:
        if waiting is not None:
            waiting.cancel()


async def _migrate_later(url: str) -> None:
    while True:
        await asyncio.sleep(RETRY_INTERVAL)
        with contextlib.suppress(LabelsUnusable):
            await asyncio.to_thread(migrate, url)
            log.warning("The labels database can be used again.")
            return


@contextlib.contextmanager
def _file_lock(engine: Engine) -> Iterator[None]:
    """Hold a lock file beside a SQLite file, whose folder is created if missing; no-op for other databases."""
    if engine.dialect.name != "sqlite" or engine.url.database in (None, "", ":memory:"):
        yield
        return
    path = Path(str(engine.url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(path.name + ".lock")):
        yield


def _configure_connection(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    """Set up a new SQLite connection: WAL allows readers beside a writer; full sync survives a power cut."""
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so, in `_begin`
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode=wal")
    cursor.execute("pragma synchronous=full")
    cursor.close()


def _configure_with_foreign_keys(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
    """Set up a new SQLite connection that enforces foreign keys."""
    _configure_connection(connection, entry)
    connection.execute("pragma foreign_keys=on").close()


def _begin(connection: Connection) -> None:
    """Begin a SQLite transaction; one that will write takes the write lock now."""
    options: dict[str, Any] = dict(connection.get_execution_options())
    connection.exec_driver_sql("begin immediate" if options.get("writing") else "begin")
