"""Pages and JSON of a run with verdicts: feature, list, overview and criteria."""

import csv
import html
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.results.evidence.criteria import CRITERIA
from app.settings import Settings
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
    with TestClient(create_app(Settings(home=home))) as client:
        yield client


def text_of(answer) -> str:
    """The page as it is read: no tags, single spaces."""
    assert answer.status_code == 200
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def claims(judged: TestClient, **filters: str) -> list[dict]:
    return judged.get(API, params={"owner": "gemma3", "sort": "feature", "life": "alive", **filters}).json()["features"]


def test_the_criteria_page_names_no_refuting_ratio_within_one_space(tmp_path: Path):
    verdict = '{"analysis": {"verdict": {"readout_contrast": 0.5, "equal_readout": 0.8}}}'
    judged_with_thresholds = (*JUDGED, f"update run set recipe_json = '{verdict}'")
    write_tiny_run(tmp_path, amend=judged_with_thresholds, run="apart-00000000")
    allowed = "update evidence set threshold = 0.9 where test = 'readout_contrast'"
    write_tiny_run(tmp_path, amend=(*judged_with_thresholds, allowed), run="one-space-00000000")
    with TestClient(create_app(Settings(home=tmp_path))) as client:
        apart, one_space = (
            text_of(client.get(f"/runs/{run}/evidence")) for run in ("apart-00000000", "one-space-00000000")
        )

    assert "readout_contrast ≤ 0.5 refuted from 0.8" in apart
    assert "readout_contrast ≤ 0.9" in one_space
    assert "refuted from 0.8" not in one_space


def test_a_supported_claim_is_a_sentence_with_kind_and_q_value(judged: TestClient):
    feature = claims(judged, kind="absent")[0]["feature"]

    text = text_of(judged.get(f"{LIST}/{feature}"))

    assert "Only gemma3 has this feature, and the tests support it, of the kind “absent”" in text
    assert "(q = 0.004)" in text
    assert "Found in 3 of 4 other runs" in text
    assert "It may stand for several things" in text


def test_the_evidence_table_has_every_result_with_its_effect(judged: TestClient):
    feature = claims(judged, verdict="undecided")[0]["feature"]
    page = judged.get(f"{LIST}/{feature}").text
    tests = judged.get(f"{API}/{feature}").json()["tests"]

    assert {one["test"] for one in tests} == {"readout_contrast", "q_value", "twin", "firings", "moon_phase"}
    bodies = re.findall(r'<tbody class="(\w+)"><tr><th scope="row">(.*?)</th>', page)
    shown = [(says, " ".join(html.unescape(re.sub(r"<[^>]+>", " ", name)).split())) for says, name in bodies]
    words = {"supports": "supports", "doubts": "raises a doubt", "silent": "neutral"}
    assert {(says, name) for says, name in shown if says != "claims"} == {
        (
            one["says"],
            (
                f"{'▲' if one['says'] == 'doubts' else '✓' if one['says'] == 'supports' else '·'} "
                f"{words[one['says']]}: {one['name']}"
            ),
        )
        for one in tests
    }
    assert [says for says, _ in shown] == ["claims", "doubts", "supports", "supports", "silent", "silent"]
    assert "the tests leave it undecided: it fired too seldom." in text_of(judged.get(f"{LIST}/{feature}"))


def test_deciding_tests_come_before_the_contexts_with_value_and_threshold(judged: TestClient):
    feature = claims(judged, verdict="undecided")[0]["feature"]
    page = judged.get(f"{LIST}/{feature}").text
    tests = judged.get(f"{API}/{feature}").json()["tests"]

    glance = page[page.index('<ul class="glance"') : page.index('id="contexts"')]
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", glance[: glance.index("</ul>")])).split())
    for one in tests:
        assert (one["name"] in words) == (one["says"] != "silent"), one
    assert "raises a doubt: Firings" in words
    assert "passes if ≥" in words
    assert 'href="#evidence">All the evidence, 5 tests</a>' in glance
    assert "glance" not in judged.get(f"{LIST}/3").text, "nothing is claimed of it"


def test_the_norm_share_makes_the_claim_and_supports_nothing(judged: TestClient):
    for one in claims(judged)[:4]:
        text = text_of(judged.get(f"{LIST}/{one['feature']}"))
        assert "makes the claim: Norm share" in text
        assert "Makes the claim, supports nothing." in text
        assert "Norm share" not in {test["name"] for test in judged.get(f"{API}/{one['feature']}").json()["tests"]}


def test_the_strongest_twin_is_compared_row_by_row(judged: TestClient):
    feature = claims(judged, kind="analogue")[0]["feature"]
    page = judged.get(f"{LIST}/{feature}").text
    twin = judged.get(f"{API}/{feature}").json()["agreement"]

    table = re.search(r'<table class="heat">.*?</table>', page, re.DOTALL).group()
    cells = [int(cell.replace(",", "")) if cell else 0 for cell in re.findall(r"<td class=[^>]*>([\d,]*)</td>", table)]
    expected = [[0 if x == 3 else 10 * x + y + 1 for y in range(6)] for x in range(6)]
    assert [cells[place : place + 6] for place in range(0, 36, 6)] == twin["rows"] == expected
    assert twin["only_feature"] == 11 + 21 + 41 + 51
    assert twin["only_twin"] == 2 + 3 + 4 + 5 + 6
    assert table.count(" alone") == 10
    assert f'href="{LIST}/{twin["twin"]}"' in page


def test_shares_of_firings_are_compared_with_all_text(judged: TestClient):
    ground = judged.get(f"{API}/3").json()["ground"]

    assert [(part["name"], part["share"], part["usual"]) for part in ground["corpora"]] == [("wiki", 1.0, 0.6)]
    assert [(part["name"], part["share"], part["usual"]) for part in ground["languages"]] == [("de", 1.0, 0.25)]
    assert "German de 100.0 % 25.0 % 4.0×" in text_of(judged.get(f"{LIST}/3"))


def test_a_feature_without_a_claim_has_a_shorter_card(judged: TestClient):
    page = judged.get(f"{LIST}/3").text

    assert "Makes the claim" not in page
    assert '<table class="tests">' not in page
    assert "Norm share of gemma3" in page


@pytest.mark.parametrize(
    ("query", "keeps"),
    [
        ({"kind": "absent"}, lambda row: row["kind"] == "absent"),
        ({"kind": ["absent", "analogue"]}, lambda row: row["kind"] in ("absent", "analogue")),
        ({"q_max": "0.01"}, lambda row: row["q_value"] is not None and row["q_value"] <= 0.01),
        ({"readout_min": "0.5"}, lambda row: row["readout_ratio"] is not None and row["readout_ratio"] >= 0.5),
        (
            {"verdict": "supported", "q_min": "0.01"},
            lambda row: row["verdict"] == "supported" and row["q_value"] >= 0.01,
        ),
    ],
)
def test_the_list_narrows_to_kinds_q_values_and_ratios(judged: TestClient, query: dict, keeps):
    every = judged.get(f"{API}.json").json()
    found = judged.get(f"{API}.json", params=query).json()

    assert sorted(row["feature"] for row in found) == [
        row["feature"] for row in sorted(every, key=lambda r: r["feature"]) if keeps(row)
    ]
    assert found


def test_sorting_by_q_puts_the_surest_first_and_untested_last(judged: TestClient):
    heading = re.search(r'href="([^"]*)">q<', judged.get(LIST).text).group(1)
    values = [row["q_value"] for row in judged.get(f"/api/v1{html.unescape(heading)}").json()["features"]]

    known = [value for value in values if value is not None]
    assert known == sorted(known)
    assert values[: len(known)] == known


def test_downloads_have_kind_q_value_and_ratio(judged: TestClient):
    rows = list(csv.DictReader(io.StringIO(judged.get(f"{API}.csv", params={"kind": "absent"}).text)))

    assert {(row["kind"], row["q_value"], row["readout_ratio"]) for row in rows} == {("absent", "0.004", "0.05")}


def test_kinds_in_the_table_of_owners_lead_to_their_features(judged: TestClient):
    page = html.unescape(judged.get(f"/runs/{RUN}").text)

    found = re.findall(r'class="sub" href="([^"]+)">(\w+) ([\d,]+)</a>', page)
    assert {kind for _, kind, _ in found} == {"absent", "weaker", "analogue"}
    for address, _, count in found:
        assert judged.get(f"/api/v1{address}").json()["total"] == int(count)


def test_verdicts_are_counted_with_the_supported_ones_first(judged: TestClient):
    page = judged.get(f"/runs/{RUN}").text
    table = page[page.index('aria-label="Owners and verdicts"') :]

    heads = re.findall(r'<th scope="col" class="n">(.*?)</th>', table[: table.index("</thead>")])
    words = [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", head)).split()) for head in heads]
    assert words == ["✓ supported", "? undecided", "✗ refuted", "no claim", "all"]
    facts = text_of(judged.get(f"/runs/{RUN}"))
    assert re.search(r"claims of exclusivity supported \d+ of \d+ variance explained", facts), "the finding comes first"


def test_the_overview_has_verdict_counts_null_run_and_spike_ins(judged: TestClient):
    text = text_of(judged.get(f"/runs/{RUN}"))
    every = [row for row in judged.get(f"{API}.json", params={"life": "alive"}).json() if row["verdict"]]
    supported = [row for row in every if row["verdict"] == "supported"]

    assert f"{len(supported)} of {len(every)} claims that only one side has a feature are supported at q ≤ 0.05" in text
    assert f"at most about {round(len(supported) * 0.02)} are expected to be false" in text
    assert "2 are refuted and 2 stay undecided" in text
    assert "1 of 200 (0.5 %; 95 % interval 0.088 % to 2.8 %) came out supported" in text
    assert "Of 40 spike-ins" in text
    assert (
        "22 came back as a feature, 19 with the right owner, and 14 (35 %; 95 % interval 22 % to 50 %) were supported"
        in text
    )
    assert "Of 8 planted in all sources, 6 came back and 1 was wrongly supported" in text
    assert "not calibrated" not in text


def test_a_run_that_is_not_calibrated_says_what_is_missing(judged: TestClient):
    text = text_of(judged.get("/runs/uncalibrated-00000000"))

    assert "This run is not calibrated: q-values rest on decoys" in text
    assert "no spike-ins say how many differences it misses" in text


def test_recall_is_drawn_per_owner_and_frequency(judged: TestClient):
    page = html.unescape(judged.get(f"/runs/{RUN}").text)
    addresses = re.findall(r'data-plot="([^"]+spike-ins[^"]+)"', page)
    figures = [judged.get(address).json() for address in addresses]

    assert [address.partition("measure=")[2] for address in addresses] == ["recovered", "as_claimed", "supported"]
    lines = {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in figures[2]["data"]}
    assert lines == {
        "smollm2, 0.01 of rows": [(0.1, 0.0), (0.4, 0.625)],
        "smollm2, 0.001 of rows": [(0.4, 0.25)],
        "gemma3, 0.01 of rows": [(0.1, 0.125), (0.4, 0.75)],
        "shared, 0.01 of rows": [(0.4, 0.125)],
    }
    assert {trace["name"]: trace["line"]["dash"] for trace in figures[0]["data"]}["smollm2, 0.001 of rows"] == "dash"
    assert judged.get(f"/api/v1/runs/{RUN}/plots/spike-ins?measure=found").status_code == 404


def test_the_criteria_page_has_every_test_with_threshold_and_counts(judged: TestClient):
    page = judged.get(f"/runs/{RUN}/evidence").text
    text = text_of(judged.get(f"/runs/{RUN}/evidence"))

    for test, asked in CRITERIA.items():
        assert f'id="{test}"' in page
        assert asked.name in text
        assert asked.asks in text
    assert 'id="moon_phase"' in page
    every = [row for row in judged.get(f"{API}.json", params={"life": "alive"}).json() if row["verdict"]]
    assert (
        f"twin ≤ 0.5 0 0 2 {len(every) - 2} Correlation over all rows with the most similar feature of another owner."
        in text
    )


def test_each_test_of_a_claim_links_to_its_criterion(judged: TestClient):
    feature = claims(judged)[0]["feature"]
    page = judged.get(f"{LIST}/{feature}").text

    places = re.findall(rf'href="/runs/{RUN}/evidence#(\w+)"', page)
    criteria_page = judged.get(f"/runs/{RUN}/evidence").text
    assert len(places) == 6
    assert all(f'id="{place}"' in criteria_page for place in places)


def test_a_run_without_results_has_no_criteria_page(judged: TestClient):
    assert judged.get("/runs/nowhere/evidence").status_code == 404


def test_the_json_of_a_run_has_its_reliability(judged: TestClient):
    trust = judged.get(f"/api/v1/runs/{RUN}").json()["trust"]

    assert trust["null"] == {"claims": 200, "supported": 0.005}
    assert len(trust["spike_ins"]) == 6
    assert trust["verdicts"]["refuted"] == 2
