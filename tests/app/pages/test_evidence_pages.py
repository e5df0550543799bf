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


def test_the_criteria_page_refutes_from_the_larger_ratio_within_one_space(tmp_path: Path):
    verdict = '{"analysis": {"verdict": {"probe_ratio": 0.5, "equal_probe": 0.8}}}'
    judged_with_thresholds = (*JUDGED, f"update run set recipe_json = '{verdict}'")
    write_tiny_run(tmp_path, amend=judged_with_thresholds, run="apart-00000000")
    allowed = "update evidence set threshold = 0.9 where test = 'probe_ratio'"
    write_tiny_run(tmp_path, amend=(*judged_with_thresholds, allowed), run="one-space-00000000")
    with TestClient(create_app(Settings(home=tmp_path))) as client:
        apart, one_space = (
            text_of(client.get(f"/runs/{run}/evidence")) for run in ("apart-00000000", "one-space-00000000")
        )

    assert "probe_ratio upper end ≤ 0.5 refuted if lower end ≥ 0.8" in apart
    assert "probe_ratio upper end ≤ 0.9 refuted if lower end ≥ 0.9" in one_space
    assert one_space.count("≥ 0.8") == 1, "of other layers, which are not asked within one space"


def test_a_supported_claim_is_a_sentence_with_its_measures(judged: TestClient):
    feature = claims(judged, kind="absent")[0]["feature"]

    text = text_of(judged.get(f"{LIST}/{feature}"))

    assert "✓ only here" in text
    assert "Only here: gemma3 has this feature, and next to nothing of where it fires can be told from smollm2" in text
    assert "(probe ratio 0.05, 90 % interval 0.02 to 0.08)" in text
    assert "(excess 3, 90 % interval 2.5 to 3.5)" in text
    assert "Among claims as strong, a share of 0.004 is expected to be noise." in text
    assert "Found in 3 of 4 other trainings" in text
    assert "It may stand for several things" in text


def test_the_evidence_table_has_every_result_with_its_effect(judged: TestClient):
    feature = claims(judged, verdict="undecided", kind="weaker")[0]["feature"]
    page = judged.get(f"{LIST}/{feature}").text
    tests = judged.get(f"{API}/{feature}").json()["tests"]

    assert {one["test"] for one in tests} == {"probe_ratio", "excess", "twin", "firings", "moon_phase", "fdr"}
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
    assert [says for says, _ in shown] == [
        "claims", "doubts", "supports", "supports", "silent", "silent", "silent",
    ]  # fmt: skip
    assert "whether that is so can't be told: it fired too seldom." in text_of(judged.get(f"{LIST}/{feature}"))


def test_deciding_tests_come_before_the_contexts_with_value_and_threshold(judged: TestClient):
    feature = claims(judged, verdict="undecided", kind="weaker")[0]["feature"]
    page = judged.get(f"{LIST}/{feature}").text
    tests = judged.get(f"{API}/{feature}").json()["tests"]

    glance = page[page.index('<ul class="glance"') : page.index('id="contexts"')]
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", glance[: glance.index("</ul>")])).split())
    for one in tests:
        assert (one["name"] in words) == (one["says"] != "silent"), one
    assert "raises a doubt: Firings" in words
    assert "passes if ≥" in words
    assert 'href="#evidence">All the evidence, 6 tests</a>' in glance
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
        ({"kind": "noise"}, lambda row: row["kind"] == "noise"),
        ({"fdr_max": "0.01"}, lambda row: row["fdr"] is not None and row["fdr"] <= 0.01),
        ({"probe_min": "0.5"}, lambda row: row["probe_ratio"] is not None and row["probe_ratio"] >= 0.5),
        ({"excess_max": "1"}, lambda row: row["excess"] is not None and row["excess"] <= 1),
        (
            {"verdict": "supported", "excess_min": "2"},
            lambda row: row["verdict"] == "supported" and row["excess"] >= 2,
        ),
    ],
)
def test_the_list_narrows_to_kinds_ratios_and_excess(judged: TestClient, query: dict, keeps):
    every = judged.get(f"{API}.json").json()
    found = judged.get(f"{API}.json", params=query).json()

    assert sorted(row["feature"] for row in found) == [
        row["feature"] for row in sorted(every, key=lambda r: r["feature"]) if keeps(row)
    ]
    assert found


@pytest.mark.parametrize(
    "former",
    [{"q_max": "0.05"}, {"q_min": "0"}, {"readout_min": "0.5"}, {"readout_max": "0.5"}, {"sort": "q_value"},
     {"sort": "-readout_ratio"}],
)  # fmt: skip
@pytest.mark.parametrize("address", [LIST, API, f"{API}.csv", f"{LIST}/3"])
def test_bounds_and_orders_of_former_versions_are_refused_with_those_of_today(judged, former: dict, address: str):
    answer = judged.get(address, params=former)

    assert answer.status_code == 422
    assert next(iter(former)) in answer.text or "sorted by" in answer.text
    assert any(word in answer.text for word in ("fdr_m", "probe_m", "probe_ratio"))


def test_empty_bounds_of_a_former_form_are_ignored(judged: TestClient):
    assert judged.get(LIST, params={"q_min": "", "readout_max": "", "q": ""}).status_code == 200


@pytest.mark.parametrize(
    ("title", "column", "descending"),
    [("Probe ratio", "probe_ratio", False), ("Excess", "excess", True), ("fdr", "fdr", False)],
)
def test_sorting_by_a_measure_puts_the_surest_first_and_the_unknown_last(judged, title, column, descending):
    heading = re.search(rf'href="([^"]*)">{title}<', judged.get(LIST).text).group(1)
    values = [row[column] for row in judged.get(f"/api/v1{html.unescape(heading)}").json()["features"]]

    known = [value for value in values if value is not None]
    assert known
    assert known == sorted(known, reverse=descending)
    assert values[: len(known)] == known


def test_the_list_shows_measures_with_their_intervals_and_the_verdict_in_short(judged: TestClient):
    text = text_of(judged.get(LIST, params={"kind": ["absent", "noise"], "life": "alive"}))

    assert "✓ only here" in text
    assert "? like noise" in text
    assert "0.050 0.020 to 0.080" in text
    assert "3.0 2.5 to 3.5" in text


def test_downloads_have_kind_and_measures_with_their_bounds(judged: TestClient):
    rows = list(csv.DictReader(io.StringIO(judged.get(f"{API}.csv", params={"kind": "absent"}).text)))

    names = ("kind", "probe_ratio", "probe_low", "probe_high", "excess", "excess_low", "excess_high", "fdr")
    assert {tuple(row[name] for name in names) for row in rows} == {
        ("absent", "0.05", "0.02", "0.08", "3.0", "2.5", "3.5", "0.004")
    }


def test_a_claimed_feature_shows_what_the_probe_of_each_source_finds(judged: TestClient):
    feature = claims(judged, kind="absent")[0]
    text = text_of(judged.get(f"{LIST}/{feature['feature']}"))
    found = judged.get(f"{API}/{feature['feature']}").json()

    assert [(one["name"], one["r_precision"], one["auc"]) for one in found["probes"]] == [
        ("smollm2", pytest.approx(0.03), 0.8),
        ("gemma3", 0.6, 0.99),
    ]
    assert [(one["name"], one["layer"], one["probe_ratio"]) for one in found["other_layers"]] == [
        ("smollm2", 2, pytest.approx(0.025)),
        ("smollm2", 4, pytest.approx(0.0125)),
    ]
    assert "Layer ratio 90 % interval smollm2 2 0.025 0.010 to 0.040" in text
    assert "Probe of finds AUC" in text
    assert "gemma3 60.0 % 0.990" in text
    assert "smollm2 3.0 % 0.800" in text
    assert found["verdict_in_short"] == "only here"
    assert "probes" not in judged.get(f"{LIST}/3").text, "nothing is claimed of it"


def test_what_is_like_noise_is_not_said_to_be_a_feature(judged: TestClient):
    feature = claims(judged, kind="noise")[0]["feature"]
    text = text_of(judged.get(f"{LIST}/{feature}"))

    assert "? like noise" in text
    assert "not shown to be a feature: it fires hardly more strongly than noise of the same shape would make it" in text
    assert "passes if lower end ≥ 1.1" in text


def test_kinds_in_the_table_of_owners_lead_to_their_features(judged: TestClient):
    page = html.unescape(judged.get(f"/runs/{RUN}/method").text)

    found = re.findall(r'class="sub" href="([^"]+)">([^<\d]+) ([\d,]+)</a>', page)
    assert {words for _, words, _ in found} == {
        "only here", "stronger here", "in both, analogue", "like noise", "can't tell, weaker",
    }  # fmt: skip
    for address, _, count in found:
        assert judged.get(f"/api/v1{address}").json()["total"] == int(count)


def test_verdicts_are_counted_with_the_supported_ones_first(judged: TestClient):
    page = judged.get(f"/runs/{RUN}/method").text
    table = page[page.index('aria-label="Owners and verdicts"') :]

    heads = re.findall(r'<th scope="col" class="n">(.*?)</th>', table[: table.index("</thead>")])
    words = [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", head)).split()) for head in heads]
    assert words == ["✓ supported", "? undecided", "✗ refuted", "no claim", "all"]


def test_the_overview_has_verdict_counts_nulls_and_spike_ins(judged: TestClient):
    text = text_of(judged.get(f"/runs/{RUN}"))
    every = [row for row in judged.get(f"{API}.json", params={"life": "alive"}).json() if row["verdict"]]
    supported = [row for row in every if row["verdict"] == "supported"]

    assert f"{len(supported)} of {len(every)} claims that only one side has a feature are supported" in text
    assert "2 are refuted , and 4 stay undecided , 2 of them because they fire hardly more strongly than noise" in text
    assert "Among claims as strong as the weakest supported one, a share of 2.0 % is expected to be noise." in text
    assert "Noise null : claims supported, all wrongly 1 of 200 (0.5 %; 95 % interval 0.088 % to 2.8 %)" in text
    assert "on 100,000 rows 0 of 150 (0.0 %;" in text
    assert "95 % of those judged have an excess up to 1.04 (limit 1.1) 0.980 (limit 1.1)" in text
    assert "This run analysed 400,000 rows" in text
    assert "Placebos , isotropic: supported, all wrongly 2 of 128 (1.6 %;" in text
    assert "Placebos , whitened: supported, all wrongly 3 of 128 (2.3 %;" in text
    assert "are supported, all rightly 7 of 10 (70.0 %; 95 % interval 39.7 % to 89.2 %) 7 of 9" in text
    assert "not calibrated" not in text
    text = text_of(judged.get(f"/runs/{RUN}/method"))
    assert "Of 40 spike-ins" in text
    assert (
        "22 came back as a feature, 19 with the right owner, and 14 (35 %; 95 % interval 22 % to 50 %) were supported"
        in text
    )
    assert "Of 8 planted in all sources, 6 came back and 1 was wrongly supported" in text


def test_an_owner_whose_true_claims_are_missed_is_said_to_be_judged_badly(judged: TestClient):
    words = "Claims for smollm2 can't be judged well: 7 of 10 planted concepts that came back were supported."
    undecided = claims(judged, owner="smollm2", verdict="undecided")[0]["feature"]
    supported = claims(judged, owner="smollm2", verdict="supported")[0]["feature"]

    assert words in text_of(judged.get(f"/runs/{RUN}"))
    assert words in text_of(judged.get(f"{LIST}/{undecided}"))
    assert words not in text_of(judged.get(f"{LIST}/{supported}"))
    assert "can't be judged well" in text_of(judged.get("/")), "0 supported must not read as nothing found"
    owners = judged.get(f"/api/v1/runs/{RUN}").json()["headline"]["owners"]
    assert (owners["smollm2"]["returned"], owners["smollm2"]["returned_supported"]) == (10, 7)


def test_a_run_that_is_not_calibrated_says_that_its_errors_are_unknown(judged: TestClient):
    text = text_of(judged.get("/runs/uncalibrated-00000000"))

    assert "This run is not calibrated: nothing is known of its error rate" in text
    assert "can't be judged well" not in text
    assert "expected to be noise" not in text


def test_recall_is_drawn_per_owner_and_frequency(judged: TestClient):
    page = html.unescape(judged.get(f"/runs/{RUN}/method").text)
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
        assert " ".join(asked.asks.split()) in text
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
    assert len(places) == 7
    assert all(f'id="{place}"' in criteria_page for place in places)


def test_a_run_without_results_has_no_criteria_page(judged: TestClient):
    assert judged.get("/runs/nowhere/evidence").status_code == 404


def test_the_json_of_a_run_has_its_reliability(judged: TestClient):
    trust = judged.get(f"/api/v1/runs/{RUN}").json()["trust"]

    smollm2, gemma3 = trust["owners"]
    assert smollm2["noise"] == {
        "kind": "noise", "rows": 100_000, "claims": 200, "judged": 120, "supported": 1, "excess_95": 1.04,
    }  # fmt: skip
    assert [one["kind"] for one in gemma3["placebos"]] == ["isotropic", "whitened"]
    assert (gemma3["returned"], gemma3["returned_supported"]) == (9, 7)
    assert (trust["rows"], trust["excess_limit"]) == (400_000, 1.1)
    assert len(trust["spike_ins"]) == 6
    assert trust["verdicts"]["refuted"] == 2
