"""Noised copies of a model, and how much noise they get."""

import pytest
import torch

from tests.worlds.tiny_models import tiny_llama
from trainer.baselines.noised import LARGEST_AMOUNT, NoisedCopy, has_room, matching_amount
from trainer.models.source import Source, load_source
from trainer.recipe.fitting import SourceRecipe


@pytest.fixture
def llama(tmp_path) -> Source:
    tiny_llama(tmp_path / "llama")
    recipe = SourceRecipe(name="base", model=str(tmp_path / "llama"), layer=1, dtype="float32", device="cpu")
    return load_source(recipe)


def weights(source: Source) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in source.model.named_parameters()}


def test_noise_is_drawn_anew_from_the_original_and_leaves_the_original_alone(llama):
    before = weights(llama)
    copy = NoisedCopy(llama)

    first, second, again = (weights(copy.draw(0.1, seed)) for seed in (0, 1, 0))

    assert all(torch.equal(weight, before[name]) for name, weight in weights(llama).items())
    assert all(torch.equal(first[name], again[name]) for name in first), "the same seed gives the same noise"
    matrices = [name for name, weight in before.items() if weight.dim() >= 2]
    assert matrices and all(not torch.equal(first[name], second[name]) for name in matrices)
    for name in matrices:
        noise = (first[name] - before[name]).std() / before[name].std()
        assert float(noise) == pytest.approx(0.1, rel=0.2), name
    assert all(torch.equal(first[name], before[name]) for name in before.keys() - set(matrices))


def test_a_copy_computes_by_itself(llama):
    copy = NoisedCopy(llama).draw(0.5, 0)
    ids = torch.arange(20)[None]

    assert not torch.equal(copy.model(ids).logits, llama.model(ids).logits)
    assert copy.body is not llama.body and copy.blocks is not llama.blocks
    assert has_room(llama, copies=2)


def test_the_amount_is_that_which_moves_predictions_as_far():
    assert matching_amount(lambda amount: 3 * amount**2, 0.03) == pytest.approx(0.1)
    assert matching_amount(lambda amount: 2 * amount**1.8, 0.03) == pytest.approx(0.097, rel=0.03), "not a square"
    assert matching_amount(lambda amount: 1e-6 * amount**2, 0.5) == LARGEST_AMOUNT
    assert matching_amount(lambda _: 0.0, 0.5) == LARGEST_AMOUNT
