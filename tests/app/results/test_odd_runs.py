"""Whatever a run's folder holds, it is one row with a sentence, and every other run is still there."""

import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from app.cli import main
from app.main import create_app
from app.results.connection import RunCatalog
from app.results.features.query import FeatureQuery
from app.results.runs.summary import all_runs
from app.settings import Settings
from app.web.dependencies import RunRequest
from tests.worlds.tiny_results import RUN, SCHEMA, write_progress, write_tiny_run

ODD = "odd-00000001"


def progress(**fields: object) -> Callable[[Path], None]:
    """Fields of progress.json, as JSON writes them."""

    def damage(folder: Path) -> None:
        write_progress(folder)
        state = json.loads((folder / "progress.json").read_text())
        (folder / "progress.json").write_text(json.dumps(state | fields))

    return damage


def file(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def folder_at(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).mkdir()


def pipe(name: str) -> Callable[[Path], None]:
    return lambda folder: os.mkfifo(folder / name)


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def results_with(*statements: str) -> Callable[[Path], None]:
    """Published results that were amended."""

    def damage(folder: Path) -> None:
        write_tiny_run(folder.parents[1], run=folder.name, features=24, amend=statements)

    return damage


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    "{1}: &{1} [{0}]\n".format(", ".join(["*" + chr(97 + level)] * 9), chr(98 + level)) for level in range(12)
)
ALIASES += "name: *m\nsources: [{name: *m, model: *m}]\n"
MERGES = "a: &a {x: 1}\n" + "".join(
    "{1}: &{1} {{<<: [{0}]}}\n".format(", ".join(["*" + chr(97 + level)] * 9), chr(98 + level)) for level in range(12)
)
NESTED = "[" * 100_000
HUGE = {"a": 10**400, "b": math.nan, "c": math.inf, "d": -math.inf, "e": True, "f": "x", "g": 1e308}
NUMBERS = [math.nan, math.inf, -math.inf, 10**400, -(10**30), 1e308, True, "7", [1], {"a": 1}, None]
FIELDS = ["done", "total", "rate", "seconds_left", "pid"]
DATES = ["never", "", 5, None, [], math.nan, "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-13-45"]
TEXTS = ["\ud800", "\x00\x1b[31m", "x" * 900_000, ["deep"], {"a": []}, 7, math.nan, None, "</script><b>", "a\nb\nc"]
ODDITIES = {
    **{f"{name}={value!r:.20}": progress(**{name: value}) for name in FIELDS for value in NUMBERS},
    **{f"pid={pid}": progress(pid=pid) for pid in (2**31, 2**63, 2**70, 0, -1, 1.5)},
    **{f"updated_at={value!r:.30}": progress(updated_at=value) for value in DATES},
    **{
        f"{name}={value!r:.20}": progress(**{name: value})
        for name in ("status", "stage", "message", "unit", "error", "host")
        for value in TEXTS
    },
    "measures": progress(measures=HUGE),
    "measures: surrogates": progress(measures={"\ud800": 1.0, "\x00": math.nan}),
    "stages": progress(stages=[HUGE, 3, {"stage": ["x"], "state": {}, "seconds": math.nan}, {}] * 50),
    **{
        f"{name}: {what}": file(name, content)
        for name in ("progress.json", "current.json", "recipe.yaml")
        for what, content in {
            "empty": b"",
            "nan": b"NaN",
            "list": b"[1]",
            "null": b"null",
            "nested": NESTED.encode(),
            "objects": b'{"a":' * 100_000,
            "no utf-8": b"\xff\xfe\x00",
            "zeros": bytes(5000),
            "cut": b'{"file": "resu',
            "a large one": b" " * 3_000_000,
            "long number": b'{"file": ' + b"9" * 6000 + b"}",
        }.items()
    },
    **{
        f"{name}: {what}": make(name)
        for name in ("progress.json", "current.json", "recipe.yaml")
        for what, make in {
            "a folder": folder_at,
            "a pipe": pipe,
            "a device": lambda name: link(name, "/dev/zero"),
            "a loop": lambda name: link(name, name),
            "a dangling link": lambda name: link(name, "nowhere"),
        }.items()
    },
    **{
        f"points at {name!r:.20}": file("current.json", json.dumps({"file": name}).encode())
        for name in ("../x", "..", ".", "", "/etc/passwd", "x" * 300, "\x00", "\ud800", 7, None, ["a"], "progress.json")
    },
    "points at a pipe": lambda folder: [
        damage(folder) for damage in (pipe("results-1.duckdb"), file("current.json", b'{"file": "results-1.duckdb"}'))
    ],
    "recipe: aliases": file("recipe.yaml", ALIASES.encode()),
    "recipe: merges": file("recipe.yaml", MERGES.encode()),
    "recipe: numbers": file(
        "recipe.yaml", b"crosscoder: {features: .inf, variant: .nan}\ntraining: {seed: 1" + b"0" * 400 + b"}\n"
    ),
    "recipe: surrogates": file("recipe.yaml", b'name: "\\ud800"\nsources: [{name: "\\udfff", model: [1]}]\n'),
    "recipe: a date": file("recipe.yaml", b"name: 2026-99-99\nsources: {a: b}\n"),
    "recipe: a time": file("recipe.yaml", b"name: 0000-00-00T99:99:99Z\n"),
    **{
        f"recipe_json: {text[:20]}": results_with(f"update run set recipe_json = '{text}'")
        for text in ("", "{", "[]", "NaN", '{"name": NaN}', '{"name": "\\ud800"}', NESTED, '{"sources": [7]}')
    },
    "versions_json": results_with("update run set versions_json = '{'"),
    "no run": results_with("delete from run"),
    "no sources": results_with("delete from source"),
    "no features": results_with("delete from feature"),
    "time without end": results_with("update run set created_at = 'infinity'"),
    "time before time": results_with("update run set created_at = '-infinity'"),
    "evaluation": results_with("update evaluation set value = 'nan'"),
    "a version in words": results_with(
        "alter table run alter schema_version type text", "update run set schema_version = 'three'"
    ),
    "a table is missing": results_with("drop table evaluation"),
    "another type": results_with("alter table evaluation alter value type text"),
    "a computed column": results_with(
        "drop table source",
        "create table source (source tinyint, name text, model text, revision text, hookpoint text, layer integer, "
        "width integer, scale double, space integer, more text generated always as (repeat(name, 1000000)))",
    ),
    "a view for a table": results_with(
        "drop table evaluation",
        "create view evaluation as select null::tinyint as source, content as measure, 1.0 as value "
        "from read_text('/etc/hostname')",
    ),
    "an endless view": results_with(
        "drop table run",
        "create view run as select max(a.i) as schema_version from range(100000000) a(i), range(100000000) b(i)",
    ),
    "a macro for a function": results_with("create macro max(x) as (select count(*) from range(1000000000000))"),
    "a macro for a table": results_with("create macro anything() as table select * from glob('/*')"),
    "a type": results_with("create type mood as enum ('a')"),
}


@pytest.fixture(scope="module")
def odd_home(tmp_path_factory: pytest.TempPathFactory, tiny_home: Path) -> Path:
    """A home with a sound run and one run for every oddity, named by its number."""
    home = tmp_path_factory.mktemp("odd-home")
    for number, damage in enumerate(ODDITIES.values()):
        (home / "runs" / f"odd-{number}").mkdir(parents=True)
        damage(home / "runs" / f"odd-{number}")
    (home / "runs" / RUN).symlink_to(tiny_home / "runs" / RUN)
    return home


@pytest.fixture(scope="module")
def visitor(odd_home: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=odd_home)), raise_server_exceptions=False) as client:
        yield client


def test_odd_folders_are_rows_of_every_listing_and_hide_no_other(odd_home: Path, visitor: TestClient):
    names = {RUN, *(f"odd-{number}" for number in range(len(ODDITIES)))}
    home, api, metrics = visitor.get("/"), visitor.get("/api/v1/runs"), visitor.get("/metrics")
    outcome = CliRunner(env={"CROSSDIFF_HOME": str(odd_home)}).invoke(main, ["runs"])

    assert (home.status_code, api.status_code, metrics.status_code, outcome.exit_code) == (200, 200, 200, 0)
    assert [name for name in names if f">{name}<" not in home.text] == []
    assert len(home.text) < 5000 * len(names)
    listed = {run["run"]: run for run in json.loads(api.text, parse_constant=pytest.fail)["runs"]}
    assert listed.keys() == names
    assert listed[RUN]["status"] == "finished"
    assert {line.split()[0] for line in outcome.output.splitlines()} == names
    assert "\x1b" not in outcome.output
    began = time.monotonic()
    visitor.get("/")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("oddity", ODDITIES)
def test_the_pages_of_an_odd_run_show_it_or_say_why_not(visitor: TestClient, oddity: str):
    here = f"/runs/odd-{list(ODDITIES).index(oddity)}"
    for path in (here, f"/api/v1{here}", f"{here}/features", f"{here}/features/3"):
        assert visitor.get(path).status_code in (200, 404, 503), path


@pytest.mark.parametrize(
    "oddity",
    [
        "progress.json: a pipe", "progress.json: a folder", "progress.json: nan", "progress.json: nested",
        "recipe.yaml: a pipe", "recipe.yaml: nested", "recipe.yaml: a device", "recipe: a date",
        "current.json: a folder", "current.json: nan", "current.json: list", "current.json: a large one",
        "points at '..'", "points at a pipe", "recipe_json: {", "no sources", "a version in words",
        "a table is missing", "another type", "a computed column", "a view for a table", "an endless view",
        "a macro for a function", "a macro for a table", "a type",
    ],
)  # fmt: skip
def test_the_row_of_what_cannot_be_read_says_so_with_a_remedy(tmp_path: Path, oddity: str):
    (tmp_path / "runs" / ODD).mkdir(parents=True)
    ODDITIES[oddity](tmp_path / "runs" / ODD)

    (run,) = all_runs(RunCatalog(tmp_path / "runs"))

    assert run.problem is not None
    assert run.problem.count(".") >= 2, "a fact and a remedy"
    assert "mistake" not in run.problem


@pytest.mark.parametrize("name", ["x" * 201, b"\xff\xfe", "tab\there", "line\nbreak", "\x1b[31mred", "zero\u200bwidth"])
def test_a_folder_that_cannot_be_opened_by_its_name_says_so(tmp_path: Path, tiny_home: Path, name: str | bytes):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / os.fsdecode(name)).mkdir()
    (runs / RUN).symlink_to(tiny_home / "runs" / RUN)

    odd = next(run for run in all_runs(RunCatalog(runs)) if run.run != RUN)

    assert "Give it another name" in (odd.problem or "")
    with TestClient(create_app(Settings(home=tmp_path)), raise_server_exceptions=False) as client:
        assert "Give it another name" in client.get("/").text
        assert client.get("/api/v1/runs").status_code == 200
        assert client.get("/runs/none-such").status_code == 404


@pytest.mark.parametrize("name", ["x" * 201, "x" * 300, "%00", "a%00b", "x" * 5000, "%ff%fe", "%2e%2e%2e", "a%2fb"])
def test_a_run_that_cannot_be_is_not_found(reader: TestClient, name: str):
    for path in (f"/runs/{name}", f"/runs/{name}/features/3", f"/api/v1/runs/{name}", f"/runs/{name}/steer"):
        assert reader.get(path).status_code == 404, path


def test_a_process_that_began_after_the_last_word_is_another_one(tmp_path: Path):
    ago = {"updated_at": "2020-01-01T00:00:00+00:00", "host": platform.node()}
    progress(**ago, pid=os.getpid())(tmp_path / "runs" / "reused")
    assert [run.status for run in all_runs(RunCatalog(tmp_path / "runs"))] == ["stopped"]


@pytest.mark.parametrize("bad", ["nan", *(pytest.param(bad, marks=pytest.mark.slow) for bad in ("inf", "-inf"))])
def test_numbers_that_are_not_finite_break_no_page_and_reach_no_json(tmp_path: Path, bad: str):
    with duckdb.connect() as empty:
        empty.execute(SCHEMA.read_text(encoding="utf-8"))
        columns = empty.execute(
            "select table_name, column_name, data_type from duckdb_columns() "
            "where not internal and data_type in ('DOUBLE', 'FLOAT')"
        ).fetchall()
    by_table: dict[str, list[str]] = {}
    for table, column, kind in columns:
        by_table.setdefault(table, []).append(f"update {table} set {column} = '{bad}'::{kind}")
    spoilt = f"{{'byte_end': x.byte_end, 'activation': '{bad}'::float}}"
    by_table["activations"] = [f"update firing set activations = list_transform(activations, lambda x: {spoilt})"]
    for table, statements in by_table.items():
        write_tiny_run(tmp_path, run=table.replace("_", "-"), features=24, amend=tuple(statements))
    with TestClient(create_app(Settings(home=tmp_path)), raise_server_exceptions=False) as client:
        assert client.get("/").status_code == 200
        for name in by_table:
            here = f"/runs/{name.replace('_', '-')}"
            for path in ("", "/features", "/features/3", "/evidence", "/sequences/1?feature=3", "/steer?feature=3"):
                assert client.get(here + path).status_code != 500, here + path
            plots = [f"/plots/{plot}" for plot in ("norms", "densities", "training", "spike-ins?measure=recovered")]
            for path in ("", "/features", "/features/3", "/features.json", "/sequences/1?feature=3", *plots):
                answer = client.get(f"/api/v1{here}{path}")
                assert answer.status_code != 500, here + path
                json.loads(answer.text, parse_constant=pytest.fail)


def test_a_query_without_end_is_stopped_and_the_next_one_works(catalog: RunCatalog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.results.limits.CHECK_EVERY", 0.05)
    results = catalog.results(RUN)
    hurried = type(results)(**(results.__dict__ | {"seconds": 0.3}))
    began = time.monotonic()
    with pytest.raises(Exception, match=r"took longer than 0\.3 seconds"):
        hurried.rows("select count(*) from range(100000000000) r(i) where i % 7 = 3")
    assert time.monotonic() - began < 5
    assert results.rows("select count(*) from feature") == [(240,)]
    results.cursor.close()


def test_results_reach_no_file_of_this_machine(catalog: RunCatalog):
    results = catalog.results(RUN)
    for query in ("from read_text('/etc/hostname')", "from glob('/*')", "from read_csv('/etc/passwd')"):
        with pytest.raises(Exception, match="disabled"):
            results.rows(query)
    results.cursor.close()


def test_a_query_that_gives_too_many_rows_is_cut_off(catalog: RunCatalog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.results.connection.ROWS_AT_MOST", 100)
    results = catalog.results(RUN)
    with pytest.raises(Exception, match="more than 100 rows"):
        results.rows("select feature from feature")
    results.cursor.close()


def test_forty_runs_are_listed_without_opening_their_files_again(tmp_path: Path, tiny_home: Path, monkeypatch):
    (tmp_path / "runs").mkdir()
    for number in range(40):
        (tmp_path / "runs" / f"run-{number:08}").symlink_to(tiny_home / "runs" / RUN)
    catalog = RunCatalog(tmp_path / "runs")
    opened = []
    connect = duckdb.connect
    monkeypatch.setattr("duckdb.connect", lambda *args, **kwargs: opened.append(args) or connect(*args, **kwargs))

    first = all_runs(catalog)
    assert {run.status for run in first} == {"finished"}
    assert len(opened) >= 40
    assert catalog.open_files <= 16
    opened.clear()
    assert all_runs(catalog) == first
    assert opened == []
    catalog.close()


def test_results_that_cannot_be_read_are_not_tried_again_until_they_change(tmp_path: Path, monkeypatch):
    folder = write_tiny_run(tmp_path, features=24)
    name = json.loads((folder / "current.json").read_text())["file"]
    sound = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(b"this is no database")
    catalog = RunCatalog(tmp_path / "runs")
    opened = []
    connect = duckdb.connect
    monkeypatch.setattr("duckdb.connect", lambda *args, **kwargs: opened.append(args) or connect(*args, **kwargs))

    assert {all_runs(catalog)[0].status for _ in range(5)} == {"unreadable"}
    assert len(opened) == 1
    (folder / name).unlink()
    (folder / name).write_bytes(sound)
    assert all_runs(catalog)[0].status == "finished", "a file that was repaired is read at once"


def test_twenty_threads_get_the_orders_of_many_lists_without_an_error(tiny_home: Path, monkeypatch):
    """A cache smaller than what is asked for drops orders while others read them."""
    monkeypatch.setattr("app.web.dependencies.CACHED_ORDERS", 2)
    catalog = RunCatalog(tiny_home / "runs")
    failures: list[BaseException] = []

    def browse(number: int) -> None:
        try:
            results = catalog.results(RUN)
            for turn in range(40):
                query = FeatureQuery(share_min=(number + turn) % 7 / 10)
                RunRequest(RUN, results, catalog, query, None).order()
            results.cursor.close()
        except BaseException as failure:  # noqa: BLE001 - handed to the test
            failures.append(failure)

    threads = [threading.Thread(target=browse, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    catalog.close()
    assert failures == []
