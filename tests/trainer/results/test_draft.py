"""Results are published atomically and never change afterwards."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from app.results.connection import SCHEMA_VERSION
from trainer.errors import DiskFull, DoesNotFit
from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.results import draft as results_draft
from trainer.results.columns import column_types
from trainer.results.draft import (
    CoverageRow,
    EvaluationRow,
    MetricRow,
    ResultsDraft,
    SourceRow,
    publishing,
    read_baselines,
    read_calibration,
    read_coverage,
    read_evaluation,
    read_metrics,
)
from trainer.run.folder import RunFolder

TOKENS = pa.list_(pa.list_(pa.struct([("text", pa.string()), ("byte_end", pa.int32())])))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def recipe() -> Recipe:
    return parse_recipe({"name": "tiny"}, origin="test")


def add_features(draft: ResultsDraft, *, count: int = 2, **columns: object) -> None:
    defaults = {
        "feature": np.arange(count),
        "group_name": ["shared"] * count,
        "content_hash": ["00"] * count,
        "owner": ["shared"] * count,
        "firings": np.zeros(count, np.int64),
        "density": np.zeros(count),
        "max_activation": np.zeros(count),
        "verdict": [""] * count,
    }
    draft.add("feature", defaults | columns)


def add_histogram(draft: ResultsDraft, *, feature: list[int]) -> None:
    count = len(feature)
    draft.add("histogram", {"feature": feature, "low": [0.0] * count, "high": [1.0] * count, "count": [7] * count})


def add_firing(draft: ResultsDraft, **columns: object) -> None:
    defaults = {
        "feature": np.array([0]),
        "rank": np.array([0]),
        "bucket": ["top"],
        "sequence": np.array([5]),
        "corpus": ["wiki"],
        "peak": np.array([1.0]),
        "peak_byte_end": np.array([3]),
        "byte_start": np.array([0]),
        "text": ["cat"],
        "tokens": pa.array([[[{"text": "cat", "byte_end": 3}]]], TOKENS),
        "activations": pa.array(
            [[{"byte_end": 3, "activation": 1.0}]],
            pa.list_(pa.struct([("byte_end", pa.int32()), ("activation", pa.float32())])),
        ),
    }
    draft.add("firing", defaults | columns)


def add_sequence(draft: ResultsDraft, *, byte_end: int = 3) -> None:
    tokens = pa.array([[[{"text": "cat", "byte_end": byte_end}]]], TOKENS)
    draft.add(
        "sequence",
        {"sequence": [5], "document": [1], "corpus": ["wiki"], "held_out": [False], "text": ["cat"], "tokens": tokens},
    )


def publish(folder: RunFolder, name: str = "one", *fill: Callable[[ResultsDraft], None]) -> Path:
    with publishing(folder) as draft:
        draft.add_run(recipe(), folder.run_id)
        draft.add_rows("source", [SourceRow(0, name, "org/m", None, "resid_post", 3, 4, 1.0)])
        for part in fill or (add_features,):
            part(draft)
    result = folder.results()
    assert result is not None
    return result


def source_names(path: Path) -> list[str]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return [name for (name,) in connection.execute("select name from source").fetchall()]


def test_a_published_file_is_named_by_its_content_and_current_points_at_it(folder):
    path = publish(folder)

    assert json.loads(folder.current.read_text()) == {"file": path.name}
    assert path.name == f"results-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}.duckdb"
    assert source_names(path) == ["one"]
    assert [part.name for part in folder.path.iterdir() if part.name.startswith(".")] == []


def test_the_run_table_records_recipe_and_versions(folder):
    with duckdb.connect(str(publish(folder)), read_only=True) as connection:
        row = connection.execute("select run_id, name, recipe_json, versions_json, schema_version from run").fetchone()

    assert row is not None
    assert row[:2] == ("run", "tiny")
    assert parse_recipe(json.loads(row[2]), origin="results") == recipe()
    assert {"python", "torch", "numpy", "duckdb"} <= json.loads(row[3]).keys()
    assert row[4] == SCHEMA_VERSION, "the explorer reads what is written"


def test_the_previously_published_file_is_kept_unchanged_and_older_ones_are_deleted(folder):
    first = publish(folder, "one")
    second = publish(folder, "two")
    bytes_of_second = second.read_bytes()
    third = publish(folder, "three")

    assert folder.results() == third
    assert second.read_bytes() == bytes_of_second
    assert not first.exists()
    assert not third.stat().st_mode & 0o222, "a published file is read-only"


def test_a_failure_while_writing_leaves_the_published_results_unchanged(folder):
    before = publish(folder)
    with pytest.raises(ZeroDivisionError):
        publish(folder, "two", add_features, lambda _: 1 / 0)

    assert folder.results() == before
    assert source_names(before) == ["one"]
    assert [part.name for part in folder.path.glob(".*")] == []


def test_a_process_killed_between_file_and_pointer_leaves_the_old_results_readable(folder):
    before = publish(folder, "one")
    script = f"""
import os, signal
from pathlib import Path
import trainer.results.draft as results
from tests.trainer.results.test_draft import publish
from trainer.run.folder import RunFolder
results.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
publish(RunFolder(Path({str(folder.path)!r})), "two")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[3])

    assert done.returncode == -signal.SIGKILL
    assert len(list(folder.path.glob("results-*.duckdb"))) == 2, "it was killed after the file was renamed"
    assert folder.results() == before
    assert source_names(before) == ["one"]
    assert source_names(publish(folder, "three")) == ["three"]


def test_a_draft_left_by_a_killed_process_is_replaced(folder):
    folder.path.mkdir()
    for name in (".results.duckdb.draft", ".results.duckdb.draft.wal"):
        (folder.path / name).write_bytes(b"rubbish")

    assert source_names(publish(folder)) == ["one"]


def test_a_full_disk_raises_an_error_for_users(folder):
    with pytest.raises(DiskFull, match="disk is full"), publishing(folder):
        raise OSError(28, "No space left on device")


def test_rows_of_a_feature_are_contiguous_in_the_order_added(folder):
    parts = [partial(add_histogram, feature=feature) for feature in ([0, 0], [2])]
    path = publish(folder, "one", partial(add_features, count=3), *parts)
    with duckdb.connect(str(path), read_only=True) as connection:
        rows = connection.execute("select feature from histogram order by rowid").fetchall()

    assert rows == [(0,), (0,), (2,)]


def test_tables_of_features_refuse_rows_out_of_order(folder):
    with pytest.raises(AssertionError, match="not sorted"):
        publish(folder, "one", partial(add_histogram, feature=[1, 0]))
    parts = [partial(add_histogram, feature=feature) for feature in ([1, 1], [0, 1])]
    with pytest.raises(AssertionError, match="earlier feature"):
        publish(folder, "one", *parts)


def test_nan_becomes_null_and_is_refused_where_a_number_must_be(folder):
    path = publish(folder, "one", partial(add_features, score=np.array([0.5, np.nan])))
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("select score from feature").fetchall() == [(0.5,), (None,)]

    with pytest.raises(duckdb.ConstraintException):
        publish(folder, "two", partial(add_features, density=np.array([0.5, np.nan])))
    with pytest.raises(AssertionError, match=r"feature\.score holds an infinite number"):
        publish(folder, "two", partial(add_features, score=np.array([0.5, np.inf])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence": np.array([6])}, "a firing's sequence is missing"),
        ({"feature": np.array([2])}, "a firing's feature is missing"),
        ({"peak_byte_end": np.array([4])}, "a firing peaks outside its window"),
        ({"byte_start": np.array([3])}, "a firing peaks outside its window"),
    ],
)
def test_inconsistent_firings_are_not_published(folder, change, message):
    with pytest.raises(AssertionError, match=message):
        publish(folder, "one", add_features, partial(add_firing, **change), add_sequence)

    assert folder.results() is None


@pytest.mark.parametrize("byte_end", [4, -2])
def test_tokens_that_end_outside_their_text_are_not_published(folder, byte_end):
    with pytest.raises(AssertionError, match="a token ends outside its text"):
        publish(folder, "one", add_features, partial(add_sequence, byte_end=byte_end))


@pytest.mark.parametrize("byte_end", [3, -1])
def test_a_token_may_end_the_text_or_end_on_no_byte_of_it(folder, byte_end):
    assert publish(folder, "one", add_features, add_firing, partial(add_sequence, byte_end=byte_end)).is_file()


def test_metrics_are_finite_numbers_by_dotted_name_without_a_truncated_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": 0.5, "l0": {"shared": 32}, "bad": NaN, "note": "x"}\n{"step": 4, "lo')

    assert read_metrics(path) == [MetricRow(3, "loss", 0.5), MetricRow(3, "l0.shared", 32.0)]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_evaluation_has_sources_by_their_index(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text('[{"source": "b", "measure": "l0", "value": 3}, {"source": null, "measure": "rows", "value": 9}]')

    assert read_evaluation(path, ("a", "b")) == [EvaluationRow(1, "l0", 3.0), EvaluationRow(None, "rows", 9.0)]
    assert read_evaluation(tmp_path / "none.json", ("a", "b")) == []


def test_coverage_counts_are_keyed_by_part_source_and_measure():
    statistics = {"counts": {"wiki/en//kept": 5, "chat/1/special": 2}, "medians": {"a": 1.0}}

    assert read_coverage(statistics) == [
        CoverageRow("wiki/en", None, "kept", 5.0),
        CoverageRow("chat", 1, "special", 2.0),
    ]
    assert read_coverage({}) == []


def test_baselines_measured_before_schema_3_are_read_under_the_names_of_today(tmp_path):
    baselines = tmp_path / "baselines.json"
    baselines.write_text('{"baseline_passage": [{"rank": 0, "document": 7}], "baseline": []}')

    assert read_baselines(baselines) == {"baseline_passage": [{"rank": 0, "sequence": 7}], "baseline": []}


@pytest.mark.parametrize(
    "content",
    [
        None,
        {"measures": [{"kind": "null", "measure": "claims", "value": 820}], "spike_in": []},
        {"measures": [{"kind": "null", "measure": "readout_ratio.5", "value": 1}], "spike_in": []},
        [],
    ],
)
def test_a_calibration_without_nulls_of_today_counts_as_none(tmp_path, content):
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(json.dumps(content))

    assert read_calibration(path, ["a", "b"]) == {}


def test_a_calibration_is_read_with_sources_by_their_index(folder, tmp_path):
    path = tmp_path / "calibration.json"
    null = {"kind": "noise", "source": "b", "rows": 1000, "claims": 9, "judged": 7, "supported": 1, "excess_95": 1.05}
    placebo = {**null, "kind": "isotropic", "source": "a", "excess_95": None}
    spike_in = {"placement": "shared", "source": None, "amplitude": 0.4, "frequency": 0.01}
    spike_in |= {"planted": 8, "recovered": 6, "as_claimed": 5, "supported": 0}
    content = {
        "measures": [{"kind": "spike-in", "measure": "claims", "value": 12}],
        "spike_in": [spike_in],
        "null_claims": [null, placebo],
        "noise_strengths": {"b": [1.2]},
    }
    path.write_text(json.dumps(content))

    found = read_calibration(path, ["a", "b"])

    assert found["null_claims"] == [null | {"source": 1}, placebo | {"source": 0}]
    assert found["spike_in"] == [spike_in]
    assert found["calibration"] == content["measures"]

    def add_calibration(draft: ResultsDraft) -> None:
        for table, rows in found.items():
            draft.add_records(table, rows)

    path = publish(folder, "one", add_features, add_calibration)
    with duckdb.connect(str(path), read_only=True) as connection:
        written = connection.execute("select kind, source, excess_95 from null_claims").fetchall()
    assert written == [("noise", 1, 1.05), ("isotropic", 0, None)]


@pytest.mark.parametrize(
    ("table", "records"),
    [
        ("baseline_divergence", {"corpus": None, "base": None, "source": 0, "measure": "surprise", "value": 1, "n": 3}),
        ("evaluation", {"source": None, "measure": "rows", "value": 9}),
        (
            "spike_in",
            {"placement": "shared", "source": None, "amplitude": 1, "frequency": 1}
            | dict.fromkeys(("planted", "recovered", "as_claimed", "supported"), 0),
        ),
        (
            "baseline_passage",
            {"base": 0, "source": 1, "rank": 0, "corpus": "wiki", "sequence": 5, "apart": 1, "byte_start": 0}
            | {"text": "", "tokens": [[], []], "places": []},
        ),
    ],
)
def test_values_that_tell_no_type_take_that_of_the_schema(folder, table, records):
    path = publish(folder, "one", add_features, lambda draft: draft.add_records(table, [records]))

    with duckdb.connect(str(path), read_only=True) as connection:
        kept = connection.table(table).fetchall()
    assert kept == [tuple(records.values())]


def test_every_column_of_every_table_has_a_type():
    types = {column: str(kind) for column, kind in column_types("firing").items()}

    assert types["feature"] == "int32" and types["peak"] == "float" and types["text"] == "string"
    assert types["activations"] == "list<l: struct<byte_end: int32, activation: float>>"
    with pytest.raises(KeyError):
        column_types("nothing")


@pytest.mark.parametrize("values", [[0.5, float("nan")], (0.5, None)])
def test_a_number_in_a_list_that_is_not_one_becomes_null(folder, values):
    path = publish(folder, "one", partial(add_features, score=values))
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("select score from feature").fetchall() == [(0.5,), (None,)]


def test_results_larger_than_their_memory_are_spilled_and_published(folder, monkeypatch):
    monkeypatch.setattr(results_draft, "MOST_MEMORY", 48 << 20)
    monkeypatch.setattr(results_draft, "ROW_GROUP", 4096)
    text = "cat" + "".join(map(chr, range(200, 800)))

    def add_firings(draft: ResultsDraft) -> None:
        for feature in range(40):
            count = 2000
            add_firing(
                draft,
                feature=np.full(count, feature),
                rank=np.arange(count),
                bucket=["top"] * count,
                sequence=np.full(count, 5),
                corpus=["wiki"] * count,
                peak=np.ones(count),
                peak_byte_end=np.full(count, 3),
                byte_start=np.zeros(count, int),
                text=[f"{feature} {rank} {text}" for rank in range(count)],
                tokens=pa.array([[[{"text": "cat", "byte_end": 3}]]] * count, TOKENS),
                activations=pa.array([[]] * count, column_types("firing")["activations"]),
            )

    path = publish(folder, "one", partial(add_features, count=40), add_firings, add_sequence)
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("select count(*) from firing").fetchone() == (80_000,)
        order = connection.execute("select feature, rank from example order by rowid").fetchall()
        assert order == [(feature, rank) for feature in range(40) for rank in range(10)]
    assert [part.name for part in folder.path.glob(".*")] == [], "what was spilled is removed"


def test_too_little_memory_is_an_error_for_users(folder):
    with pytest.raises(DoesNotFit, match=r"needs more memory than is free, \d+\.\d GB"), publishing(folder):
        raise duckdb.OutOfMemoryException("failed to pin block")
    with pytest.raises(DiskFull, match="disk is full"), publishing(folder):
        raise duckdb.OutOfMemoryException("failed to offload data block: max_temp_directory_size is reached")

    assert [part.name for part in folder.path.glob(".*")] == []
