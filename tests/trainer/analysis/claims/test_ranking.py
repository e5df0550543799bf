"""The default order puts claims first, and better supported claims before others."""

from dataclasses import fields

import numpy as np
import pytest

from trainer.analysis.claims.evidence import Estimate
from trainer.analysis.claims.margin import margins
from trainer.analysis.claims.ranking import ENOUGH_DOCUMENTS, ENOUGH_FIRINGS, RankingInputs, excess, scores
from trainer.analysis.claims.verdict import FeatureStats
from trainer.recipe.measuring import VerdictRecipe

OTHERS = [field.name for field in fields(FeatureStats) if field.name not in ("ratio", "excess", "elsewhere", "fdr")]
GOOD = {
    "firings": 1000.0,
    "documents": 100.0,
    "density": 0.0,
    "on_templates": 0.0,
    "on_openings": 0.0,
    "strongest_twin": 0.0,
    "energy": 5.0,
    "focus": 1.0,
    "margin": np.nan,
}


def ranking_inputs(*features: dict[str, float]) -> RankingInputs:
    return RankingInputs(**{name: np.array([{**GOOD, **feature}[name] for feature in features]) for name in GOOD})


def score_of(**change: float) -> float:
    """Score of a feature without a claim, beside another of the same owner with less energy."""
    return float(scores(["left", "left"], [""] * 2, ranking_inputs(change, {"energy": 1.0}))[0])


def test_the_verdict_determines_the_tier():
    found = scores(
        ["left", "left", "a+b", "left", "shared"],
        ["supported", "supported", "undecided", "refuted", ""],
        ranking_inputs({"margin": 0.4}, {"margin": 0.2, "energy": 9}, {"margin": -1.0}, {}, {}),
    )

    assert found.tolist() == pytest.approx([3.7, 3.6, 2.25, 1.0, 1.0])


def test_claims_are_ordered_by_their_margin_alone():
    margin = np.array([np.nan, -np.inf, -40.0, -1.0, -0.01, 0.0, 0.3, 1.0])
    inputs = ranking_inputs(*({"margin": one, "firings": 30.0 - at} for at, one in enumerate(margin.tolist())))
    found = scores(["left"] * 8, ["undecided"] * 8, inputs)

    assert (np.diff(found) >= 0).all()
    assert (np.diff(found)[1:] > 0).all()
    assert (found[0], found[5], found[7]) == (2.0, 2.5, 3.0)


def test_the_margin_is_that_of_the_weakest_test():
    recipe = VerdictRecipe()
    nan = np.full(5, np.nan)
    stats = FeatureStats(
        ratio=Estimate(nan, nan, np.array([0.1, 0.1, 0.4, 0.6, np.nan])),
        excess=Estimate(nan, np.array([4.0, 4.0, 4.0, 2.0, 5.0]), nan),
        elsewhere=Estimate(nan, nan, nan),
        fdr=np.array([np.nan, 0.08, 0.01, 0.01, 0.01]),
        **dict.fromkeys(OTHERS, nan),
    )

    # 1 - 2 / 4; 1 - 0.08 / 0.1; 1 - 0.4 / 0.5; 1 - 0.6 / 0.5.
    assert margins(stats, recipe).tolist() == pytest.approx([0.5, 0.2, 0.2, -0.2, np.nan], nan_ok=True)


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
    ],
)
def test_each_reason_for_doubt_lowers_a_score(name, value):
    assert 0.0 <= score_of(**{name: value}) < score_of()


def test_more_than_enough_firings_and_documents_add_nothing():
    assert score_of(firings=ENOUGH_FIRINGS, documents=ENOUGH_DOCUMENTS) == score_of() == 1.0


def test_energy_is_compared_with_features_of_the_same_owner():
    owner, verdicts = ["left", "left", "left", "right"], [""] * 4
    found = scores(owner, verdicts, ranking_inputs({"energy": 8.0}, {"energy": 2.0}, {"energy": 2.0}, {"energy": 0.1}))

    # Of the three of `left`, one ranks at 1 and two at 2/3; the feature of `right` is alone and ranks at 1.
    assert found.tolist() == pytest.approx([1.0, 0.25 + 0.75 * 2 / 3, 0.25 + 0.75 * 2 / 3, 1.0])


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
