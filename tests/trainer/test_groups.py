"""Presets lay out groups without gaps, and only the allowed blocks exist."""

import pytest
import torch

from trainer.crosscoder import initial
from trainer.errors import RecipeError
from trainer.groups import preset
from trainer.recipe import CrosscoderRecipe


def test_dfc_has_a_shared_group_and_one_for_each_of_three_sources():
    groups = preset(CrosscoderRecipe(variant="dfc", features=100, exclusive_share=0.05), ("a", "b", "c"))

    assert [(g.name, g.first, g.stop) for g in groups] == [
        ("shared", 0, 85),
        ("a", 85, 90),
        ("b", 90, 95),
        ("c", 95, 100),
    ]
    assert [g.reads for g in groups] == [("a", "b", "c"), ("a",), ("b",), ("c",)]
    assert all(g.reads == g.writes for g in groups)


def test_a_forbidden_block_is_not_a_parameter():
    groups = preset(CrosscoderRecipe(variant="dfc", features=40, exclusive_share=0.1), ("a", "b"))

    weights = initial({"a": 3, "b": 5}, groups, decoder_norm=0.4, generator=torch.Generator())

    assert {name for name in weights if name.startswith("decoder.")} == {
        "decoder.a.shared",
        "decoder.b.shared",
        "decoder.a.a",
        "decoder.b.b",
    }
    assert weights["encoder.b.b"].shape == (4, 5)
    torch.testing.assert_close(weights["decoder.b.shared"].norm(dim=1), torch.full((32,), 0.4))


def test_a_dictionary_too_small_for_its_groups_is_refused_with_the_numbers():
    with pytest.raises(RecipeError, match=r"8 features with an exclusive share of 0.01 leave 0"):
        preset(CrosscoderRecipe(variant="dfc", features=8, exclusive_share=0.01), ("a", "b"))
