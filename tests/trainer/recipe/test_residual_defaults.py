"""A residual dictionary is small unless the recipe says otherwise."""

import pytest

from trainer.recipe.fitting import CrosscoderRecipe, SparsityRecipe
from trainer.recipe.recipe import parse_recipe


@pytest.mark.parametrize(
    ("settings", "features", "k"),
    [
        ({}, 1024, 8),
        ({"features": 4096}, 4096, 8),
        ({"sparsity": {"k": 3}}, 1024, 3),
        ({"sparsity": {"kind": "topk"}}, 1024, 8),
        ({"sparsity": {"kind": "topk", "k": 32}, "features": 8192}, 8192, 32),
        ({"sparsity": SparsityRecipe(k=5)}, 1024, 5),
    ],
)
def test_features_and_k_are_small_by_default_and_the_recipe_wins(settings, features, k):
    found = CrosscoderRecipe(variant="residual", **settings)

    assert (found.features, found.sparsity.k) == (features, k)
    assert CrosscoderRecipe(**found.model_dump()) == found


def test_other_variants_keep_their_defaults():
    assert (CrosscoderRecipe().features, CrosscoderRecipe().sparsity.k) == (8192, 32)


def test_every_variant_of_a_sweep_has_its_own_defaults():
    sweep = {"crosscoder.variant": ["dfc", "residual"], "training.seed": [0, 1]}
    recipe = parse_recipe({"name": "mine", "crosscoder": {"exclusive_share": 0.1}, "sweep": sweep}, origin="here")

    found = [(one.crosscoder.variant, one.crosscoder.features, one.crosscoder.sparsity.k) for one in recipe.variants()]

    assert found == [("dfc", 8192, 32)] * 2 + [("residual", 1024, 8)] * 2
    assert {one.crosscoder.exclusive_share for one in recipe.variants()} == {0.1}


def test_a_seed_swept_is_the_recipe_with_that_seed():
    data = {"name": "mine", "crosscoder": {"variant": "residual"}}
    recipe = parse_recipe(data | {"sweep": {"training.seed": [0, 1, 2, 3]}}, origin="here")

    alone = [parse_recipe(data | {"training": {"seed": seed}}, origin="here") for seed in range(4)]

    assert [one.fingerprint() for one in recipe.variants()] == [one.fingerprint() for one in alone]
