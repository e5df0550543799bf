"""The default order puts claims first, and better supported claims before others."""

import numpy as np
import pytest

from trainer.analysis.claims.ranking import ENOUGH_DOCUMENTS, ENOUGH_FIRINGS, RankingInputs, excess, scores

GOOD = {
    "firings": 1000.0,
    "documents": 100.0,
    "density": 0.0,
    "on_templates": 0.0,
    "on_openings": 0.0,
    "strongest_twin": 0.0,
    "energy": 5.0,
    "focus": 1.0,
    "strength": 1.0,
}


def ranking_inputs(*features: dict[str, float]) -> RankingInputs:
    return RankingInputs(**{name: np.array([{**GOOD, **feature}[name] for feature in features]) for name in GOOD})


def score_of(**change: float) -> float:
    """Score of a claim, beside another of the same owner with less energy."""
    return float(scores(["left", "left"], ["undecided"] * 2, ranking_inputs(change, {"energy": 1.0}))[0])


def test_the_verdict_determines_the_tier():
    found = scores(
        ["left", "left", "a+b", "left", "shared"],
        ["supported", "supported", "undecided", "refuted", ""],
        ranking_inputs({"energy": 1}, {"firings": 1, "strongest_twin": 0.9}, {}, {}, {}),
    )

    assert found.tolist()[2:] == [3.0, 2.0, 1.0]
    assert 3.0 < found[1] < found[0] < 4.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("firings", 10.0),
        ("documents", 2.0),
        ("density", 0.2),
        ("on_templates", 0.8),
        ("on_openings", 0.8),
        ("strongest_twin", 0.7),
        ("energy", 0.5),
        ("focus", 0.3),
        ("strength", 0.4),
    ],
)
def test_each_reason_for_doubt_lowers_a_score(name, value):
    assert 2.0 <= score_of(**{name: value}) < score_of()


def test_more_than_enough_firings_and_documents_add_nothing():
    assert score_of(firings=ENOUGH_FIRINGS, documents=ENOUGH_DOCUMENTS) == score_of() == 3.0


def test_energy_is_compared_with_features_of_the_same_owner():
    owner, verdicts = ["left", "left", "left", "right"], ["refuted"] * 4
    found = scores(owner, verdicts, ranking_inputs({"energy": 8.0}, {"energy": 2.0}, {"energy": 2.0}, {"energy": 0.1}))

    # Of the three of `left`, one ranks at 1 and two at 2/3; the feature of `right` is alone and ranks at 1.
    assert found.tolist() == pytest.approx([2.0, 1 + 0.25 + 0.75 * 2 / 3, 1 + 0.25 + 0.75 * 2 / 3, 2.0])


def test_unknown_inputs_give_the_best_factor():
    unknown = dict.fromkeys(("documents", "on_templates", "on_openings", "focus"), np.nan)

    assert score_of(**unknown) == score_of()


def test_a_feature_that_never_fired_has_no_score():
    assert np.isnan(score_of(firings=0.0))


def test_excess_is_zero_at_the_share_of_all_rows_and_one_for_all_firings():
    assert excess(np.array([0.1, 0.25, 0.625, 1.0, np.nan]), 0.25).tolist() == pytest.approx(
        [0, 0, 0.5, 1, np.nan], nan_ok=True
    )
    assert excess(np.array([1.0]), 1.0).tolist() == [0.0]
