"""Serves the whole filtered list of features as a file: CSV, JSON or Parquet."""

import csv
import io
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import IO, Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from app.results.features.exports import ExportedFeature, exported_features
from app.web.dependencies import RunRequest, RunView
from app.web.templates import as_json

router = APIRouter(prefix="/api/v1/runs/{run}", tags=["features"])

COLUMNS = [*(field.name for field in fields(ExportedFeature)), "label"]
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
BETWEEN = {"promoted": " · ", "contexts": "\n\n"}
"""What stands between the texts of a list in a field of CSV."""
IN_MEMORY = 8 << 20
"""Bytes of a Parquet file that are kept in memory before they go to disk."""
BLOCK = 1 << 16
"""Bytes sent at a time."""


@router.get("/features.json", summary="The whole filtered list as a file", response_class=StreamingResponse)
def download_json(view: RunView) -> StreamingResponse:
    """Exactly the features that pass the filters, in the list's order, with promoted tokens and contexts."""
    parts = (f"{',' if index else '['}\n{json.dumps(row, ensure_ascii=False)}" for index, row in enumerate(_rows(view)))
    return _file(view, _with_end(parts, "[", "\n]\n"), "application/json", "json")


@router.get("/features.csv", summary="The whole filtered list as CSV", response_class=StreamingResponse)
def download_csv(view: RunView) -> StreamingResponse:
    """The same, one line of column names first; tokens are separated by dots in the middle, contexts by empty lines."""
    lines = (_csv_line([_field(name, row[name]) for name in COLUMNS]) for row in _rows(view))
    return _file(view, itertools.chain([_csv_line(COLUMNS)], lines), "text/csv; charset=utf-8", "csv")


@router.get("/features.parquet", summary="The whole filtered list as Parquet", response_class=StreamingResponse)
def download_parquet(view: RunView) -> StreamingResponse:
    """The same as a Parquet file; promoted tokens and contexts are lists."""
    rows = _rows(view)
    file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed when it has been sent
    _write_parquet(rows, file)
    file.seek(0)
    return _file(view, _blocks(file), "application/vnd.apache.parquet", "parquet")


def _rows(view: RunRequest) -> Iterator[dict[str, Any]]:
    """The list's rows as plain data, with labels."""
    labels = view.labels.latest(view.run, range(view.results.features))
    exported = exported_features(view.results, view.query, view.search())
    first = list(itertools.islice(exported, 1))  # an order that there is not is refused before anything is sent
    return (as_json(row) | {"label": labels.get(row.feature)} for row in itertools.chain(first, exported))


def _write_parquet(rows: Iterator[dict[str, Any]], file: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.list_(pa.string())
    kinds = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_(), "tuple": texts}
    columns = [(field.name, kinds[_kind(field.type)]) for field in fields(ExportedFeature)]
    schema = pa.schema([*columns, ("label", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        while some := list(itertools.islice(rows, 1000)):
            writer.write_table(pa.Table.from_pylist(some, schema))


def _kind(annotation: Any) -> str:
    """`int` for int and for int | None, and so on."""
    return str(getattr(annotation, "__name__", annotation)).partition(" ")[0].partition("[")[0]


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while block := file.read(BLOCK):
            yield block


def _with_end(parts: Iterable[str], empty: str, end: str) -> Iterator[str]:
    """Yields the parts and then `end`; without parts, `empty` and `end`."""
    first = True
    for part in parts:
        first = False
        yield part
    yield (empty if first else "") + end


def _csv_line(values: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()


def _field(name: str, value: Any) -> Any:
    """A value as a field; text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if name in BETWEEN:
        value = BETWEEN[name].join(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def _file(view: RunRequest, parts: Iterator[str] | Iterator[bytes], kind: str, ending: str) -> StreamingResponse:
    name = f"{view.run}-features.{ending}"
    return StreamingResponse(parts, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
