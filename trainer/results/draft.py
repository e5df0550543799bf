"""Builds a run's results file as a draft, checks it and publishes it atomically.

The tables are defined in `schema.sql`. A published file is named by the hash of its content and never changes;
`current.json` points at the newest. Tables that pages read one feature at a time are sorted by feature, so that a
feature's rows are one contiguous range.
"""

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from trainer.errors import DiskFull, DoesNotFit
from trainer.recipe.recipe import Recipe
from trainer.results.columns import SCHEMA, column_types
from trainer.results.examples import fill_examples
from trainer.results.search import begin_search_words, fill_search_words, stage_search_words
from trainer.run.checksum import sha256_of
from trainer.run.folder import RunFolder, discard, is_disk_full, read_json, write_json
from trainer.run.free_memory import free_memory

SORTED_BY_FEATURE = frozenset(
    {
        "agreement",
        "evidence",
        "feature",
        "feature_corpus",
        "feature_divergence",
        "feature_language",
        "feature_source",
        "firing",
        "histogram",
        "logit",
        "neighbour",
        "probe",
    }
)
"""Tables that must arrive sorted by feature."""
LIBRARIES = ("torch", "numpy", "scipy", "transformers", "tokenizers", "safetensors", "pyarrow", "duckdb")
"""Libraries whose versions can affect the results."""
MEMORY_SHARE, LEAST_MEMORY, MOST_MEMORY = 1 / 8, 128 << 20, 256 << 20
"""DuckDB's memory limit while it builds the file: a share of the free memory, within bytes; the rest is on disk."""
ROW_GROUP = 30_720
"""Rows compressed at a time: a quarter of DuckDB's own, since a row of `firing` takes kilobytes until then."""
Column = Sequence[Any] | np.ndarray | Any
"""Values of one column: a list, an array or an Arrow array. NaN in a column of numbers stands for null."""


@dataclass(frozen=True)
class SourceRow:
    """A row of the table `source`."""

    source: int
    name: str
    model: str
    revision: str | None
    hookpoint: str
    layer: int | None
    width: int
    scale: float
    space: int | None = None


@dataclass(frozen=True)
class EvaluationRow:
    """A row of the table `evaluation`; `source` is the source's index, None for measures of the whole."""

    source: int | None
    measure: str
    value: float


@dataclass(frozen=True)
class MetricRow:
    """A row of the table `training_metric`."""

    step: int
    measure: str
    value: float


@dataclass(frozen=True)
class CoverageRow:
    """A row of the table `coverage`; `source` is the source's index, None for counts over all sources."""

    corpus: str
    source: int | None
    measure: str
    value: float


class ResultsDraft:
    """A results file being built: tables to append columns to.

    A background thread writes each batch while the next is prepared; its errors are raised by the next call.
    """

    def __init__(self, path: Path) -> None:
        memory = int(min(max(free_memory() * MEMORY_SHARE, LEAST_MEMORY), MOST_MEMORY))
        self._connection = duckdb.connect(
            config={"memory_limit": f"{memory}B", "temp_directory": f"{path}.tmp", "threads": 2}
        )
        quoted = str(path).replace("'", "''")
        self._connection.execute(f"attach '{quoted}' as results (row_group_size {ROW_GROUP}); use results")
        # One transaction: nothing is written twice, and the file is incomplete until `finish` anyway.
        self._connection.execute("begin")
        self._connection.execute(SCHEMA.read_text(encoding="utf-8"))
        begin_search_words(self._connection)
        self._last: dict[str, int] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="results")
        self._writing: Future[None] | None = None

    def add(self, table: str, columns: Mapping[str, Column]) -> None:
        """Append rows given as columns by name; columns left out are null, and so is NaN.

        Raises AssertionError for infinite numbers, and for rows out of feature order in tables sorted by feature.
        """
        types = column_types(table)
        batch = pa.table({name: _to_arrow(f"{table}.{name}", values, types[name]) for name, values in columns.items()})
        if not batch.num_rows:
            return
        if table in SORTED_BY_FEATURE:
            features = np.asarray(batch["feature"])
            assert (np.diff(features) >= 0).all(), f"rows for {table} are not sorted by feature"
            assert features[0] >= self._last.get(table, -1), f"rows for {table} go back to an earlier feature"
            self._last[table] = int(features[-1])
        self._wait()
        self._writing = self._writer.submit(self._insert, table, batch)

    def _insert(self, table: str, batch: pa.Table) -> None:
        # DuckDB finds `batch` by its name here; a registered view would keep it in memory until the commit.
        self._connection.execute(f"insert into {table} by name select * from batch")  # noqa: S608  (our own name)
        stage_search_words(self._connection, table, batch)

    def _wait(self) -> None:
        """Wait until everything added is written; raises the error of a failed write."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def add_rows(self, table: str, rows: Sequence[SourceRow | EvaluationRow | MetricRow | CoverageRow]) -> None:
        """Append rows given as row objects of this module."""
        self.add_records(table, [asdict(row) for row in rows])

    def add_records(self, table: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Append rows given as mappings with the same keys."""
        if records:
            self.add(table, {name: [record[name] for record in records] for name in records[0]})

    def add_run(self, recipe: Recipe, run: str) -> None:
        """Add the row of the table `run`: id, name, time, recipe and versions."""
        self.add(
            "run",
            {
                "run_id": [run],
                "name": [recipe.name],
                "created_at": [datetime.datetime.now(datetime.UTC).replace(tzinfo=None, microsecond=0)],
                "recipe_json": [json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False)],
                "versions_json": [json.dumps(versions())],
            },
        )

    def finish(self) -> None:
        """Fill `example` and `search_word`, check the tables' integrity and commit.

        Raises AssertionError for a failed check.
        """
        self._wait()
        fill_examples(self._connection)
        fill_search_words(self._connection)
        for violation, query in _INTEGRITY_CHECKS.items():
            rows = self._connection.execute(query).fetchall()
            assert not rows, f"{violation}: {rows[:3]}"
        self._connection.execute("commit")
        self._connection.execute("checkpoint")

    def close(self) -> None:
        """Close the file."""
        self._writer.shutdown()
        self._connection.close()


_INTEGRITY_CHECKS = {
    "there is not one run": "select count(*) from run having count(*) <> 1",
    "features are not 0, 1, 2, ...": "select count(*), max(feature) from feature having max(feature) <> count(*) - 1",
    "a firing's sequence is missing": "select sequence from firing anti join sequence using (sequence) limit 3",
    "a firing's feature is missing": "select feature from firing anti join feature using (feature) limit 3",
    "a sequence is there twice": "select sequence from sequence group by sequence having count(*) > 1 limit 3",
    "a firing peaks outside its window": """
        select feature, sequence, peak_byte_end from firing
        where peak_byte_end <= byte_start or peak_byte_end > byte_start + strlen("text") limit 3
    """,
    "a token ends outside its text": """
        select sequence from sequence
        where list_max(list_transform(flatten(tokens), lambda token: token.byte_end)) > strlen("text")
            or list_min(list_transform(flatten(tokens), lambda token: token.byte_end)) < -1 limit 3
    """,
}


@contextmanager
def publishing(folder: RunFolder) -> Iterator[ResultsDraft]:
    """Yield an empty draft; if the body succeeds, check and publish it and point `current.json` at it.

    If anything fails, what was published before is untouched. The previously published file stays on disk, because a
    page may be reading it; older ones are deleted. Raises DiskFull if the disk is full.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    path = folder.path / ".results.duckdb.draft"
    _discard_draft(path)
    try:
        draft = ResultsDraft(path)
        try:
            yield draft
            draft.finish()
        finally:
            draft.close()
        _publish(path, folder)
    except Exception as error:
        # DuckDB calls it memory, too, when there is no room left to spill to.
        if is_disk_full(error) or "max_temp_directory_size" in str(error):
            raise DiskFull(
                f"The disk is full while writing the results in {folder.path}. "
                "Free some room and run the same command again; it resumes from the last complete part."
            ) from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise DoesNotFit(
                f"Publishing the results in {folder.path} needs more memory than is free, {free_memory() / 1e9:.1f} GB."
                " Close other programs and run the same command again."
            ) from error
        raise
    finally:
        _discard_draft(path)


def versions() -> dict[str, str]:
    """Versions of Crossdiff, Python and the libraries that can affect results; absent ones are left out."""
    result = {"python": platform.python_version()}
    for library in ("crossdiff", *LIBRARIES):
        try:
            result[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


def read_metrics(path: Path) -> list[MetricRow]:
    """Numbers in a run's `metrics.jsonl`, nested names joined by dots; empty without that file.

    Values that are not finite and a last line truncated by a crash are left out.
    """
    rows: list[MetricRow] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = int(record.pop("step", 0))
        numbers = _numbers(record, "")
        rows += [MetricRow(step, name, value) for name, value in numbers if np.isfinite(value)]
    return rows


def read_evaluation(path: Path, sources: Sequence[str]) -> list[EvaluationRow]:
    """Measures in a run's `evaluation.json`, with source names replaced by indices; empty without that file."""
    if not path.is_file():
        return []
    index: dict[str | None, int | None] = {name: number for number, name in enumerate(sources)}
    measures = json.loads(path.read_text(encoding="utf-8"))
    return [EvaluationRow(index.get(row["source"]), row["measure"], float(row["value"])) for row in measures]


def read_baselines(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the baseline tables from a run's `baselines.json`, by table; empty without that file.

    Files from before schema 3 call the sequence of a passage `document`.
    """
    if not path.is_file():
        return {}
    tables: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    for passage in tables.get("baseline_passage", []):
        if "document" in passage:
            passage["sequence"] = passage.pop("document")
    return tables


def read_calibration(path: Path, sources: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of `calibration`, `spike_in` and `null_claims` from a run's `calibration.json`; empty without that file.

    A calibration of an earlier version says nothing of the nulls of this one, and counts as none.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "null_claims" not in content:
        return {}
    index = {name: number for number, name in enumerate(sources)}
    return {"calibration": content["measures"]} | {
        table: [row | {"source": index.get(row["source"])} for row in content[table]]
        for table in ("spike_in", "null_claims")
    }


def read_coverage(statistics: Mapping[str, Any]) -> list[CoverageRow]:
    """Counts in an activation store's statistics, whose keys are `part/source index or nothing/measure`."""
    keys = {tuple(key.rsplit("/", 2)): float(count) for key, count in statistics.get("counts", {}).items()}
    return [
        CoverageRow(corpus, int(source) if source else None, measure, n)
        for (corpus, source, measure), n in keys.items()
    ]


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _to_arrow(name: str, values: Column, type_: pa.DataType) -> pa.Array:
    if not isinstance(values, np.ndarray):
        typed = isinstance(values, pa.Array | pa.ChunkedArray)
        return values if typed else pa.array(values, type_, from_pandas=True)
    if values.dtype.kind == "f":
        assert not np.isinf(values).any(), f"{name} holds an infinite number"
    return pa.array(values, from_pandas=True)


def _publish(draft: Path, folder: RunFolder) -> None:
    """Rename the draft, then replace the pointer, so that readers see either the old or the new results."""
    previous = folder.results()
    final = folder.path / f"results-{sha256_of(draft)[:12]}.duckdb"
    draft.chmod(0o444)
    draft.replace(final)
    write_json(folder.current, {"file": final.name})
    for old in folder.path.glob("results-*.duckdb"):
        if old not in (final, previous):
            old.unlink(missing_ok=True)


def _discard_draft(path: Path) -> None:
    for name in (path.name, f"{path.name}.wal", f"{path.name}.tmp"):
        discard(path.with_name(name))
