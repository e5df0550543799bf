"""The first page of a run: what it says was found, where claims lie, and where it leads."""

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.results.connection import RunCatalog
from app.results.evidence.calibration import verdict_reliability
from app.results.runs.findings import findings_of
from app.results.runs.summary import OwnerCount
from app.settings import Settings
from app.web.headline_sentence import expected_wrong, headline_sentence
from tests.worlds.compared import COMPARED, FOUND
from tests.worlds.judged import CALIBRATED, JUDGED
from tests.worlds.tiny_results import RUN, write_tiny_run

LIST = f"/runs/{RUN}/features"
API = f"/api/v1{LIST}"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An explorer with a calibrated run, and one that is judged and not calibrated."""
    home: Path = tmp_path_factory.mktemp("judged")
    write_tiny_run(home, amend=CALIBRATED)
    write_tiny_run(home, run="uncalibrated-00000000", amend=JUDGED)
    write_tiny_run(home, run="found-00000000", amend=(*CALIBRATED, *COMPARED, *FOUND))
    with TestClient(create_app(Settings(home=home))) as client:
        yield client


def text_of(answer) -> str:
    """The page as it is read: no tags, single spaces."""
    assert answer.status_code == 200
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def test_the_overview_says_what_each_source_has_how_much_is_wrong_and_what_is_missed(judged: TestClient):
    text = text_of(judged.get(f"/runs/{RUN}"))

    assert re.search(r"gemma3 has \d+ features? that smollm2 lacks or has less of\.", text)
    assert "The search finds 35 % of planted features; absence is not shown." in text
    assert "not calibrated" in text_of(judged.get("/runs/uncalibrated-00000000"))


def test_a_cell_of_the_claims_map_lists_its_claims_and_those_on_its_edge_once(own_home: Path):
    on_edges = """update feature set probe_ratio = case when feature % 2 = 0 then 0.5 else 0.48 end,
        excess = case when feature % 2 = 0 then 2 else 1.9 end where probe_ratio is not null"""
    write_tiny_run(own_home, amend=(*CALIBRATED, on_edges))

    with TestClient(create_app(Settings(home=own_home))) as client:
        cells_list_their_claims(client)


def test_a_cell_of_the_claims_map_lists_its_claims(judged: TestClient):
    cells_list_their_claims(judged)


def cells_list_their_claims(judged: TestClient) -> None:
    page = html.unescape(judged.get(f"/runs/{RUN}").text)

    cells = re.findall(r'<a href="([^"]+)" tabindex="-1" aria-label="(\d+) claims(?:, (\d+) supported)?"', page)
    every = [row for row in judged.get(f"{API}.json", params={"life": "alive"}).json() if row["verdict"]]
    judged_claims = [row for row in every if row["probe_ratio"] is not None and row["excess"] is not None]
    assert sum(int(count) for _, count, _ in cells) == len(judged_claims)
    for address, count, supported in cells:
        assert judged.get(f"/api/v1{address}").json()["total"] == int(count)
        found = judged.get(f"/api/v1{address}&verdict=supported").json()["total"]
        assert found == int(supported or 0)


def test_the_overview_leads_to_features_by_corpus_part_and_language_and_needs_no_charts(reader: TestClient):
    page = html.unescape(reader.get(f"/runs/{RUN}").text)

    found = re.findall(r'class="chip" href="([^"]+)">[^<]*(?:<small[^>]*>\w+</small>)?\s*<small>([\d,]+)', page)
    assert {re.split("[?=]", address)[1] for address, _ in found} == {"corpus"}, "there is one language"
    for address, count in found:
        assert reader.get(f"/api/v1{address}").json()["total"] == int(count.replace(",", ""))
    assert "plotly" not in page and "data-plot" not in page


def owner(name: str, *, claimed: int = 9, tested: int = 9, supported: int = 0, **more: int) -> OwnerCount:
    return OwnerCount(name, 10, 10, claimed, tested, supported, **more)


def test_every_side_is_told_of_in_the_first_sentences(own_home: Path):
    write_tiny_run(own_home, amend=CALIBRATED)
    write_tiny_run(own_home, run="found-00000000", amend=(*CALIBRATED, *COMPARED, *FOUND))
    catalog = RunCatalog(own_home / "runs")
    reliability = verdict_reliability(catalog.results(RUN))
    counts = [
        owner("a", supported=1),
        owner("b", tested=1200, returned=10, returned_supported=3),
        owner("c", claimed=0, tested=0),
        owner("d", claimed=7, tested=0),
    ]
    found = findings_of(catalog.results("found-00000000")).findings

    said = headline_sentence(["a", "b", "c", "d"], counts, found, reliability)

    assert " have 2 features that no other has." in headline_sentence(
        ["a"], [owner("a+b", supported=2)], [], reliability
    )
    for words in (
        "a has 1 feature that b and c and d lack or have less of.",
        "b: none of 1,200 tested claims held up, and this side can't be judged well.",
        "c: no feature is claimed for it alone.",
        "d: none of its 7 claims was tested.",
        "Predictions are surely farther apart on 2 kinds of text and after 1 feature.",
        "The error rate of 1 of these is not known.",
        "The search finds 35 % of planted features; absence is not shown.",
    ):
        assert words in said, words
    known = [one for one in found if one.fdr is not None]
    assert "About 1 may be wrong." in headline_sentence(["a"], counts, known, reliability)
    certain = [one for one in known if not one.fdr]
    assert "The nulls have none as strong." in headline_sentence(["a"], counts, certain, reliability)


def test_of_a_hundred_findings_as_many_may_be_wrong_as_the_null_gave(own_home: Path):
    write_tiny_run(own_home, amend=(*CALIBRATED, *COMPARED, *FOUND))
    theme = next(
        one for one in findings_of(RunCatalog(own_home / "runs").results(RUN)).findings if one.kind == "passage"
    )
    found = [replace(theme, fdr=rate) for rate in np.linspace(0, 0.1, 100)]  # the weakest says it of all
    claims = [replace(theme, kind="feature", owner=name, fdr=0.5) for name in "aabb"]

    assert expected_wrong(found) == pytest.approx(10)
    assert expected_wrong([*found, *claims, replace(theme, fdr=None)]) == pytest.approx(12)


def test_a_calibration_that_planted_nothing_hides_no_page(own_home: Path):
    write_tiny_run(own_home, amend=(*CALIBRATED, "update spike_in set planted = 0, recovered = 0"))

    with TestClient(create_app(Settings(home=own_home))) as client:
        assert [client.get(path).status_code for path in ("/", f"/runs/{RUN}", f"/runs/{RUN}/method")] == [
            200,
            200,
            200,
        ]


def test_a_finding_shows_its_feature_with_the_hit_marked(judged: TestClient):
    page = judged.get("/runs/found-00000000").text
    card = page[page.index('id="finding-1"') :]
    card = card[: card.index("</li>")]

    assert 'href="/runs/found-00000000/features/3">feature 3</a>' in card
    assert "promotes" in card
    assert re.search(r'<span class="at"><span class="t a10">', card), "the strongest token is in the middle"
    assert "<s>" not in card
