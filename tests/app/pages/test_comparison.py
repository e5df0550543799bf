"""Which findings of a run another run reports, too: on its page, in its JSON and by the command."""

import html
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from app.cli import main
from app.main import create_app
from app.settings import Settings
from tests.worlds.compared import COMPARED, FOUND
from tests.worlds.tiny_results import RUN, write_tiny_run

OTHER = "other-00000002"
FIRES_LIKE_3 = (
    "delete from firing where feature = 40 and bucket = 'top'",
    (
        "insert into firing select 40, rank, bucket, sequence, corpus, peak, peak_byte_end, byte_start, text, tokens, "
        "activations from firing where feature = 3 and bucket = 'top'"
    ),
    "delete from firing where feature = 3",
)
"""What was feature 3 is feature 40."""
OWN_TEXTS = "update firing set text = text || ' ' || feature where feature in (3, 7)"
"""Tiny texts are alike, so that features fire on the same by chance."""
OWNED = "update feature set owner = 'smollm2' where feature = 3"
RENUMBERED = (
    *FOUND,
    OWN_TEXTS,
    *FIRES_LIKE_3,
    "update feature set owner = 'smollm2', verdict = 'undecided' where feature = 40",
    "update finding set feature = 40 where feature = 3",
    "update finding set subject = 'matey', names = ['<b>ahoy</b>'], title = 'text with “matey”' where finding = 0",
    "delete from finding where finding = 2",
    "delete from firing where feature = 7",
)


def words(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", markup)))


@pytest.fixture
def two_runs(own_home: Path) -> Path:
    write_tiny_run(own_home, features=64, amend=(*COMPARED, *FOUND, OWN_TEXTS, OWNED))
    write_tiny_run(own_home, run=OTHER, features=64, amend=(*COMPARED, *RENUMBERED))
    return own_home


def test_findings_are_matched_by_their_words_and_by_where_features_fire(two_runs: Path):
    with TestClient(create_app(Settings(home=two_runs))) as client:
        found = client.get(f"/api/v1/runs/{RUN}/compare/{OTHER}").json()

    assert found["findings"] == {"run": 4, "other": 3}
    assert found["found_again"] == {"run": 2, "other": 2}
    text, claim, language, divergent = found["forth"]
    assert (text["again"], text["match"]) == (0, None), "the word of either is told of the other"
    assert claim["again"] == 1
    assert claim["match"] == {
        "feature": 40,
        "owner": "smollm2",
        "verdict": "undecided",
        "in_common": 1.0,
        "divergence_low": None,
    }
    assert language["again"] is None
    assert (divergent["again"], divergent["match"]) == (None, None)
    assert [one["again"] for one in found["back"]] == [0, 1, None]


@pytest.mark.parametrize(("low", "holds"), [(1.6, True), (1.4, False)])
def test_a_finding_holds_where_the_same_feature_has_what_is_claimed_though_the_list_tells_another(
    own_home: Path, low: float, holds: bool
):
    limit = """update run set recipe_json = '{"analysis": {"verdict": {"divergence_ratio": 1.5}}}'"""
    write_tiny_run(own_home, features=64, amend=(*COMPARED, *FOUND, OWN_TEXTS, OWNED))
    other = (
        *(OWN_TEXTS, OWNED, limit, "update feature set verdict = 'supported' where feature = 3"),
        f"insert into feature_divergence values (7, 0, 1, 2.0, {low}, 2.9, 20)",
    )
    write_tiny_run(own_home, run=OTHER, features=64, amend=other)

    with TestClient(create_app(Settings(home=own_home))) as client:
        found = client.get(f"/api/v1/runs/{RUN}/compare/{OTHER}").json()["forth"]

    assert [(one["kind"], one["again"], one["holds"]) for one in found] == [
        ("passage", None, False), ("feature", None, True), ("passage", None, False), ("divergence", None, holds),
    ]  # fmt: skip


def test_a_claim_is_not_the_same_for_another_owner(own_home: Path):
    write_tiny_run(own_home, features=64, amend=(*COMPARED, *FOUND, OWN_TEXTS, OWNED))
    amended = (*COMPARED, *RENUMBERED, "update feature set owner = 'gemma3' where feature = 40")
    write_tiny_run(own_home, run=OTHER, features=64, amend=amended)

    with TestClient(create_app(Settings(home=own_home))) as client:
        claim = client.get(f"/api/v1/runs/{RUN}/compare/{OTHER}").json()["forth"][1]

    assert (claim["again"], claim["holds"]) == (None, False)
    assert (claim["match"]["feature"], claim["match"]["owner"]) == (40, "gemma3"), "it is there, and another's"


def test_a_run_compared_with_itself_has_every_finding_in_its_own_place(own_home: Path):
    more = (
        """insert into finding select 4, kind, 'text with “matey”', owner, base, source, feature, property, 'matey',
            measure, effect, low, high, fdr, found_in, looked_in, documents, [], [], [], surprise_gain
            from finding where finding = 0""",
        """insert into firing select feature, rank + 100, bucket, sequence, corpus, peak, peak_byte_end, byte_start,
            text, tokens, activations from firing where feature = 7 and bucket = 'top'""",
    )
    write_tiny_run(own_home, features=64, amend=(*COMPARED, *FOUND, OWN_TEXTS, OWNED, *more))

    with TestClient(create_app(Settings(home=own_home))) as client:
        found = client.get(f"/api/v1/runs/{RUN}/compare/{RUN}").json()

    assert [one["again"] for one in found["forth"]] == [0, 1, 2, 3, 4]
    assert found["forth"][3]["match"]["in_common"] == 1, "places that two windows share count once"


def test_a_divergence_of_another_pair_of_models_is_no_other_finding_of_the_same(own_home: Path):
    limit = """update run set recipe_json = '{"analysis": {"verdict": {"divergence_ratio": 1.5}}}'"""
    third = """insert into source select 2, 'third', 'third-model', revision, hookpoint, layer, width, scale, space
        from source limit 1"""
    write_tiny_run(own_home, features=64, amend=(*COMPARED, *FOUND, OWN_TEXTS, OWNED, third))
    other = (
        *(*COMPARED, *FOUND, OWN_TEXTS, OWNED, third, limit, "update finding set source = 2 where finding = 3"),
        "insert into feature_divergence values (7, 0, 2, 4.0, 3.5, 4.9, 20)",
    )
    write_tiny_run(own_home, run=OTHER, features=64, amend=other)

    with TestClient(create_app(Settings(home=own_home))) as client:
        found = client.get(f"/api/v1/runs/{RUN}/compare/{OTHER}").json()["forth"][3]

    assert (found["again"], found["holds"], found["match"]["divergence_low"]) == (None, False, None)


def test_runs_of_other_models_are_refused(two_runs: Path):
    write_tiny_run(two_runs, run="models-00000003", features=64, amend=("update source set model = 'another/model'",))

    with TestClient(create_app(Settings(home=two_runs))) as client:
        page = client.get(f"/runs/{RUN}/compare/models-00000003")
    printed = CliRunner().invoke(main, ["compare", RUN, "models-00000003"], env={"CROSSDIFF_HOME": str(two_runs)})

    assert page.status_code == 422 and "do not compare the same models" in page.text
    assert printed.exit_code == 1 and "do not compare the same models" in printed.output


def test_the_page_says_it_with_links_and_escapes_titles(two_runs: Path):
    with TestClient(create_app(Settings(home=two_runs))) as client:
        overview = client.get(f"/runs/{RUN}").text
        raw = client.get(f"/runs/{RUN}/compare/{OTHER}").text
        missing = client.get(f"/runs/{RUN}/compare/none-00000003")

    assert f'href="/runs/{RUN}/compare/{OTHER}"' in overview
    page = words(raw)
    assert re.search(rf"2 of 4 findings of {RUN} hold in {OTHER}\s*, too", page)
    assert "2 of 3 findings of" in page
    assert "feature 40 fires on 100 % of the same" in page and "no feature that fires on the same" in page
    assert f'href="/runs/{OTHER}#finding-1"' in raw
    assert "<b>ahoy" not in raw and "<q>" not in raw
    assert missing.status_code == 404


def test_the_command_prints_the_same(two_runs: Path):
    printed = CliRunner().invoke(main, ["compare", RUN, OTHER, "--first", "2"], env={"CROSSDIFF_HOME": str(two_runs)})

    assert printed.exit_code == 0
    assert f"2 of 2 findings of {RUN} hold in {OTHER}, too" in printed.output
    assert "fires at “ <s>” (0.33 [0.27, 0.38]): finding 2, feature 40 there" in printed.output
    unknown = CliRunner().invoke(main, ["compare", RUN, "none-00000003"], env={"CROSSDIFF_HOME": str(two_runs)})
    assert unknown.exit_code == 1 and "none-00000003" in unknown.output
