"""Decoder norms, owners, claims and content hashes."""

import numpy as np
import pytest

from tests.worlds.tiny_store import tiny_crosscoder
from trainer.analysis.per_feature import decoder_norms as module
from trainer.analysis.per_feature.decoder_norms import (
    DecoderNorms,
    claims,
    content_hashes,
    cosines,
    decoder_norms,
    holders,
    owners,
)
from trainer.recipe.measuring import AnalysisRecipe


def norms(*decoder: list[float]) -> DecoderNorms:
    return DecoderNorms(np.array(decoder, float), np.zeros((len(decoder), len(decoder[0]))))


def owner_of(*share: float) -> str:
    sources = ("a", "b", "c", "d")[: len(share)]
    return owners(np.array([share]), sources, AnalysisRecipe())[0]


def test_norms_of_the_tiny_crosscoder():
    found = decoder_norms(tiny_crosscoder())

    assert found.decoder.tolist() == [[1, 1], [3, 1], [2, 0], [0, 2]]
    assert found.encoder.tolist() == [[1, 1], [1, 1], [1, 0], [0, 1]]
    assert found.share.tolist() == [[0.5, 0.5], [0.75, 0.25], [1, 0], [0, 1]]


def test_relative_norm_is_one_for_this_source_only_one_half_for_equal_norms_and_zero_for_the_other_only():
    assert norms([2, 0], [1, 1], [4, 1]).relative.tolist() == [[1, 0], [0.5, 0.5], [0.875, 0.125]]


def test_relative_norm_is_unknown_unless_there_are_two_sources():
    assert np.isnan(norms([1, 2, 3]).relative).all()
    assert np.isnan(norms([1]).relative).all()


def test_a_feature_that_writes_nothing_has_no_share_and_no_owner():
    assert norms([0, 0]).share.tolist() == [[0, 0]]
    assert owner_of(0.0, 0.0) == "other"


def test_columns_go_by_feature_and_then_source():
    columns = decoder_norms(tiny_crosscoder()).columns([3, 0])

    assert columns["feature"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert columns["source"].tolist() == [3, 0] * 4
    assert columns["decoder_norm"].tolist() == [1, 1, 3, 1, 2, 0, 0, 2]


@pytest.mark.parametrize(
    ("share", "owner"),
    [
        ((1.0, 0.0), "a"),
        ((0.04, 0.96), "b"),
        ((0.71, 0.29), "a"),
        ((0.7, 0.3), "shared"),  # above the threshold, not at it
        ((0.3, 0.7), "shared"),
        ((0.5, 0.5), "shared"),
        ((0.96, 0.02, 0.02), "a"),
        ((0.68, 0.16, 0.16), "other"),  # one holder alone, but not by enough
        ((0.5, 0.4, 0.1), "a+b"),
        ((0.4, 0.1, 0.5), "a+c"),
        ((0.4, 0.2, 0.4), "shared"),  # half of an equal share is a sixth
        ((0.4, 0.4, 0.1, 0.1), "a+b"),
        ((0.25, 0.25, 0.25, 0.25), "shared"),
        ((1.0,), "a"),
    ],
)
def test_owner_by_norm_shares(share, owner):
    assert owner_of(*share) == owner


def test_thresholds_come_from_the_recipe():
    recipe = AnalysisRecipe(exclusive_above=0.8, shared_within=(0.45, 0.55))

    assert owners(np.array([[0.85, 0.15], [0.6, 0.4], [0.55, 0.45]]), ("a", "b"), recipe) == ["a", "other", "shared"]


def test_a_claim_is_that_some_source_lacks_the_feature():
    owner = ["a", "a+b", "shared", "other"]

    assert claims(owner, ("a", "b", "c")).tolist() == [True, True, False, False]
    assert claims(["a"], ("a",)).tolist() == [False], "a single source allows no claim"


def test_the_content_hash_follows_a_feature_to_another_index_and_changes_with_its_directions():
    one, two = tiny_crosscoder(), tiny_crosscoder()
    for name in ("decoder.left.shared", "decoder.right.shared"):
        two.weights[name] = two.weights[name].flip(0)
    two.weights["decoder.left.left"] *= 2
    before, after = content_hashes(one), content_hashes(two)

    assert len(set(before)) == 4
    assert after[:2] == before[1::-1]
    assert after[2] != before[2]
    assert after[3] == before[3]


def test_an_owner_names_the_sources_that_have_the_feature():
    found = holders(["b", "a+c", "shared", "other", "b"], ("a", "b", "c"))

    assert found.astype(int).tolist() == [[0, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert holders([], ("a", "b")).shape == (0, 2)


@pytest.mark.parametrize("block", [1, 3])
def test_how_many_features_are_read_at_a_time_changes_nothing(monkeypatch, block):
    crosscoder = tiny_crosscoder()
    whole = decoder_norms(crosscoder), cosines(crosscoder), content_hashes(crosscoder)
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(type(crosscoder), "decoder", _only_blocks(type(crosscoder).decoder, block))

    norms_in_blocks = decoder_norms(crosscoder)
    assert np.array_equal(norms_in_blocks.decoder, whole[0].decoder)
    assert np.array_equal(norms_in_blocks.encoder, whole[0].encoder)
    assert np.array_equal(cosines(crosscoder), whole[1], equal_nan=True)
    assert content_hashes(crosscoder) == whole[2]


def _only_blocks(decoder, block):
    """`Crosscoder.decoder`, which fails if it is asked for more than a block of features."""

    def in_block(crosscoder, source, features=None):
        assert features is not None and len(features) <= block, "copies the directions of all features"
        return decoder(crosscoder, source, features)

    return in_block
