"""The home page: comparisons, runs in progress, and what to do when there are none."""

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.judged import CALIBRATED
from tests.worlds.tiny_results import RECIPE, RUN, write_progress, write_tiny_run


@pytest.fixture
def home(own_home: Path) -> Path:
    (own_home / "runs").mkdir(parents=True)
    return own_home


@pytest.fixture
def visitor(home: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=home))) as client:
        yield client


def write_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")


def test_the_home_page_without_runs_names_the_commands(visitor: TestClient):
    page = visitor.get("/").text

    assert "Nothing has been compared yet" in page
    assert "<code>make demo</code>" in page


def test_a_missing_home_folder_counts_as_empty(tmp_path: Path):
    with TestClient(create_app(Settings(home=tmp_path / "not" / "yet"))) as client:
        assert "Nothing has been compared yet" in client.get("/").text


def test_a_running_run_shows_its_stages_rate_and_measures(home: Path, visitor: TestClient):
    write_progress(home / "runs" / "live-00000001")
    write_recipe(home / "runs" / "live-00000001")

    page = visitor.get("/").text

    assert "smollm2 and gemma3" in page
    assert '<li class="done">' in page
    assert '<li class="running" aria-current="step">' in page
    assert 'value="0.0768" max="1"' in page
    for words in ("61,440 of 800,000 rows", "5,200/s", "2 min 22 s left", "0.412", "41.3", "8.0 %"):
        assert words in page


def test_htmx_gets_the_runs_alone_while_they_go_on(home: Path, visitor: TestClient):
    folder = home / "runs" / "live-00000001"
    write_progress(folder, done=1000)
    headers = {"HX-Request": "true", "HX-Request-Type": "partial", "HX-Target": "div#runs"}

    first = visitor.get("/", headers=headers).text
    write_progress(folder, done=2000)

    assert first.lstrip().startswith('<div id="runs">')
    assert "1,000 of" in first
    assert "2,000 of" in visitor.get("/", headers=headers).text


def test_a_failed_run_shows_its_error_and_remedy(home: Path, visitor: TestClient):
    sentence = "The disk is full while writing <x>. Free some room and run the same command again."
    write_progress(home / "runs" / "full-00000001", status="failed", stage="harvest", error=sentence)

    page = visitor.get("/").text

    assert "failed in harvest:" in page
    assert "The disk is full while writing &lt;x&gt;. Free some room" in page


def test_a_run_whose_process_died_is_shown_as_stopped(home: Path, visitor: TestClient):
    write_progress(home / "runs" / "dead-00000001", pid=2**22 - 1)
    write_progress(home / "runs" / "mute-00000001", updated_at="2020-01-01T00:00:00+00:00", host="elsewhere")

    page = visitor.get("/").text

    assert page.count("stopped in train:") == 2
    assert "The process that ran it is gone. The same command goes on from here." in page
    assert "It has not reported progress for more than a minute." in page
    states = {run["run"]: run["status"] for run in visitor.get("/api/v1/runs").json()["runs"]}
    assert states == {"dead-00000001": "stopped", "mute-00000001": "stopped"}


def test_a_finished_run_is_listed_under_its_sources_with_its_figures(reader: TestClient):
    page = reader.get("/").text

    assert f'<a href="/runs/{RUN}">' in page
    for words in ("SmolLM2-135M-Instruct.Q4_1.gguf", "dfc", "78.1 %", "84.2 %", "6.2 %"):
        assert words in page


def test_a_finished_run_counts_supported_claims_beside_what_is_only_claimed(home: Path, visitor: TestClient):
    verdicts = "case when feature % 3 = 0 then 'supported' else 'refuted' end"
    write_tiny_run(home, amend=(f"update feature set verdict = {verdicts} where owner = 'gemma3'",))

    page = " ".join(re.sub(r"<[^>]+>", " ", visitor.get("/").text).split())
    owners = visitor.get("/api/v1/runs").json()["runs"][0]["headline"]["owners"]

    every = visitor.get(f"/api/v1/runs/{RUN}/features.json?owner=gemma3&life=alive").json()
    supported = sum(one["verdict"] == "supported" for one in every)
    assert 0 < supported < len(every)
    assert (owners["gemma3"]["supported"], owners["gemma3"]["claimed"]) == (supported, len(every))
    assert f"gemma3: {supported} of {len(every)}" in page
    assert f"smollm2: {owners['smollm2']['claimed']} untested" in page


def test_runs_of_the_same_sources_are_one_comparison(home: Path, tiny_home: Path, visitor: TestClient):
    for name in (RUN, "again-00000002"):
        shutil.copytree(tiny_home / "runs" / RUN, home / "runs" / name)
    other = {**RECIPE, "sources": [{"name": "a", "model": "x"}, {"name": "b", "model": "y"}]}
    write_progress(home / "runs" / "other-00000003", status="failed", error="no")
    (home / "runs" / "other-00000003" / "recipe.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")

    assert visitor.get("/").text.count('class="comparison"') == 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("progress.json", b'{"status": "runn'),
        ("progress.json", b'["not", "an", "object"]'),
        ("progress.json", b'{"status": "dancing", "stages": 3, "measures": [1], "done": "x", "updated_at": 5}'),
        ("recipe.yaml", b"sources: [\n"),
        ("recipe.yaml", b"- 1\n- 2\n"),
        ("recipe.yaml", b"sources: 5\ncrosscoder: 7\n"),
        ("recipe.yaml", b"\xff\xfe\x00"),
    ],
)
def test_odd_files_in_a_run_folder_hide_no_other_run(
    home: Path, tiny_home: Path, visitor: TestClient, file: str, content: bytes
):
    shutil.copytree(tiny_home / "runs" / RUN, home / "runs" / RUN)
    odd = home / "runs" / "odd-00000001"
    odd.mkdir()
    (odd / file).write_bytes(content)

    page = visitor.get("/")

    assert page.status_code == 200
    assert "odd-00000001" in page.text
    assert f'<a href="/runs/{RUN}">' in page.text
    assert {run["run"] for run in visitor.get("/api/v1/runs").json()["runs"]} == {RUN, "odd-00000001"}


def test_a_run_started_again_still_links_to_its_results(home: Path, tiny_home: Path, visitor: TestClient):
    folder = home / "runs" / RUN
    shutil.copytree(tiny_home / "runs" / RUN, folder)
    write_progress(folder, stage="train")

    page = visitor.get("/").text

    assert f'<a href="/runs/{RUN}">Earlier results</a>' in page
    assert "is running again" in visitor.get(f"/runs/{RUN}").text


def test_a_comparison_begins_with_what_its_newest_run_found(own_home: Path):
    write_tiny_run(own_home, amend=CALIBRATED)
    write_tiny_run(own_home, run="damaged-00000000", amend=("drop table finding",))

    with TestClient(create_app(Settings(home=own_home))) as client:
        page = client.get("/")
        overview = client.get(f"/runs/{RUN}").text

    assert page.status_code == 200
    sentence = re.search(rf'<p class="headline"><a href="/runs/{RUN}">([^<]+)</a>', page.text)
    assert sentence and "absence is not shown." in sentence[1]
    assert html.unescape(sentence[1]) in html.unescape(overview)
