"""A crosscoder is exported to sparsify as one autoencoder over the concatenated sources."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.foreign_checkpoints import SHARED_FIRST, UNEVEN, random_crosscoder, raw_rows
from trainer.errors import CrosscoderError
from trainer.interchange import sparsify

WIDTHS = {"left": 3, "right": 5}


def by_their_formula(folder, rows):
    """Reconstruction of concatenated raw rows [R, W]: the k largest codes of x minus the decoder's bias."""
    settings, tensors = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    t = {name: tensor.double().tolist() for name, tensor in tensors.items()}
    neurons, features = range(settings["d_in"]), range(settings["num_latents"])
    result = []
    for row in rows.double().tolist():
        x = [row[i] - t["b_dec"][i] for i in neurons]
        codes = [
            max(0.0, t["encoder.bias"][f] + sum(x[i] * t["encoder.weight"][f][i] for i in neurons)) for f in features
        ]
        kept = sorted(features, key=lambda f: -codes[f])[: settings["k"]]
        result.append([t["b_dec"][i] + sum(codes[f] * t["W_dec"][f][i] for f in kept) for i in neurons])
    return torch.tensor(result)


def assert_follows_formula(folder, crosscoder, codes):
    expected = by_their_formula(folder, torch.cat(list(raw_rows(crosscoder).values()), dim=1))
    found = torch.cat(list(crosscoder.decode(codes).values()), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_relu_crosscoder_with_different_widths_and_groups_is_held_exactly(tmp_path):
    crosscoder = random_crosscoder(SHARED_FIRST, widths=WIDTHS, normalisation=UNEVEN)

    sparsify.write(crosscoder, tmp_path)

    assert json.loads((tmp_path / "cfg.json").read_text())["k"] == crosscoder.features
    assert_follows_formula(tmp_path, crosscoder, crosscoder.encode(raw_rows(crosscoder), compute=torch.float32))


def test_features_kept_per_row_are_held_exactly_whatever_they_are_ranked_by(tmp_path):
    crosscoder = random_crosscoder(
        widths=WIDTHS, normalisation=UNEVEN, rank_by="largest_norm", aggregation="mean", row_k={"shared": 4}
    )

    sparsify.write(crosscoder, tmp_path)

    assert_follows_formula(tmp_path, crosscoder, crosscoder.encode(raw_rows(crosscoder), compute=torch.float32))


def test_a_threshold_becomes_k_per_row_only_when_asked_and_ranks_by_the_score(tmp_path):
    crosscoder = random_crosscoder(widths=WIDTHS, normalisation=UNEVEN, threshold=1.0, rank_by="largest_norm")

    with pytest.raises(CrosscoderError, match=r"those above a threshold. Say how many to keep instead \(k\)"):
        sparsify.write(crosscoder, tmp_path / "no")
    sparsify.write(crosscoder, tmp_path / "yes", k=2)

    crosscoder.row_k = {"shared": 2}
    assert_follows_formula(tmp_path / "yes", crosscoder, crosscoder.encode(raw_rows(crosscoder), compute=torch.float32))


def test_k_that_differ_between_groups_are_refused(tmp_path):
    crosscoder = random_crosscoder(SHARED_FIRST, row_k={"shared": 3, "left": 1, "right": 1})

    with pytest.raises(CrosscoderError, match="shared 3, left 1, right 1"):
        sparsify.write(crosscoder, tmp_path / "new")
