"""Opens the labels database, migrates its schema and provides transactions."""

import asyncio
import contextlib
import functools
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import filelock
import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from app.errors import BadQuery, ReaderError
from app.settings import REPOSITORY, Settings

log = logging.getLogger("crossdiff.labels")

RETRY_INTERVAL = 20.0
"""Seconds between attempts to migrate a labels database that was unusable at server start."""
PATIENCE = 5.0
"""Seconds that a statement, a free connection, or a lock of the file may take before the database counts as silent."""
CONNECT_PATIENCE = 3
"""Seconds for a connection to PostgreSQL."""
MIGRATION_PATIENCE = 20.0
"""The same for migrations, which may wait for another server's."""
START_PATIENCE = 5.0
"""Seconds that the explorer waits for its labels before it starts without them."""
REST = 3.0
"""Seconds after a silence in which nobody but one asks again; the others are told at once."""
TRY_AGAIN = "Nothing was saved. Copy what you typed and try again soon."
URL_REMEDY = "Set CROSSDIFF_DATABASE_URL to postgresql://user:password@host/name, or unset it to use a file."
MIGRATION_KEY = 7_203_941
"""Key of the PostgreSQL advisory lock that serialises migrations of several servers."""


class LabelsUnusable(ReaderError):
    """The labels database cannot be opened or brought up to date."""

    status = 503
    title = "The labels cannot be read"
    retry_after = 5

    def __init__(self, fact: str, *, remedy: str) -> None:
        super().__init__(f"The labels database cannot be used: {fact}", remedy=remedy)


def database_url(settings: Settings | None = None) -> str:
    """URL of the labels database: `labels.db` in the home folder unless the settings name another."""
    settings = settings or Settings.from_environment()
    return settings.database_url or f"sqlite:///{settings.home / 'labels.db'}"


class Outage:
    """Whether a database was silent a moment ago, so that not everybody waits to learn it. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0

    def check(self) -> None:
        """Raise LabelsUnusable during an outage; after each rest one caller passes, and finds out."""
        with self._lock:
            if not self._until:
                return
            now = time.monotonic()
            if now < self._until:
                raise LabelsUnusable("it has not answered for some seconds.", remedy=TRY_AGAIN)
            self._until = now + PATIENCE + REST

    def begin(self) -> None:
        """The database was silent."""
        with self._lock:
            self._until = time.monotonic() + REST

    def end(self) -> None:
        """The database answered."""
        self._until = 0.0


def open_database(url: str, *, foreign_keys: bool = True, patience: float = PATIENCE) -> Engine:
    """An engine on a labels database, SQLite or PostgreSQL; nothing is connected yet.

    `foreign_keys` is off for migrations alone, because SQLite changes a table by replacing it. `patience` is the
    seconds that anything may take. Raises LabelsUnusable for an address that is neither.
    """
    try:
        address = make_url(url)
    except sa.exc.ArgumentError:
        raise LabelsUnusable("its address is not a database URL.", remedy=URL_REMEDY) from None
    if address.drivername in ("postgres", "postgresql"):
        address = address.set(drivername="postgresql+psycopg")
    # Reading and writing fail apart: a lock stops only writers.
    options = {"outages": {False: Outage(), True: Outage()}}
    if address.get_backend_name() == "postgresql":
        engine = sa.create_engine(address, pool_pre_ping=True, pool_timeout=patience, execution_options=options)
        event.listen(engine, "do_connect", functools.partial(_connect_patiently, patience))
        return engine
    if address.get_backend_name() != "sqlite":
        raise LabelsUnusable(f"labels cannot be kept in {address.get_backend_name()}.", remedy=URL_REMEDY)
    engine = sa.create_engine(address, connect_args={"timeout": patience}, execution_options=options)
    event.listen(engine, "connect", _configure_with_foreign_keys if foreign_keys else _configure_connection)
    event.listen(engine, "begin", _begin)
    return engine


def migrate(url: str) -> None:
    """Bring the schema up to date in one transaction, one process at a time.

    Raises LabelsUnusable when the database cannot be opened, is damaged, or is newer than this program.
    """
    engine = open_database(url, foreign_keys=False, patience=MIGRATION_PATIENCE)
    try:
        with _file_lock(engine), engine.connect().execution_options(writing=True) as connection, connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_KEY)))
            command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        remedy = "Start the newer Crossdiff, or name another database with CROSSDIFF_DATABASE_URL."
        raise LabelsUnusable(f"its schema is newer than this program knows ({error}).", remedy=remedy) from error
    except (sa.exc.DBAPIError, OSError) as error:  # a lock file that is held too long is an OSError
        remedy = "Check that the server runs and the file can be written, or restore a backup."
        raise LabelsUnusable(f"{_cause(error)}.", remedy=remedy) from error
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
    Do nothing else meanwhile: no request, no rendering, no change of thread.
    Raises LabelsUnusable when the database fails or stays silent, and BadQuery for values that it cannot store.
    """
    outage: Outage = engine.get_execution_options()["outages"][writing]
    outage.check()
    bound = engine.execution_options(writing=True) if writing else engine
    began = time.monotonic()
    try:
        with Session(bound, expire_on_commit=False) as session, session.begin():
            yield session
        outage.end()
    except sa.exc.IntegrityError:
        raise
    except sa.exc.DataError as error:
        raise BadQuery(f"The labels cannot hold this: {_cause(error)}.", remedy="Check the address.") from error
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        # No connection, no table, a full disk: the visitor can do nothing about it, and must not lose the text.
        if time.monotonic() - began >= REST:
            outage.begin()
        raise LabelsUnusable(f"{_cause(error)}.", remedy=TRY_AGAIN) from error


def _cause(error: Exception) -> str:
    """The first line of what the database says, without a full stop."""
    return (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextlib.asynccontextmanager
async def migrated(url: str) -> AsyncIterator[None]:
    """Migrate, then run the body; a database that is silent or unusable is migrated when it can, beside the body."""
    migrating = asyncio.create_task(_migrate_until_done(url))
    try:
        await asyncio.wait([migrating], timeout=START_PATIENCE)
        yield
    finally:
        migrating.cancel()


async def _migrate_until_done(url: str) -> None:
    """Migrate; results stay readable meanwhile."""
    failed = False
    while True:
        try:
            await asyncio.to_thread(migrate, url)
        except LabelsUnusable as error:
            if not failed:
                log.error("%s", error)
            failed = True
            await asyncio.sleep(RETRY_INTERVAL)
        else:
            if failed:
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
    with filelock.FileLock(path.with_name(path.name + ".lock"), timeout=MIGRATION_PATIENCE):
        yield


class _PatientConnection(psycopg.Connection[Any]):
    """A connection that is given up when the server stays silent: a frozen one never closes it."""

    patience = PATIENCE

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """As of every connection, for a limited time. Raises OperationalError."""
        try:
            return super().wait(gen, interval, timeout or self.patience)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has been silent for {self.patience:g} seconds") from error


def _connect_patiently(patience: float, _dialect: Any, _entry: Any, arguments: Any, options: dict[str, Any]) -> Any:
    """Connect to PostgreSQL; the server ends what takes too long, and the connection where the server does not."""
    connection = _PatientConnection.connect(*arguments, **{"connect_timeout": CONNECT_PATIENCE, **options})
    connection.patience = patience + 1
    connection.execute(f"set statement_timeout = {round(1000 * patience)}")
    connection.execute("set idle_in_transaction_session_timeout = 60000")
    connection.commit()
    return connection


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
