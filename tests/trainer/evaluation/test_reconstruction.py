"""Measures on held-out rows are numbers, and bad ones are told."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import StoreError
from trainer.evaluation.fidelity import Losses
from trainer.evaluation.reconstruction import evaluate
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.training.stage import train


@pytest.fixture
def trained(tmp_path):
    store, folder = tiny_activations(tmp_path / "store"), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return store, train(tiny_recipe(), store, folder, Progress(folder, "tiny"))


def test_a_reconstruction_worse_than_the_mean_is_told(tmp_path, trained, capsys):
    store, crosscoder = trained
    crosscoder.weights["decoder_bias.left"].data += 100

    evaluate(store, crosscoder, Progress(RunFolder(tmp_path / "run"), "tiny"))

    told = capsys.readouterr().err
    assert "reconstructions of left are further from its activations than their mean (variance explained -" in told
    assert "reconstructions of right" not in told


@pytest.mark.parametrize("damage", ["weights", "rows"])
def test_a_measure_that_is_no_number_is_an_error_with_its_name(tmp_path, trained, damage):
    store, crosscoder = trained
    if damage == "weights":
        crosscoder.weights["decoder_bias.left"].data[:] = torch.nan
    else:
        file = store.path / store.shards("held_out")[0].file
        save_file({name: rows * (1e25 if name == "left" else 1) for name, rows in load_file(file).items()}, file)

    with pytest.raises(StoreError, match=r"variance_explained of left is not a number on the held-out rows"):
        evaluate(store, Crosscoder(**vars(crosscoder)), Progress(RunFolder(tmp_path / "run"), "tiny"))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_no_numbers_are_left_out(number):
    clean, changed = torch.zeros(3, 5), torch.zeros(3, 5)
    changed[1, 2] = number
    losses = Losses()
    losses.tokens = 3

    losses.add(clean, [clean, changed, clean], torch.tensor([0, 1, 2]))

    found = {row["measure"]: row["value"] for row in losses.measures("left")}
    assert "cross_entropy" in found and all(map(math.isfinite, found.values()))
