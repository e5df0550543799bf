"""Verdicts on one claim that all tests support, and on variants that one test speaks against."""

import numpy as np
import pytest

from trainer.analysis.claims.contrast import ReadoutContrast
from trainer.analysis.claims.verdict import FeatureStats, Judgement, judge, verdict_shares
from trainer.recipe.measuring import VerdictRecipe

GOOD = {
    "own": 0.4,
    "other": 0.01,
    "p_value": 0.001,
    "q_value": 0.01,
    "decoys": 1000,
    "firings": 5000,
    "documents": 300.0,
    "density": 0.01,
    "template_share": 0.0,
    "first_token_share": 0.1,
    "twin": 0.0,
    "nu_error": np.nan,
    "nu_reconstruction": np.nan,
    "found_again": np.nan,
    "other_runs": 0,
}
SAME_SPACE = {"nu_error": 0.1, "nu_reconstruction": 0.2}


def judged(*changes: dict[str, float]) -> Judgement:
    columns = {name: np.array([{**GOOD, **change}[name] for change in changes]) for name in GOOD}
    contrast = ReadoutContrast(columns.pop("own"), columns.pop("other"), slack=0.0)
    return judge(np.ones(len(changes), bool), FeatureStats(contrast, **columns), VerdictRecipe())


def verdict(**change: float) -> tuple[str, str | None]:
    found = judged(change)
    return found.verdict[0], found.kind[0]


def test_a_claim_that_all_tests_support_is_supported():
    assert verdict() == ("supported", "absent")


def test_a_feature_that_the_other_source_predicts_in_part_is_weaker():
    assert verdict(other=0.1) == ("supported", "weaker")


@pytest.mark.parametrize(
    "change",
    [
        {"q_value": 0.06},
        {"q_value": np.nan, "p_value": np.nan, "decoys": 0},
        {"other": 0.3},
        {"own": np.nan, "other": np.nan},
        {"own": 0.01, "other": 0.0},
        {"firings": 99},
        {"documents": 19.0},
        {"density": 0.06},
        {"template_share": 0.6},
        {"first_token_share": 0.6},
        {"found_again": 0.25, "other_runs": 4},
        SAME_SPACE | {"nu_error": 0.3},
        SAME_SPACE | {"nu_reconstruction": 0.6},
    ],
)
def test_a_single_doubt_leaves_a_claim_undecided(change):
    assert verdict(**change)[0] == "undecided"


def test_a_twin_refutes_whatever_the_other_tests_say():
    assert verdict(twin=0.6) == ("refuted", "analogue")


def test_a_claim_that_looks_like_a_decoy_is_refuted_and_of_no_kind():
    assert verdict(other=0.38, p_value=0.4, q_value=1.0) == ("refuted", None)


def test_in_one_space_a_feature_may_be_readable_from_both_sources_if_only_one_writes_it():
    readable = {"other": 0.3, "p_value": 0.001}

    assert verdict(**readable)[0] == "undecided"
    assert verdict(**readable, **SAME_SPACE) == ("supported", "weaker")


def test_stores_without_text_can_support_a_claim():
    unknown = dict.fromkeys(("documents", "template_share", "first_token_share"), np.nan)

    assert verdict(**unknown)[0] == "supported"


def test_a_feature_that_the_other_source_predicts_nearly_as_well_is_refuted_however_unlike_decoys():
    assert verdict(other=0.33) == ("refuted", None)


def test_features_without_a_claim_have_no_verdict_and_no_evidence():
    columns = {name: np.full(2, value) for name, value in GOOD.items()}
    stats = FeatureStats(ReadoutContrast(columns.pop("own"), columns.pop("other"), slack=0.0), **columns)

    found = judge(np.array([False, True]), stats, VerdictRecipe())

    assert (found.verdict, found.kind) == (["", "supported"], [None, "absent"])
    assert set(found.columns()["feature"]) == {1}


def test_evidence_has_value_threshold_and_sample_size_of_the_tests_that_were_made():
    columns = judged({}, {"q_value": np.nan, "twin": 0.7}).columns()
    rows = list(zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True))

    assert list(columns) == ["feature", "test", "value", "threshold", "n", "says"]
    assert (0, "q_value", 0.01, 0.05, 1000, "supports") in rows
    assert (0, "readout_contrast", pytest.approx(0.025), 0.5, 5000, "supports") in rows
    assert (1, "twin", 0.7, 0.5, 5000, "refutes") in rows
    assert not [row for row in rows if row[1] in ("nu_error", "nu_reconstruction")]
    assert not [row for row in rows if row[:2] == (1, "q_value")]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_shares_count_claims_only():
    assert verdict_shares(["", "supported", "refuted", "refuted", "undecided"]) == {
        "supported": 0.25,
        "refuted": 0.5,
        "undecided": 0.25,
    }
    assert verdict_shares([""]) == {}
