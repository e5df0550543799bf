"""Spike-ins that residual dictionaries recover: compared in the space of the source that a dictionary writes."""

import numpy as np
import pytest
import torch

from tests.worlds.related import related_sources
from tests.worlds.tiny_activations import tiny_recipe
from trainer.analysis.rows.codes import CodeSpool
from trainer.calibration.recovery import direction_cosines, recall_table, recovered_features
from trainer.calibration.spike_ins import SpikeInSet, spiked_store
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import centred_rms
from trainer.crosscoder.prediction import Prediction
from trainer.recipe.measuring import CalibrationRecipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.training.stage import train

GRID = CalibrationRecipe(rows=6000, amplitudes=(0.8,), frequencies=(0.05,), per_cell=3)


@pytest.fixture(scope="module")
def spiked(tmp_path_factory):
    """Spike-ins, the feature that recovers each, and every feature's owner, of a residual training."""
    path = tmp_path_factory.mktemp("spiked")
    world = related_sources(path / "store")
    normaliser = {s: centred_rms(block.rows[s] for block in world.store.blocks("train")) for s in world.store.widths}
    spike_ins = SpikeInSet.from_recipe(GRID, world.store.widths)
    store = spiked_store(world.store, path / "rows", tuple(normaliser), normaliser, spike_ins, rows=GRID.rows)
    recipe = tiny_recipe(
        crosscoder={"variant": "residual", "features": 24, "sparsity": {"k": 2}},
        training={"epochs": 8, "learning_rate": 0.02},
    )
    folder = RunFolder(path / "run")
    folder.path.mkdir()
    crosscoder = train(recipe, store, folder, Progress(folder, "tiny"))
    with CodeSpool(folder.path, crosscoder.features) as codes:
        for block in store.blocks():
            codes.append(crosscoder.encode(block.rows))
        codes.flush()
        found = recovered_features(codes, crosscoder, spike_ins)
    owners = [group.writes[0] for group in crosscoder.groups for _ in range(group.features)]
    return spike_ins, found, owners, crosscoder


def test_an_exclusive_spike_in_comes_back_in_the_dictionary_of_its_source(spiked):
    spike_ins, found, owners, _ = spiked
    exclusive = [(feature, one.source) for feature, one in zip(found, spike_ins.concepts, strict=True) if one.source]

    assert all(feature >= 0 and owners[feature] == source for feature, source in exclusive)


def test_a_shared_spike_in_that_comes_up_stands_behind_a_false_claim(spiked):
    spike_ins, _, owners, crosscoder = spiked
    shared = np.array([one.source is None for one in spike_ins.concepts])
    cosine = direction_cosines(crosscoder, spike_ins)
    for number, source in enumerate(crosscoder.sources):
        features = slice(24 * number, 24 * (number + 1))
        decoder = torch.nn.functional.normalize(crosscoder.decoder(source), dim=1)[features]
        expected = decoder @ spike_ins.directions[source][shared].T
        assert torch.allclose(torch.tensor(cosine[features][:, shared]).float(), expected, atol=1e-5)

    came_up = np.where(shared, np.arange(len(shared)), -1)
    verdict = ["supported"] * crosscoder.features
    (row,) = (r for r in recall_table(spike_ins.concepts, came_up, owners, verdict) if r["placement"] == "shared")
    assert (row["recovered"], row["as_claimed"], row["supported"]) == (3, 0, 3)


def test_a_feature_is_not_compared_with_what_its_dictionary_cannot_write(spiked):
    spike_ins, _, _, crosscoder = spiked
    cosine = direction_cosines(crosscoder, spike_ins)

    only_right = np.array([one.source == "right" for one in spike_ins.concepts])
    assert not cosine[:24][:, only_right].any()


def test_other_crosscoders_are_compared_in_every_source_that_has_the_spike_in(spiked):
    spike_ins, _, _, residual = spiked
    groups = (Group("both", 1, 0, ("left", "right"), ("left", "right")), Group("left", 1, 1, ("left",), ("left",)))
    weights = {
        "decoder.left.both": spike_ins.directions["left"][-1:],
        "decoder.right.both": spike_ins.directions["right"][-1:],
        "decoder.left.left": spike_ins.directions["left"][-1:],
    }
    plain = residual.__class__(residual.widths, groups, weights | {"encoder_bias.both": torch.zeros(1)}, {}, {})

    assert direction_cosines(plain, spike_ins)[:, -1].tolist() == pytest.approx([1, 0], abs=1e-5)
    plain.predictions = {"left": Prediction(("right",), torch.zeros(32, 24), torch.zeros(24))}
    assert direction_cosines(plain, spike_ins)[:, -1].tolist() == pytest.approx([1, 1], abs=1e-5)
