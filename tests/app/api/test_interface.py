"""The JSON interface: the pages' content, and downloads of exactly the filtered list."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN, write_progress, write_tiny_run

API = f"/api/v1/runs/{RUN}"


@pytest.fixture
def visitor(own_home: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=own_home))) as client:
        yield client


def test_runs_have_the_fields_that_scripts_rely_on(own_home: Path, visitor: TestClient):
    write_progress(own_home / "runs" / "live-00000001")
    write_tiny_run(own_home, features=64)

    runs = {run["run"]: run for run in visitor.get("/api/v1/runs").json()["runs"]}

    finished, live = runs[RUN], runs["live-00000001"]
    assert (finished["status"], finished["features"], finished["sources"]) == ("finished", 64, ["smollm2", "gemma3"])
    assert finished["name"] == "smollm2-vs-gemma3"
    assert finished["headline"]["variance_explained"] == {"smollm2": 0.781, "gemma3": 0.842}
    assert (live["status"], live["progress"]["stage"], live["progress"]["done"]) == ("running", "train", 61_440)


def test_a_csv_holds_exactly_the_filtered_list_in_its_order(reader: TestClient):
    query = "owner=gemma3&sort=-density&density_min=0.0001"
    answer = reader.get(f"{API}/features.csv?{query}")
    rows = list(csv.DictReader(io.StringIO(answer.text)))

    listed = reader.get(f"{API}/features?{query}").json()
    assert [int(row["feature"]) for row in rows] == [row["feature"] for row in listed["features"]]
    assert len(rows) == listed["total"]
    assert float(rows[0]["density"]) == listed["features"][0]["density"]
    assert "attachment" in answer.headers["content-disposition"]


def test_downloads_hold_every_page_of_the_list(reader: TestClient):
    assert len(reader.get(f"{API}/features.json?page=3").json()) == 240
    assert len(list(csv.reader(io.StringIO(reader.get(f"{API}/features.csv").text)))) == 241


def test_downloads_have_promoted_tokens_and_contexts_in_every_format(
    reader: TestClient, tables: duckdb.DuckDBPyConnection
):
    query = "owner=gemma3&sort=-density"
    listed = reader.get(f"{API}/features.json?{query}").json()
    rows = list(csv.DictReader(io.StringIO(reader.get(f"{API}/features.csv?{query}").text)))
    table = pq.read_table(io.BytesIO(reader.get(f"{API}/features.parquet?{query}").content)).to_pylist()

    assert (
        [row["feature"] for row in table] == [row["feature"] for row in listed] == [int(row["feature"]) for row in rows]
    )
    assert [row["promoted"] for row in table] == [row["promoted"] for row in listed]
    assert [row["contexts"] for row in table] == [row["contexts"] for row in listed]
    first = next(row for row in listed if row["firings"])
    expected = tables.execute(
        "select text from firing where feature = ? and bucket = 'top' and rank < 3 order by rank", [first["feature"]]
    ).fetchall()
    assert first["contexts"] == [text for (text,) in expected]
    tokens = "select token from logit where feature = ? and source = 1 and rank between 1 and 5 order by rank"
    assert first["promoted"] == [token for (token,) in tables.execute(tokens, [first["feature"]]).fetchall()]
    written = next(row for row in rows if int(row["feature"]) == first["feature"])
    assert written["promoted"].removeprefix("'") == " · ".join(first["promoted"])


def test_an_empty_download_is_still_well_formed(reader: TestClient):
    assert reader.get(f"{API}/features.json?owner=nobody").json() == []
    assert reader.get(f"{API}/features.csv?owner=nobody").text.count("\n") == 1
    assert pq.read_table(io.BytesIO(reader.get(f"{API}/features.parquet?owner=nobody").content)).num_rows == 0
    assert reader.get(f"{API}/features.parquet?sort=beauty").status_code == 422


def test_a_label_that_looks_like_a_formula_is_harmless_in_a_spreadsheet(own_home: Path, visitor: TestClient):
    write_tiny_run(own_home, features=32)
    visitor.post(f"/runs/{RUN}/features/3/labels", data={"author": "Eve", "text": '=HYPERLINK("http://x")'})

    rows = list(csv.DictReader(io.StringIO(visitor.get(f"{API}/features.csv").text)))

    assert {row["label"] for row in rows} == {"", '\'=HYPERLINK("http://x")'}
    kept = {row["label"] for row in visitor.get(f"{API}/features.json").json()}
    assert kept == {None, '=HYPERLINK("http://x")'}


def test_a_feature_has_everything_its_page_shows(reader: TestClient):
    feature = reader.get(f"{API}/features/3").json()

    assert feature["feature"] == 3
    assert [source["name"] for source in feature["sources"]] == ["smollm2", "gemma3"]
    assert len(feature["contexts"]) == 8, "folded contexts are told apart again"
    peak = max(row["activation"] or 0 for row in feature["contexts"][0]["rows"])
    assert peak == pytest.approx(feature["contexts"][0]["peak"])
    assert len(reader.get(f"{API}/features/3?bucket=q5").json()["contexts"]) == 3
    assert {entry["kind"] for entry in feature["neighbours"]} == {"twin", "similar", "coactive"}


def test_a_sequence_is_the_same_as_on_its_page(reader: TestClient):
    first = reader.get(f"{API}/features/3").json()["contexts"][0]
    whole = reader.get(f"{API}/sequences/{first['sequence']}?feature=3").json()

    values = {row["byte_end"]: row["activation"] for row in whole["rows"]}
    for row in first["rows"]:
        if row["activation"] is not None:
            assert values[row["byte_end"]] is not None


def test_the_description_is_complete_and_readable(reader: TestClient):
    description = reader.get("/api/openapi.json").json()
    page = reader.get("/api/docs").text

    assert all(path.startswith("/api/v1/") for path in description["paths"]), "pages are no part of it"
    for path in description["paths"]:
        assert f"<code>{path}</code>" in page
    assert "density_min" in page


def test_health_readiness_and_metrics(reader: TestClient):
    assert reader.get("/healthz").json() == {"status": "ok"}
    assert reader.get("/readyz").json() == {"status": "ready", "problems": []}
    reader.get(f"/runs/{RUN}/features/3")
    reader.get(f"/runs/{RUN}/features/4")
    reader.get("/nowhere/at/all")
    reader.request("BREW", "/healthz")

    lines = reader.get("/metrics").text.splitlines()

    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    pages = 'crossdiff_requests_total{method="GET",route="/runs/{run}/features/{feature}",status="200"}'
    assert counts[pages] >= 2
    assert counts['crossdiff_request_seconds_bucket{le="+Inf",route="/healthz"}'] >= 1
    assert counts['crossdiff_runs{status="finished"}'] == 1
    assert not any("nowhere" in line for line in lines), "addresses that do not exist make no series of their own"
    assert counts['crossdiff_requests_total{method="OTHER",route="/healthz",status="405"}'] == 1
    assert not any("BREW" in line for line in lines), "nor do methods that a client invents"


def test_results_can_be_read_without_a_readable_labels_database(tiny_home: Path, tmp_path: Path):
    broken = tmp_path / "labels.db"
    broken.write_bytes(b"this is no database at all" * 100)
    with TestClient(create_app(Settings(home=tiny_home, database_url=f"sqlite:///{broken}"))) as client:
        assert client.get(f"/runs/{RUN}/features?q=fox").status_code == 200
        page = client.get(f"/runs/{RUN}/features/3")
        assert page.status_code == 200
        assert "Labels cannot be read at the moment" in page.text
        assert client.get("/readyz").status_code == 503
