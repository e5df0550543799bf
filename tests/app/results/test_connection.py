"""Results files: a damaged one is reported with a remedy and affects no other run."""

import json
import shutil
from pathlib import Path

import duckdb
import pytest

from app.errors import ResultsMissing, ResultsUnreadable, RunNotFound
from app.results.connection import RunCatalog
from app.results.features.feature_list import list_features
from app.results.features.query import FeatureQuery
from app.results.runs.summary import all_runs
from tests.worlds.tiny_results import RUN, publish, write_progress, write_tiny_run


@pytest.fixture
def runs(tiny_home: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run to damage, and beside it an untouched one."""
    for name in (RUN, "sound-00000000"):
        shutil.copytree(tiny_home / "runs" / RUN, tmp_path / "runs" / name)
    return tmp_path / "runs"


def file_of(folder: Path) -> Path:
    return folder / json.loads((folder / "current.json").read_text())["file"]


def overwrite(folder: Path) -> None:
    file_of(folder).write_bytes(b"this is no database")


def cut_short(folder: Path) -> None:
    data = file_of(folder).read_bytes()
    file_of(folder).write_bytes(data[: len(data) // 3])


def rot(folder: Path) -> None:
    """The file opens, and reading it fails."""
    data = bytearray(file_of(folder).read_bytes())
    data[20_000:-300_000] = b"\x5a" * (len(data) - 320_000)
    file_of(folder).write_bytes(data)


def empty(folder: Path) -> None:
    file_of(folder).write_bytes(b"")


def remove(folder: Path) -> None:
    file_of(folder).unlink()


def garble(folder: Path) -> None:
    (folder / "current.json").write_text('{"file": "resul')


def point_outside(folder: Path) -> None:
    (folder / "current.json").write_text('{"file": "../../../etc/passwd"}')


def other_database(folder: Path) -> None:
    draft = folder / "draft"
    duckdb.connect(str(draft)).execute("create table cats (name text)").close()
    publish(folder, draft)


@pytest.mark.parametrize("damage", [overwrite, cut_short, rot, empty, remove, garble, point_outside, other_database])
def test_a_damaged_file_is_named_with_a_remedy_and_the_other_run_stays_readable(runs: Path, damage):
    damage(runs / RUN)
    catalog = RunCatalog(runs)

    with pytest.raises(ResultsUnreadable) as refusal:
        list_features(catalog.results(RUN), FeatureQuery(), None)

    assert RUN in refusal.value.fact
    assert "crossdiff analyse" in refusal.value.remedy
    assert catalog.results("sound-00000000").features == 240
    states = {run.run: (run.status, run.problem) for run in all_runs(catalog)}
    assert states["sound-00000000"] == ("finished", None)
    assert states[RUN][0] == "unreadable"
    assert RUN in states[RUN][1]


def test_a_newer_schema_asks_for_a_newer_crossdiff(tmp_path: Path):
    write_tiny_run(tmp_path, amend=("update run set schema_version = 7",))

    with pytest.raises(ResultsUnreadable, match=r"schema 7; this explorer reads schema 6\..*Update Crossdiff"):
        RunCatalog(tmp_path / "runs").results(RUN)


def test_an_older_schema_asks_for_the_analysis_again(tmp_path: Path):
    write_tiny_run(tmp_path, amend=("update run set schema_version = 2",))

    with pytest.raises(ResultsUnreadable, match=r"schema 2; this explorer reads schema 6\..*crossdiff analyse"):
        RunCatalog(tmp_path / "runs").results(RUN)


def test_results_published_anew_are_seen_without_a_restart(tmp_path: Path):
    folder = write_tiny_run(tmp_path)
    catalog = RunCatalog(tmp_path / "runs")
    held = catalog.results(RUN)

    draft = folder / "draft"
    draft.write_bytes(file_of(folder).read_bytes())
    connection = duckdb.connect(str(draft))
    connection.execute("delete from feature where feature >= 100")
    connection.close()
    publish(folder, draft)

    assert catalog.results(RUN).features == 100
    assert held.row("select count(*) from feature") == (240,), "a request under way reads what it began with"


def test_cached_values_are_computed_again_for_new_results(tmp_path: Path):
    write_tiny_run(tmp_path)
    catalog = RunCatalog(tmp_path / "runs")
    count = lambda results: results.row("select count(*) from feature")[0]  # noqa: E731

    assert catalog.cached(RUN, "count", count) == 240
    write_tiny_run(tmp_path, features=32)
    assert catalog.cached(RUN, "count", count) == 32


def test_results_cannot_be_written_through_the_explorer(runs: Path):
    results = RunCatalog(runs).results(RUN)

    with pytest.raises(duckdb.Error, match="read-only"):
        results.cursor.execute("delete from feature")


def test_a_run_without_results_and_an_unknown_run_raise_different_errors(runs: Path):
    write_progress(runs / "running-11111111")
    catalog = RunCatalog(runs)

    with pytest.raises(ResultsMissing, match="not published results yet"):
        catalog.results("running-11111111")
    with pytest.raises(RunNotFound, match=r"Did you mean 'sound-00000000'"):
        catalog.results("sound-0000000")
    with pytest.raises(RunNotFound):
        catalog.results("..")


def test_the_number_of_open_files_is_limited(runs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.results.connection.OPEN_FILES", 1)
    catalog = RunCatalog(runs)

    catalog.results(RUN)
    catalog.results("sound-00000000")

    assert catalog.open_files == 1
    catalog.close()
    assert catalog.open_files == 0
