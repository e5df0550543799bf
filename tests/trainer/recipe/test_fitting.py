"""What recipe sections compute from their settings."""

from trainer.recipe.fitting import SparsityRecipe


def test_k_falls_linearly_from_its_start_and_then_stays():
    recipe = SparsityRecipe(k=10, k_start=50, anneal_share=0.5)

    assert [recipe.k_at(step, steps=8) for step in range(6)] == [50, 40, 30, 20, 10, 10]
