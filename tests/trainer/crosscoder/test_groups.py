"""Groups of a variant are contiguous, and only the allowed weight blocks exist."""

import pytest
import torch

from trainer.crosscoder.groups import build_groups, difference_sources
from trainer.crosscoder.initial_weights import initial_weights
from trainer.errors import RecipeError
from trainer.recipe.fitting import CrosscoderRecipe


def test_dfc_has_a_shared_group_and_one_for_each_of_three_sources():
    groups = build_groups(CrosscoderRecipe(variant="dfc", features=100, exclusive_share=0.05), {"a": 3, "b": 5, "c": 4})

    assert [(g.name, g.first, g.stop) for g in groups] == [
        ("shared", 0, 85),
        ("a", 85, 90),
        ("b", 90, 95),
        ("c", 95, 100),
    ]
    assert [g.reads for g in groups] == [("a", "b", "c"), ("a",), ("b",), ("c",)]
    assert all(g.reads == g.writes for g in groups)


def test_a_forbidden_block_is_not_a_parameter():
    groups = build_groups(CrosscoderRecipe(variant="dfc", features=40, exclusive_share=0.1), {"a": 3, "b": 5})

    weights = initial_weights({"a": 3, "b": 5}, groups, decoder_norm=0.4, generator=torch.Generator())

    assert {name for name in weights if name.startswith("decoder.")} == {
        "decoder.a.shared",
        "decoder.b.shared",
        "decoder.a.a",
        "decoder.b.b",
    }
    assert weights["encoder.b.b"].shape == (4, 5)
    torch.testing.assert_close(weights["decoder.b.shared"].norm(dim=1), torch.full((32,), 0.4))


def test_a_dictionary_too_small_for_its_groups_is_rejected_with_the_sizes():
    with pytest.raises(RecipeError, match=r"8 features with an exclusive share of 0.01 leave 0"):
        build_groups(CrosscoderRecipe(variant="dfc", features=8, exclusive_share=0.01), {"a": 3, "b": 5})


LAYERS = {"r0": 4, "r1": 4, "r2": 4}


def spans(variant: str, **settings) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    widths = LAYERS | {name.replace("r", "m"): width for name, width in LAYERS.items()} if settings else LAYERS
    groups = build_groups(CrosscoderRecipe(variant=variant, features=10, **settings), widths)
    assert [group.first for group in groups] == [0, *(group.stop for group in groups[:-1])]
    assert groups[-1].stop == 10
    return [(group.reads, group.writes) for group in groups]


def test_weakly_causal_groups_write_their_layer_and_all_later_ones():
    assert spans("weakly_causal") == [(("r0",), ("r0", "r1", "r2")), (("r1",), ("r1", "r2")), (("r2",), ("r2",))]


def test_strictly_causal_groups_never_write_what_they_read():
    assert spans("strictly_causal") == [(("r0",), ("r1", "r2")), (("r1",), ("r2",))]


def test_a_cross_layer_transcoder_writes_the_mlp_outputs_of_its_layer_and_later_ones():
    layers = {"inputs": ("r0", "r1", "r2"), "targets": ("m0", "m1", "m2")}

    assert spans("clt", **layers) == [(("r0",), ("m0", "m1", "m2")), (("r1",), ("m1", "m2")), (("r2",), ("m2",))]
    assert spans("transcoder", **layers) == [(("r0",), ("m0",)), (("r1",), ("m1",)), (("r2",), ("m2",))]


def test_a_local_window_reads_and_writes_only_neighbours():
    assert spans("local_window") == [(("r0", "r1"),) * 2, (("r0", "r1", "r2"),) * 2, (("r1", "r2"),) * 2]


def test_dfc_may_dedicate_a_group_to_a_subset():
    recipe = CrosscoderRecipe(variant="dfc", features=100, subsets=(("a", "c"),))
    groups = build_groups(recipe, {"a": 3, "b": 5, "c": 4})

    assert [(group.name, group.features) for group in groups] == [
        ("shared", 80),
        ("a", 5),
        ("b", 5),
        ("c", 5),
        ("a+c", 5),
    ]
    assert groups[-1].reads == groups[-1].writes == ("a", "c")


def test_designated_shared_ties_decoders_only_where_widths_agree():
    recipe = CrosscoderRecipe(variant="designated_shared", features=100)

    assert build_groups(recipe, {"a": 4, "b": 4})[0].tied
    assert not build_groups(recipe, {"a": 4, "b": 5})[0].tied
    weights = initial_weights(
        {"a": 4, "b": 4}, build_groups(recipe, {"a": 4, "b": 4}), decoder_norm=1, generator=torch.Generator()
    )
    assert weights["decoder.a.shared"] is weights["decoder.b.shared"]


def test_diff_sae_reads_the_difference_of_two_sources_of_one_width():
    recipe = CrosscoderRecipe(variant="diff_sae")

    assert difference_sources(recipe, {"base": 4, "chat": 4}) == {"chat-minus-base": ("chat", "base")}
    with pytest.raises(RecipeError, match="one width"):
        difference_sources(recipe, {"base": 4, "chat": 5})


GROUP = {"name": "g", "features": 2, "reads": ("a",)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "sae"}, "one source"),
        ({"variant": "clt"}, "as many `targets`"),
        ({"variant": "custom"}, "needs `groups`"),
        ({"variant": "standard", "inputs": ("a", "z")}, "no source is named 'z'"),
        ({"variant": "custom", "groups": (GROUP | {"writes": ("q",)},)}, "uses 'q'"),
        ({"variant": "custom", "groups": (GROUP | {"writes": ("a", "b"), "tied": True},)}, "cannot be tied"),
    ],
)
def test_a_variant_that_does_not_fit_the_sources_is_rejected_with_the_reason(settings, message):
    with pytest.raises(RecipeError, match=message):
        build_groups(CrosscoderRecipe(**settings), {"a": 3, "b": 5})


@pytest.mark.parametrize("variant", ["standard", "dfc", "designated_shared"])
def test_a_comparison_needs_a_second_source(variant):
    with pytest.raises(RecipeError, match=f"{variant} compares sources, and there is only a"):
        build_groups(CrosscoderRecipe(variant=variant), {"a": 3})
