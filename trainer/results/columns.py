"""Types of the results' columns, read from `schema.sql`, so that no type is guessed from the rows of a table."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

SCHEMA = Path(__file__).with_name("schema.sql")


def column_types(table: str) -> Mapping[str, pa.DataType]:
    """Arrow type of each column of a table, by name. Raises KeyError for an unknown table."""
    return _types()[table]


@cache
def _types() -> dict[str, dict[str, pa.DataType]]:
    with duckdb.connect() as connection:
        connection.execute(SCHEMA.read_text(encoding="utf-8"))
        tables = [name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()]
        schemas = {name: connection.table(name).limit(0).to_arrow_table().schema for name in tables}
    return {name: {field.name: field.type for field in schema} for name, schema in schemas.items()}
