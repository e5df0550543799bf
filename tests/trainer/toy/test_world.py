"""Worlds hold what their plan says, and rows are made of nothing but the concepts that their source holds."""

import pytest
import torch

from trainer.errors import UsageError
from trainer.toy.firing import FiringModel
from trainer.toy.layers import layered_world
from trainer.toy.presets import preset
from trainer.toy.world import BLOCK, World, WorldPlan, random_world


def holders(world: World) -> torch.Tensor:
    return torch.stack([vectors.any(dim=1) for vectors in world.vectors.values()], dim=1)


def lengths(vectors: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(vectors, dim=1)


def test_five_percent_of_512_concepts_are_exclusive_half_of_them_in_each_source():
    held = holders(random_world(WorldPlan(), seed=0))

    assert int((held == torch.tensor([True, False])).all(dim=1).sum()) == 13
    assert int((held == torch.tensor([False, True])).all(dim=1).sum()) == 13
    assert int(held.all(dim=1).sum()) == 512 - 26


def test_three_sources_share_some_concepts_by_pairs():
    plan = WorldPlan(concepts=300, widths=(16, 24, 32), exclusive_share=0.06, pair_share=0.09)

    held = holders(random_world(plan, seed=1))

    # 6 % of 300 over three sources, 9 % over three pairs, and the rest in all.
    assert [int((held.sum(dim=1) == count).sum()) for count in (1, 2, 3)] == [18, 27, 255]
    assert held[held.sum(dim=1) == 1].sum(dim=0).tolist() == [6, 6, 6]
    assert held[held.sum(dim=1) == 2].sum(dim=0).tolist() == [18, 18, 18]


def test_directions_in_another_source_are_as_long_and_have_nothing_to_do_with_the_first():
    world = random_world(WorldPlan(concepts=400, widths=(64, 96), exclusive_share=0.0), seed=2)
    first, second = world.vectors.values()

    assert second.shape == (400, 96)
    torch.testing.assert_close(lengths(first), torch.ones(400))
    assert float(lengths(second).median()) == pytest.approx(1.0, abs=1e-5)
    # A linear map keeps angles roughly: what is nearly orthogonal in one source is so in the other.
    cosines = torch.nn.functional.normalize(second, dim=1) @ torch.nn.functional.normalize(second, dim=1).T
    assert float((cosines - torch.eye(400)).abs().max()) < 0.8


def test_a_source_sees_the_same_magnitudes_as_the_others_and_only_noise_for_concepts_it_lacks():
    first = torch.eye(40)
    second = torch.eye(40)
    second[:10] = 0
    world = World({"first": first, "second": second}, FiringModel.random(40, torch.Generator().manual_seed(0)), seed=3)

    rows, counts = world.block(0)

    # Directions are the axes, so every coordinate is one concept's magnitude plus noise of 0.01.
    assert float(rows["second"][:, :10].abs().max()) < 0.07
    assert float(rows["first"][:, :10].max()) > 0.9
    assert float((rows["first"] - rows["second"])[:, 10:].abs().max()) < 0.1
    assert float((rows["first"] - rows["second"])[:, 10:].std()) == pytest.approx(0.01 * 2**0.5, rel=0.02)
    seen = (rows["first"] > 0.06).sum(dim=0)
    assert float((seen / counts).mean()) == pytest.approx(0.94, abs=0.01), "magnitudes are uniform up to one"


def test_rows_do_not_depend_on_how_many_are_written(tmp_path):
    world = random_world(WorldPlan(concepts=40, widths=(8, 12)), seed=4)

    few, _ = world.write(tmp_path / "few", rows=BLOCK // 2, held_out=100, dtype="float32")
    many, frequency = world.write(tmp_path / "many", rows=BLOCK + 10, held_out=0, dtype="bfloat16")

    assert (few.count("train"), few.count("held_out"), many.count("train")) == (BLOCK // 2, 100, BLOCK + 10)
    one, other = (next(iter(store.blocks("train", rows=BLOCK // 2))).rows["source-2"] for store in (few, many))
    assert torch.equal(one.bfloat16(), other)
    first_two = sum(world.block(number)[1] for number in (0, 1))
    torch.testing.assert_close(frequency, first_two / (2 * BLOCK))
    few.verify()


def test_worlds_of_different_seeds_have_nothing_in_common():
    one, other = (random_world(WorldPlan(concepts=40, widths=(8, 8)), seed) for seed in (0, 1))

    assert not torch.equal(holders(one), holders(other)) or not torch.equal(one.firing.decay, other.firing.decay)
    assert float((one.block(0)[0]["source-1"] - other.block(0)[0]["source-1"]).abs().mean()) > 0.05


def test_a_concept_begins_at_its_layer_and_persists_with_what_the_layers_add():
    world = layered_world(concepts=40, width=16, layers=3, seed=0)
    streams = [world.vectors[f"resid-{layer}"] for layer in range(3)]
    added = [world.vectors[f"mlp-{layer}"] for layer in range(3)]

    begun = torch.stack([stream.any(dim=1) for stream in streams], dim=1)
    assert begun.sum(dim=0).tolist() == [14, 27, 40]
    assert bool((begun[:, 1:] >= begun[:, :-1]).all()), "what has begun stays"
    for layer in range(3):
        assert torch.equal(added[layer].any(dim=1), begun[:, layer])
    for layer in range(2):
        old = begun[:, layer]
        torch.testing.assert_close(streams[layer + 1][old], (streams[layer] + added[layer])[old])
        new = begun[:, layer + 1] & ~old
        torch.testing.assert_close(lengths(streams[layer + 1][new]), torch.ones(int(new.sum())))


def test_the_preset_worlds_are_those_of_the_literature():
    scarce, ample = preset("scarce").make(0), preset("ample").make(0)

    assert holders(scarce).sum(dim=0).tolist() == [600, 600] and int(holders(scarce).all(dim=1).sum()) == 500
    assert holders(ample).sum(dim=0).tolist() == [375, 375] and int(holders(ample).all(dim=1).sum()) == 300
    assert list(preset("pairs").make(0).vectors) == ["source-1", "source-2", "source-3"]
    assert preset("pairs").per_variant["dfc"]["subsets"] == [
        ["source-1", "source-2"],
        ["source-1", "source-3"],
        ["source-2", "source-3"],
    ]


def test_an_exclusive_share_can_be_chosen_within_bounds():
    held = holders(preset("paper", exclusive_share=0.5).make(0))

    assert int(held.all(dim=1).sum()) == 256
    with pytest.raises(UsageError, match=r"1\.5 is not between 0 and 1"):
        preset("paper", exclusive_share=1.5)
    with pytest.raises(UsageError, match="'layers' has no exclusive share"):
        preset("layers", exclusive_share=0.1)
    with pytest.raises(UsageError, match="There are paper, widths, noisy, pairs, ample, scarce, layers"):
        preset("papper")


def test_private_noise_is_dense_lies_in_half_of_the_dimensions_and_is_each_sources_own():
    plan = WorldPlan(concepts=100, widths=(32, 48), private_noise=0.5)
    noisy, clean = random_world(plan, seed=4), random_world(WorldPlan(concepts=100, widths=(32, 48)), seed=4)

    added = {name: (noisy.block(0)[0][name] - clean.block(0)[0][name]).double() for name in noisy.sources}

    for name, noise in added.items():
        assert float(noise.var(dim=0).sum() / clean.block(0)[0][name].var(dim=0).sum()) == pytest.approx(0.5, rel=0.02)
        spectrum = torch.linalg.eigvalsh(noise.T @ noise / BLOCK).flip(0)
        half = len(spectrum) // 2
        assert float(spectrum[half - 1]) > 0.8 * float(spectrum[0]) and float(spectrum[half:].abs().max()) < 1e-6
    one, two = ((x - x.mean(dim=0)) / x.std(dim=0) for x in added.values())
    assert float((one.T @ two / BLOCK).abs().max()) < 0.05
