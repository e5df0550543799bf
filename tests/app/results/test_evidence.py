"""Evidence in words: what a measure means, and what is no evidence at all."""

import dataclasses

from app.results.evidence import findings, verdict_in_words
from app.results.feature import Feature, InSource, Neighbour

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


def inside(first: float, second: float, **more: float) -> list[InSource]:
    total = first + second
    known = {"relative_norm": None, "nu_reconstruction": None, "nu_error": None, "readout": None, **more}
    return [
        InSource(0, "smollm2", first, first, first / total, **known),
        InSource(1, "gemma3", second, second, second / total, **known),
    ]


def named(found, name: str):
    return next(one for one in found if one.measure == name)


def test_a_norm_that_could_not_be_otherwise_is_called_no_evidence():
    found = findings(EXCLUSIVE, inside(0.0, 1.2), [])

    share = named(found, "norm share of gemma3")
    assert share.value == 1.0
    assert "cannot write to smollm2" in share.meaning
    assert "by construction and no evidence" in share.meaning
    assert [one for one in found if one.measure == "norm share of smollm2"] == []


def test_a_norm_that_was_free_is_told_for_every_source():
    free = dataclasses.replace(EXCLUSIVE, group="shared")
    found = findings(free, inside(0.04, 0.96), [])

    assert named(found, "norm share of smollm2").value == 0.04
    assert "free to take any value" in named(found, "norm share of gemma3").meaning


def test_measures_that_were_not_taken_are_left_out_and_those_that_were_come_first():
    assert not [one for one in findings(EXCLUSIVE, inside(0.0, 1.0), []) if "ν" in one.measure]

    found = findings(EXCLUSIVE, inside(0.0, 1.0, nu_reconstruction=0.7, nu_error=0.1, readout=0.4), [])

    assert [one.measure for one in found[:2]] == ["ν reconstruction, smollm2", "ν error, smollm2"]
    assert [one.warning for one in found[:2]] == [True, False]
    assert named(found, "readout from smollm2").value == 0.4


def test_a_likely_twin_warns_only_a_feature_that_claims_to_be_alone():
    twins = [Neighbour(12, "twin", "smollm2", 0.01, 0.2, 0.3), Neighbour(9, "twin", "shared", 0.01, 0.1, 0.9)]

    claimed = named(findings(EXCLUSIVE, inside(0.0, 1.0), twins), "closest twin, correlation")
    assert (claimed.value, claimed.warning) == (0.9, True)
    assert "Feature 9 (shared)" in claimed.meaning
    shared = dataclasses.replace(EXCLUSIVE, owner="shared", verdict="")
    assert not named(findings(shared, inside(1.0, 1.0), twins), "closest twin, correlation").warning


def test_dense_rare_and_template_features_are_pointed_out():
    dense = findings(dataclasses.replace(EXCLUSIVE, density=0.3), inside(0.0, 1.0), [])
    rare = findings(dataclasses.replace(EXCLUSIVE, firings=5), inside(0.0, 1.0), [])
    template = findings(dataclasses.replace(EXCLUSIVE, template_share=0.9), inside(0.0, 1.0), [])

    assert named(dense, "density").warning
    assert named(rare, "density").warning
    assert named(template, "template share").warning
    assert not any(one.warning for one in findings(EXCLUSIVE, inside(0.0, 1.0), []))


def test_a_dead_feature_claims_nothing():
    dead = dataclasses.replace(EXCLUSIVE, firings=0)

    assert verdict_in_words(dead, []).startswith("Dead:")
