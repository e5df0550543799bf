"""Thresholds, scales and means that training saves with the crosscoder."""

import math

import pytest
import torch

from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.training.stage import train
from trainer.training.trainer import Training


def test_saved_thresholds_reproduce_the_k_of_training(tmp_path):
    store, folder = tiny_activations(tmp_path / "store"), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    train(tiny_recipe(), store, folder, Progress(folder, "tiny"))

    loaded = Crosscoder.load(folder.path)

    assert all(0 < float(value) < math.inf for value in loaded.threshold.values())
    (block,) = store.blocks("held_out")
    codes = loaded.encode(block.rows)
    assert len(codes.row) / codes.rows == pytest.approx(3, abs=0.3)


def test_without_held_out_rows_the_threshold_is_the_moving_average_of_training(tmp_path):
    store, folder = tiny_activations(tmp_path / "store", held_out=0), RunFolder(tmp_path / "run")
    folder.path.mkdir()

    train(tiny_recipe(), store, folder, Progress(folder, "tiny"))

    loaded = Crosscoder.load(folder.path)
    rows = next(store.blocks("train")).rows
    codes = loaded.encode(rows)
    assert all(float(value) > 0 for value in loaded.threshold.values())
    assert len(codes.row) / codes.rows == pytest.approx(3, abs=0.3)


def test_scales_and_means_of_the_sources_are_saved_and_applied_in_encoding_and_decoding(tmp_path):
    """The right source is forty times as large as the left and has a mean of 100."""
    store, folder = tiny_activations(tmp_path / "store", rows=12_288), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    train(tiny_recipe(training={"epochs": 6}), store, folder, Progress(folder, "tiny"))

    loaded = Crosscoder.load(folder.path)

    assert loaded.normaliser["left"].scale > 30 * loaded.normaliser["right"].scale
    assert float(loaded.normaliser["right"].mean.mean()) == pytest.approx(100, abs=5)
    (block,) = store.blocks("held_out")
    rebuilt = loaded.decode(loaded.encode(block.rows))
    for source, truth in block.rows.items():
        error = (rebuilt[source] - truth).square().sum() / (truth - truth.mean(dim=0)).square().sum()
        assert error < 0.3, source


def test_jumprelu_thresholds_are_trained_in_float32_when_products_run_in_bfloat16(tmp_path):
    """Steps of 1e-4 would be lost in bfloat16, whose spacing near -2.3 is 0.0156."""
    recipe = tiny_recipe(
        crosscoder={"sparsity": {"kind": "jumprelu", "coefficient": 0.3, "bandwidth": 0.5}},
        training={"precision": "bfloat16", "learning_rate": 1e-4, "epochs": 1},
    )
    training = Training(recipe, tiny_activations(tmp_path / "store"))
    before = {name: value.detach().clone() for name, value in training.log_thresholds.items()}

    for rows in training.remaining_batches():
        training.run_step(rows)
    training.set_thresholds()

    moved = torch.cat([(training.log_thresholds[name].detach() - start).abs() for name, start in before.items()])
    assert training.encoder.compute == torch.bfloat16
    assert float((moved > 0).float().mean()) > 0.9
    assert 1e-4 < float(moved.max()) < 0.0156
    for name, value in training.log_thresholds.items():
        torch.testing.assert_close(training.crosscoder.threshold[name], value.detach().exp(), rtol=0, atol=0)
