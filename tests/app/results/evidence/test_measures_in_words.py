"""Verdicts, claims and measures in words."""

import dataclasses

import numpy as np
import pytest

from app.results.connection import Source
from app.results.evidence.agreement import agreement_of
from app.results.evidence.criteria import (
    CRITERIA,
    EFFECTS,
    criterion_result,
    refuting_thresholds,
    sorted_by_effect,
    thresholds,
    verdict_in_short,
)
from app.results.evidence.measures_in_words import (
    claim_in_words,
    closest_twin,
    coherence_in_words,
    measures_in_words,
    verdict_in_words,
)
from app.results.features.corpus_breakdown import SHOWN, breakdown_entries
from app.results.features.feature import Feature, InSource, Neighbour
from trainer.analysis.claims.evidence import Estimate
from trainer.analysis.claims.verdict import FeatureStats, judge
from trainer.recipe.measuring import VerdictRecipe

SOURCES = tuple(
    Source(place, name, name, None, "resid_post", 1, 8, 1.0) for place, name in enumerate(("smollm2", "gemma3"))
)
EXCLUSIVE = Feature(
    feature=7,
    group="gemma3",
    content_hash="00",
    owner="gemma3",
    firings=2_000,
    density=0.005,
    max_activation=9.0,
    mean_activation=3.0,
    template_share=0.1,
    first_token_share=0.0,
    documents=300,
    corpus="chats",
    corpus_share=0.8,
    verdict="untested",
    fdr=None,
    score=1.0,
    probe_ratio=0.041,
    probe_low=0.02,
    probe_high=0.07,
    excess=3.14,
    excess_low=2.6,
    excess_high=3.9,
)
TWINS = [Neighbour(12, "twin", "smollm2", 0.01, 0.2, 0.3), Neighbour(9, "twin", "shared", 0.01, 0.1, 0.9)]


RATIO = "(probe ratio 0.041, 90 % interval 0.02 to 0.07)"
EXCESS = "(excess 3.1, 90 % interval 2.6 to 3.9)"


def judged(verdict: str, kind: str | None = None, fdr: float | None = 0.0123, **more) -> Feature:
    return dataclasses.replace(EXCLUSIVE, verdict=verdict, kind=kind, fdr=fdr, **more)


def inside(first: float, second: float, **more: float) -> list[InSource]:
    total = first + second
    known = {"relative_norm": None, "nu_reconstruction": None, "nu_error": None, "readout": None, **more}
    return [
        InSource(0, "smollm2", first, first, first / total, **known),
        InSource(1, "gemma3", second, second, second / total, **known),
    ]


def test_a_claim_of_a_dedicated_group_is_called_true_by_construction():
    claim = claim_in_words(EXCLUSIVE, inside(0.0, 1.2))

    assert claim.value == 1.0
    assert "cannot write to smollm2: this is so by construction" in claim.meaning


def test_a_claim_from_a_free_norm_is_called_exaggerated():
    claim = claim_in_words(dataclasses.replace(EXCLUSIVE, group="shared"), inside(0.04, 0.96))

    assert claim.value == 0.96
    assert "free to take any value" in claim.meaning


def test_a_claim_for_several_sources_has_the_norms_of_all_of_them():
    both = dataclasses.replace(EXCLUSIVE, owner="smollm2+gemma3")

    assert claim_in_words(both, inside(0.4, 0.6)).value == 1.0


def test_a_feature_without_a_claim_has_none_in_words():
    assert claim_in_words(dataclasses.replace(EXCLUSIVE, owner="shared", verdict=""), inside(1.0, 1.0)) is None


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (
            judged("supported", "absent"),
            (
                "Only here: gemma3 has this feature, and next to nothing of where it fires can be told from smollm2 "
                f"{RATIO}. It fires more strongly than noise would make it {EXCESS}. Among claims as strong, a share "
                "of 0.012 is expected to be noise."
            ),
        ),
        (
            judged("supported", "absent", 0.0),
            (
                "Only here: gemma3 has this feature, and next to nothing of where it fires can be told from smollm2 "
                f"{RATIO}. It fires more strongly than noise would make it {EXCESS}. Where its owner was replaced by "
                "noise of the same shape, no claim as strong came up."
            ),
        ),
        (
            judged("supported", "weaker", None),
            (
                "Stronger here: gemma3 has this feature, and at most a part of where it fires can be told from smollm2 "
                f"{RATIO}. It fires more strongly than noise would make it {EXCESS}. The run is not calibrated for "
                "this owner, so the share of noise among such claims is not known."
            ),
        ),
        (
            judged("refuted", "analogue"),
            (
                "In both: claimed for gemma3 alone, but feature 9 (shared) fires much as it does (correlation 0.90), "
                f"and smollm2 tells too much of where it fires {RATIO}."
            ),
        ),
        (
            judged("undecided", "noise"),
            (
                "Claimed for gemma3 alone, but not shown to be a feature: it fires hardly more strongly than noise of "
                f"the same shape would make it {EXCESS}."
            ),
        ),
        (
            judged("undecided", None, None),
            (
                "Claimed for gemma3 alone; whether that is so can't be told: it fired too seldom to be probed and its "
                "excess over noise could not be measured."
            ),
        ),
        (judged("untested"), "Claimed for gemma3 alone — a candidate, not yet tested."),
        (
            judged("refuted", owner="gemma3+third"),
            f"In both: claimed for gemma3 and third alone, but smollm2 has it as well {RATIO}.",
        ),
        (judged("untested", firings=0), "Dead: it never fired on the rows analysed, so nothing can be said about it."),
    ],
)
def test_a_verdict_is_a_sentence_with_its_measures_and_intervals(feature: Feature, words: str):
    assert verdict_in_words(feature, SOURCES, [], TWINS) == words


def test_an_undecided_verdict_names_its_doubts():
    tests = [
        criterion_result("firings", 12.0, 100.0, 12, "doubts"),
        criterion_result("template_share", 0.9, 0.5, 12, "doubts"),
        criterion_result("density", 0.001, 0.05, 12, "silent"),
        criterion_result("probe_ratio", 0.3, 0.5, 12, "supports", low=0.2, high=0.4),
        criterion_result("excess", 2.0, 1.1, 12, "supports", low=1.5, high=2.5),
    ]

    words = verdict_in_words(judged("undecided"), SOURCES, tests, [])

    assert words.endswith("can't be told: it fired too seldom and it fires mostly on chat templates.")


def test_evidence_against_a_claim_and_a_doubt_of_it_have_words_of_their_own():
    against, doubt = (criterion_result("probe_ratio", 0.9, 0.5, 900, says) for says in ("refutes", "doubts"))

    refuted = verdict_in_words(judged("refuted"), SOURCES, [against], [])
    undecided = verdict_in_words(judged("undecided", "weaker"), SOURCES, [doubt], [])

    assert refuted.endswith(f"but the others tell about as well where it fires {RATIO}.")
    assert "the others may tell more of where it fires than is allowed" in undecided


def test_of_three_sources_a_refuted_claim_is_not_said_to_be_in_both():
    third = Source(2, "third", "third", None, "resid_post", 1, 8, 1.0)

    assert verdict_in_words(judged("refuted", "analogue"), (*SOURCES, third), [], TWINS).startswith("Not only here: ")


@pytest.mark.parametrize(
    ("verdict", "kind", "words"),
    [
        ("supported", "absent", "only here"),
        ("supported", "weaker", "stronger here"),
        ("refuted", "analogue", "in both"),
        ("refuted", None, "in both"),
        ("undecided", "noise", "like noise"),
        ("undecided", "weaker", "can't tell"),
        ("undecided", None, "can't tell"),
        ("untested", None, "untested"),
        ("", None, ""),
    ],
)
def test_a_verdict_has_a_word_or_two_for_readers(verdict: str, kind: str | None, words: str):
    assert verdict_in_short(verdict, kind) == words


def test_an_unknown_criterion_is_shown_under_its_own_name():
    found = criterion_result("moon_phase", 0.5, None, None, "refutes")

    assert (found.name, found.asks, found.side) == ("Moon phase", "", "")
    assert verdict_in_words(judged("refuted"), SOURCES, [found], []).endswith(f"smollm2 has it as well {RATIO}.")


def test_results_are_sorted_by_effect_then_by_criterion():
    names = [*CRITERIA, "moon_phase"]
    tests = [criterion_result(name, 0.0, None, None, EFFECTS[place % 4]) for place, name in enumerate(names)]

    ordered = sorted_by_effect(tests[::-1])

    assert [one.says for one in ordered] == sorted((one.says for one in tests), key=EFFECTS.index)
    for says in EFFECTS:
        mine = [one.test for one in ordered if one.says == says]
        assert mine == [name for name in names if name in mine]


def test_thresholds_are_those_of_the_recipe():
    recipe = {"analysis": {"verdict": {"probe_ratio": 0.4, "firings": 50, "own_probe": 0.1, "moon": 3}}}

    assert thresholds(recipe) == {
        "probe_ratio": 0.4,
        "other_layers": 0.4,
        "firings": 50.0,
        "own_probe": 0.1,
    }
    assert thresholds({}) == thresholds({"analysis": {}}) == {}
    assert refuting_thresholds({"analysis": {"verdict": {"probe_ratio": 0.4, "equal_probe": 0.8}}}) == {
        "probe_ratio": 0.8,
        "other_layers": 0.8,
    }


def test_conditions_name_the_end_of_the_interval_that_is_compared():
    assert CRITERIA["probe_ratio"].passes("0.5") == "upper end ≤ 0.5"
    assert CRITERIA["probe_ratio"].refutes("0.8") == "refuted if lower end ≥ 0.8"
    assert CRITERIA["excess"].passes("1.1") == "lower end ≥ 1.1"
    assert CRITERIA["twin"].passes("0.5") == "≤ 0.5"


def test_every_criterion_of_the_rule_has_words_and_a_setting():
    estimates = ("ratio", "excess", "elsewhere")
    one = FeatureStats(
        **{
            field.name: Estimate(*[np.array([1.0])] * 3) if field.name in estimates else np.array([1.0])
            for field in dataclasses.fields(FeatureStats)
        }
    )
    tests = judge(np.array([True]), one, VerdictRecipe()).tests

    assert [test.name for test in tests] == list(CRITERIA)
    recipe = {"analysis": {"verdict": VerdictRecipe().model_dump()}}
    assert thresholds(recipe) == {test.name: float(test.threshold[0]) for test in tests} | {
        "probe_ratio": 0.5,
        "other_layers": 0.5,
    }


def test_the_closest_twin_fires_on_most_of_the_same_rows():
    assert closest_twin([*TWINS, Neighbour(1, "similar", "gemma3", 0.1, 0.9, 0.99)]).feature == 9
    assert closest_twin([]) is None


def test_measures_that_were_not_taken_are_left_out():
    assert [one.measure for one in measures_in_words(inside(0.5, 0.5), [])] == [
        "Norm share of smollm2",
        "Norm share of gemma3",
    ]

    found = measures_in_words(inside(0.5, 0.5, readout=0.4), TWINS)

    assert [one.measure for one in found][:2] == ["Readout from smollm2", "Readout from gemma3"]
    assert found[0].value == 0.4
    assert found[-1].value == 0.9
    assert "Feature 9 (shared)" in found[-1].meaning


def test_only_low_coherence_warns_of_several_meanings():
    assert "several things" in coherence_in_words(dataclasses.replace(EXCLUSIVE, coherence=0.02, polysemous=True))
    assert "several things" not in coherence_in_words(dataclasses.replace(EXCLUSIVE, coherence=0.3, polysemous=False))
    assert coherence_in_words(EXCLUSIVE) is None


def test_agreement_counts_rows_where_both_and_where_only_one_fires():
    found = agreement_of([(9, 0, 0, 1000), (9, 0, 2, 30), (9, 0, 5, 1), (9, 3, 0, 7), (9, 3, 2, 4), (9, 5, 5, 2)])

    assert found.other == 9
    assert [[cell.rows for cell in row] for row in found.cells][3] == [7, 0, 4, 0, 0, 0]
    assert (found.both, found.only_feature, found.only_twin) == (6, 7, 31)
    levels = [[cell.level for cell in row] for row in found.cells]
    assert levels[0][0] == 0, "rows where neither fires have no colour, or nothing else had any"
    assert levels[0][2] == 10
    assert levels[0][5] == 2, "log 2 over log 31, in tenths"
    assert levels[1] == [0] * 6
    assert agreement_of([]) is None


def test_breakdown_entries_have_shares_of_all_text_and_sum_small_ones():
    usual = {"en": 0.8, "de": 0.1, **{f"l{place}": 0.01 for place in range(8)}}
    parts = breakdown_entries({"de": 60, "en": 32, **{f"l{place}": 1 for place in range(8)}}, usual)

    assert [part.name for part in parts[:2]] == ["de", "en"]
    assert (parts[0].share, parts[0].usual, parts[0].times) == (0.6, 0.1, pytest.approx(6.0))
    assert len(parts) == SHOWN + 1
    assert (parts[-1].name, parts[-1].firings, parts[-1].usual) == ("4 others", 4, pytest.approx(0.04))
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert breakdown_entries({"und": 3}, {})[0].name == "und"
    assert breakdown_entries({"und": 3}, {})[0].times is None
