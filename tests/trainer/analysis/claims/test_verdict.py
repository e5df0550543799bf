"""Verdicts on one claim that all tests support, and on variants that one test speaks against."""

import numpy as np
import pytest

from trainer.analysis.claims.evidence import Estimate
from trainer.analysis.claims.verdict import FeatureStats, Judgement, judge, verdict_shares
from trainer.recipe.measuring import VerdictRecipe

GOOD = {
    "ratio": (0.05, 0.03, 0.08),
    "own": 0.4,
    "excess": (4.0, 2.5, 6.6),
    "elsewhere": (np.nan, np.nan, np.nan),
    "fdr": np.nan,
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
"""Estimates are value, low and high."""
SAME_SPACE = {"nu_error": 0.1, "nu_reconstruction": 0.2}
UNKNOWN = (np.nan, np.nan, np.nan)


def stats_of(*changes: dict[str, object]) -> FeatureStats:
    columns = {name: np.array([{**GOOD, **change}[name] for change in changes]) for name in GOOD}
    return FeatureStats(**{name: Estimate(*x.T) if x.ndim == 2 else x for name, x in columns.items()})


def judged(*changes: dict[str, object]) -> Judgement:
    return judge(np.ones(len(changes), bool), stats_of(*changes), VerdictRecipe())


def verdict(**change: object) -> tuple[str, str | None]:
    found = judged(change)
    return found.verdict[0], found.kind[0]


def test_a_claim_that_all_tests_support_is_supported():
    assert verdict() == ("supported", "absent")


def test_a_feature_that_the_other_source_tells_in_part_is_weaker():
    assert verdict(ratio=(0.3, 0.2, 0.5)) == ("supported", "weaker")


@pytest.mark.parametrize(
    "change",
    [
        {"ratio": (0.45, 0.4, 0.51)},
        {"ratio": (0.79, 0.75, 0.9)},
        {"ratio": UNKNOWN},
        {"excess": (2.2, 1.95, 2.5)},
        {"excess": (1.0, 0.9, 1.05)},
        {"excess": UNKNOWN},
        {"fdr": 0.11},
        {"own": 0.04},
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
def test_a_single_doubt_leaves_a_claim_undecided_and_refutes_nothing(change):
    assert verdict(**change)[0] == "undecided"


@pytest.mark.parametrize(
    ("excess", "kind"), [((0.8, 0.7, 1.09), "noise"), ((1.0, 0.8, 1.2), "absent"), (UNKNOWN, "absent")]
)
def test_what_noise_would_do_as_often_is_called_noise_only_where_the_interval_says_so(excess, kind):
    assert verdict(excess=excess) == ("undecided", kind)


def test_a_twin_refutes_if_the_other_sources_tell_its_rows_and_no_verdict_turns_on_an_edge():
    assert verdict(twin=0.6, ratio=(0.55, 0.51, 0.6)) == ("refuted", "analogue")
    assert verdict(twin=0.6) == ("supported", "absent")
    # From support to refutation it is the width of an interval, whose middle says nothing.
    for ratio in ((0.45, 0.4, 0.501), (0.5, 0.45, 0.55), (0.55, 0.499, 0.6), UNKNOWN):
        assert verdict(twin=0.6, ratio=ratio)[0] == "undecided"


@pytest.mark.parametrize(
    ("elsewhere", "expected"),
    [
        ((0.05, 0.02, 0.09), ("supported", "absent")),
        ((0.3, 0.2, 0.45), ("supported", "weaker")),
        ((0.45, 0.4, 0.55), ("undecided", "weaker")),
        ((0.7, 0.6, 0.79), ("undecided", "weaker")),
        ((0.9, 0.81, 1.0), ("refuted", None)),
    ],
)
def test_what_another_layer_of_the_other_model_tells_counts_except_in_one_space(elsewhere, expected):
    assert verdict(elsewhere=elsewhere) == expected
    assert verdict(elsewhere=elsewhere, **SAME_SPACE)[0] == "supported"


def test_a_feature_that_the_other_source_tells_nearly_as_well_is_refuted_and_of_no_kind():
    assert verdict(ratio=(0.9, 0.8, 1.0)) == ("refuted", None)


def test_in_one_space_a_feature_may_be_told_from_both_sources_if_only_one_writes_it():
    told = {"ratio": (0.8, 0.75, 0.89)}

    assert verdict(**told)[0] == "undecided"
    assert verdict(**told, **SAME_SPACE) == ("supported", "weaker")


def test_stores_without_text_can_support_a_claim():
    unknown = dict.fromkeys(("documents", "template_share", "first_token_share"), np.nan)

    assert verdict(**unknown)[0] == "supported"


def test_features_without_a_claim_have_no_verdict_and_no_evidence():
    found = judge(np.array([False, True]), stats_of({}, {}), VerdictRecipe())

    assert (found.verdict, found.kind) == (["", "supported"], [None, "absent"])
    assert set(found.columns()["feature"]) == {1}


def test_evidence_has_value_interval_threshold_and_sample_size_of_the_tests_that_were_made():
    columns = judged({"fdr": 0.02}, {"twin": 0.7, "ratio": (0.6, 0.55, 0.65)}).columns()
    rows = list(zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True))

    assert list(columns) == ["feature", "test", "value", "low", "high", "threshold", "n", "says"]
    assert (0, "probe_ratio", 0.05, 0.03, 0.08, 0.5, 5000, "supports") in rows
    assert (0, "excess", 4.0, 2.5, 6.6, 2.0, 5000, "supports") in rows
    (twin,) = (row for row in rows if row[:2] == (1, "twin"))
    assert twin[2] == 0.7 and np.isnan(twin[3]) and twin[-1] == "refutes"
    assert not [row for row in rows if row[1] in ("nu_error", "nu_reconstruction")]
    assert [row[1] for row in rows if row[1] == "fdr"] == ["fdr"]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_shares_count_claims_only():
    assert verdict_shares(["", "supported", "refuted", "refuted", "undecided"]) == {
        "supported": 0.25,
        "refuted": 0.5,
        "undecided": 0.25,
    }
    assert verdict_shares([""]) == {}
