"""Verdicts: one claim for which everything speaks, and what each single fact against it makes of it."""

import numpy as np
import pytest

from trainer.analysis.claims.contrast import Contrast
from trainer.analysis.claims.verdict import FeatureStats, Judgement, judge, shares
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
    contrast = Contrast(columns.pop("own"), columns.pop("other"), slack=0.0)
    return judge(np.ones(len(changes), bool), FeatureStats(contrast, **columns), VerdictRecipe())


def verdict(**change: float) -> tuple[str, str | None]:
    found = judged(change)
    return found.verdict[0], found.kind[0]


def test_a_claim_for_which_everything_speaks_is_supported():
    assert verdict() == ("supported", "absent")


def test_what_the_other_side_holds_in_part_is_weaker_there():
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


def test_a_twin_refutes_whatever_else_is_known():
    assert verdict(twin=0.6) == ("refuted", "analogue")


def test_a_claim_that_looks_like_a_decoy_is_refuted_and_of_no_kind():
    assert verdict(other=0.38, p_value=0.4, q_value=1.0) == ("refuted", None)


def test_in_one_space_a_feature_may_be_carried_on_both_sides_if_only_one_writes_it():
    carried = {"other": 0.3, "p_value": 0.001}

    assert verdict(**carried)[0] == "undecided"
    assert verdict(**carried, **SAME_SPACE) == ("supported", "weaker")


def test_stores_without_text_can_support_a_claim():
    unknown = dict.fromkeys(("documents", "template_share", "first_token_share"), np.nan)

    assert verdict(**unknown)[0] == "supported"


def test_what_the_other_side_tells_nearly_as_well_is_refuted_however_unlike_decoys():
    assert verdict(other=0.33) == ("refuted", None)


def test_features_that_claim_nothing_have_no_verdict_and_no_evidence():
    columns = {name: np.full(2, value) for name, value in GOOD.items()}
    facts = FeatureStats(Contrast(columns.pop("own"), columns.pop("other"), slack=0.0), **columns)

    found = judge(np.array([False, True]), facts, VerdictRecipe())

    assert (found.verdict, found.kind) == (["", "supported"], [None, "absent"])
    assert set(found.columns()["feature"]) == {1}


def test_evidence_says_value_threshold_and_what_it_rests_on_and_leaves_out_what_was_not_tested():
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
    assert shares(["", "supported", "refuted", "refuted", "undecided"]) == {
        "supported": 0.25,
        "refuted": 0.5,
        "undecided": 0.25,
    }
    assert shares([""]) == {}
