"""Checks that a results file holds the tables of the schema, and nothing that runs when it is read.

A view or macro in a file that somebody passed on could stand where a table or a function is expected, and be
anything: a file of this machine, or a query without end.
"""

import functools

import duckdb

from app.settings import REPOSITORY

SCHEMA = REPOSITORY / "trainer" / "results" / "schema.sql"
"""The schema as it is written; a file here, not a module."""
RUNS_WHEN_READ = """
select 'a view' from duckdb_views() where not internal
union all select 'a macro' from duckdb_functions() where not internal
union all select 'a type of its own' from duckdb_types() where not internal
limit 1
"""
TABLES = "select table_name, sql from duckdb_tables() where not internal and schema_name = 'main'"


def active_content(connection: duckdb.DuckDBPyConnection) -> str | None:
    """What in the file would run when it is read, in words; None when it is sound. Reads no table."""
    found = connection.execute(RUNS_WHEN_READ).fetchone()
    return None if found is None else f"it contains {found[0]}, which results never do"


def wrong_table(connection: duckdb.DuckDBPyConnection) -> str | None:
    """How the tables differ from the schema, in words; None when they do not. Reads no table."""
    tables = dict(connection.execute(TABLES).fetchall())
    for name, definition in _expected().items():
        if name not in tables:
            return f"it has no table {name!r}"
        if tables[name] != definition:
            return f"its table {name!r} is not as the schema defines it"
    return None


@functools.cache
def _expected() -> dict[str, str]:
    """Definition of every table, as DuckDB words it."""
    with duckdb.connect(":memory:") as empty:
        empty.execute(SCHEMA.read_text(encoding="utf-8"))
        return dict(empty.execute(TABLES).fetchall())
