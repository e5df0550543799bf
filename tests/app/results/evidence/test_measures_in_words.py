"""Verdicts, claims and measures in words."""

import dataclasses

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
    q_value=None,
    score=1.0,
)
TWINS = [Neighbour(12, "twin", "smollm2", 0.01, 0.2, 0.3), Neighbour(9, "twin", "shared", 0.01, 0.1, 0.9)]


def judged(verdict: str, kind: str | None = None, q: float | None = 0.0123, **more) -> Feature:
    return dataclasses.replace(EXCLUSIVE, verdict=verdict, kind=kind, q_value=q, **more)


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
                "Only gemma3 has this feature, and the tests support it, of the kind “absent”: next to nothing of it "
                "can be predicted from smollm2 (q = 0.012)."
            ),
        ),
        (
            judged("supported", "weaker"),
            (
                "gemma3 has this feature and smollm2 has less of it, and the tests support that, of the kind “weaker”: "
                "a part of it can be predicted from smollm2 too (q = 0.012)."
            ),
        ),
        (
            judged("supported", None, None),
            "Only gemma3 has this feature, and the tests support it.",
        ),
        (
            judged("refuted", "analogue"),
            (
                "Claimed for gemma3 alone, but the tests refute that this is a difference: feature 9 (shared) "
                "fires on the same rows, so it is an analogue."
            ),
        ),
        (
            judged("undecided", "absent", None),
            (
                "Claimed for gemma3 alone; the tests leave it undecided: there was nothing known to be false to "
                "hold it against."
            ),
        ),
        (
            judged("undecided", "weaker", 0.4),
            (
                "Claimed for gemma3 alone; the tests leave it undecided: false claims look as strong too often "
                "(q = 0.4)."
            ),
        ),
        (judged("untested"), "Claimed for gemma3 alone — a candidate, not yet tested."),
        (
            judged("refuted", owner="gemma3+third"),
            (
                "Claimed for gemma3 and third alone, but the tests refute that this is a difference: smollm2 has "
                "it as well."
            ),
        ),
        (judged("untested", firings=0), "Dead: it never fired on the rows analysed, so nothing can be said about it."),
    ],
)
def test_a_verdict_is_a_sentence_that_names_owner_kind_and_error(feature: Feature, words: str):
    assert verdict_in_words(feature, SOURCES, [], TWINS) == words


def test_an_undecided_verdict_names_its_doubts():
    tests = [
        criterion_result("firings", 12.0, 100.0, 12, "doubts"),
        criterion_result("template_share", 0.9, 0.5, 12, "doubts"),
        criterion_result("density", 0.001, 0.05, 12, "silent"),
    ]

    words = verdict_in_words(judged("undecided"), SOURCES, tests, [])

    assert words.endswith("undecided: it fired too seldom and it fires mostly on chat templates.")


def test_an_unknown_criterion_is_shown_under_its_own_name():
    found = criterion_result("moon_phase", 0.5, None, None, "refutes")

    assert (found.name, found.asks, found.side) == ("Moon phase", "", "")
    assert verdict_in_words(judged("refuted"), SOURCES, [found], []).endswith("smollm2 has it as well.")


def test_results_are_sorted_by_effect_then_by_criterion():
    names = [*CRITERIA, "moon_phase"]
    tests = [criterion_result(name, 0.0, None, None, EFFECTS[place % 4]) for place, name in enumerate(names)]

    ordered = sorted_by_effect(tests[::-1])

    assert [one.says for one in ordered] == sorted((one.says for one in tests), key=EFFECTS.index)
    for says in EFFECTS:
        mine = [one.test for one in ordered if one.says == says]
        assert mine == [name for name in names if name in mine]


def test_thresholds_are_those_of_the_recipe():
    recipe = {"analysis": {"verdict": {"readout_contrast": 0.4, "firings": 50, "refuted_from": 0.2, "moon": 3}}}

    assert thresholds(recipe) == {"readout_contrast": 0.4, "firings": 50.0, "like_decoys": 0.2}
    assert thresholds({}) == thresholds({"analysis": {}}) == {}
    assert refuting_thresholds({"analysis": {"verdict": {"readout_contrast": 0.4, "equal_readout": 0.8}}}) == {
        "readout_contrast": 0.8
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
