"""Reads some columns of a parquet, arrow or CSV file, row by row, in bounded memory."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from trainer.errors import CorpusError

ROWS_PER_BATCH = 256
BOMB_RATIO = 100
"""A column that decompresses to more than this many times its size is read in smaller batches,"""
BOMB_BYTES = 1 << 28
"""each of at most so many bytes; a column of more bytes per row group is then refused."""
MAX_FIELD_CHARACTERS = 64_000_000
"""A longer field of a CSV file is not read: a quotation mark is missing."""
DELIMITERS = ",;\t"

ChooseColumns = Callable[[list[str]], list[str]]
"""Takes the names of all columns and returns those to read."""


def parquet_rows(file: Path | IO[bytes], path: Path, choose_columns: ChooseColumns) -> Iterator[Any]:
    """Yield `{column: value}` of every row of a parquet file. Raises CorpusError for one that cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = choose_columns(list(table.schema_arrow.names))
        rows = min(_rows_per_batch(table.metadata, column, path) for column in columns)
        for batch in table.iter_batches(batch_size=rows, columns=columns):
            yield from _batch_rows(batch, columns)
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{path} is not a readable parquet file: {error}. Fetch or write it again.") from None


def arrow_rows(file: IO[bytes], path: Path, choose_columns: ChooseColumns) -> Iterator[Any]:
    """Yield `{column: value}` of every row of an arrow file or stream. Raises CorpusError for an unreadable one."""
    import pyarrow
    import pyarrow.ipc

    try:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(file)
            columns = choose_columns(list(reader.schema.names))
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            reader = pyarrow.ipc.open_stream(file)
            columns = choose_columns(list(reader.schema.names))
            batches = iter(reader)
        for batch in batches:
            yield from _batch_rows(batch, columns)
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{path} is not a readable arrow file: {error}. Fetch or write it again.") from None


def csv_rows(lines: TextIO, path: Path) -> Iterator[Any]:
    """Yield a mapping of every row of a CSV file, whose first line names the columns; None for an unreadable row.

    Fields are separated by commas, semicolons or tabs, whichever the first line has most of. Raises CorpusError.
    """
    first = lines.readline(MAX_FIELD_CHARACTERS)
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        header = next(csv.reader([first], delimiter=delimiter), [])
        if not header or len(set(header)) < len(header):
            raise CorpusError(f"{path}: the first line does not name its columns once each. Add such a line.")
        for row in csv.reader(lines, delimiter=delimiter):
            if row:
                yield dict(zip(header, row, strict=True)) if len(row) == len(header) else None
    except csv.Error as error:
        raise CorpusError(f"{path} is not readable CSV: {error}. Check its quotation marks.") from None


def _rows_per_batch(metadata: Any, column: str, path: Path) -> int:
    """Rows of a parquet file to read at a time, so that a file of repeated values does not fill the memory."""
    largest = 0
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
        parts = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] == column.partition(".")[0]]
        size = sum(chunk.total_uncompressed_size for chunk in parts)
        if size > BOMB_RATIO * sum(chunk.total_compressed_size for chunk in parts):
            largest = max(largest, size)
    if largest > BOMB_BYTES:
        raise CorpusError(
            f"{path}: column {column!r} decompresses to {largest / 1e9:.1f} GB at a time, more than {BOMB_RATIO} times "
            "its size. Write it in smaller row groups if that is what it should hold."
        )
    return max(1, min(ROWS_PER_BATCH, BOMB_BYTES // largest)) if largest else ROWS_PER_BATCH


def _batch_rows(batch: Any, columns: list[str]) -> Iterator[Any]:
    """The rows of a batch; bytes of a text that are not UTF-8 become U+FFFD, and a row with others None."""
    for values in zip(*(batch.column(name) for name in columns), strict=True):
        try:
            yield {name: _python_value(value) for name, value in zip(columns, values, strict=True)}
        except UnicodeDecodeError:
            yield None


def _python_value(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if not hasattr(value, "as_buffer"):
            raise
        data = value.as_buffer()
        return None if data is None else data.to_pybytes().decode("utf-8", "replace")
