"""Every source is exported as an autoencoder with that source's part of the crosscoder."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.foreign_checkpoints import BOTH, SHARED_FIRST, UNEVEN, random_crosscoder, raw_rows
from trainer.errors import CrosscoderError
from trainer.interchange import saelens

SHARED, OF_LEFT, OF_RIGHT = range(5), range(5, 7), range(7, 10)


def by_their_formula(folder, rows):
    """Codes and reconstruction of raw rows [R, W] by the autoencoder in a folder, one number at a time."""
    settings, tensors = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    t = {name: tensor.double().tolist() for name, tensor in tensors.items()}
    assert settings["apply_b_dec_to_input"] is False and settings["normalize_activations"] == "none"
    neurons, features = range(settings["d_in"]), range(settings["d_sae"])
    codes, outputs = [], []
    for row in rows.double().tolist():
        pre = [t["b_enc"][f] + sum(row[i] * t["W_enc"][i][f] for i in neurons) for f in features]
        if settings["architecture"] == "jumprelu":
            code = [max(value, 0.0) if value > t["threshold"][f] else 0.0 for f, value in enumerate(pre)]
        elif settings["architecture"] == "topk":
            kept = sorted(features, key=lambda f: -pre[f])[: settings["k"]]
            code = [max(value, 0.0) if f in kept else 0.0 for f, value in enumerate(pre)]
        else:
            assert settings["architecture"] == "standard"
            code = [max(value, 0.0) for value in pre]
        codes.append(code)
        outputs.append([t["b_dec"][i] + sum(code[f] * t["W_dec"][f][i] for f in features) for i in neurons])
    return torch.tensor(codes), torch.tensor(outputs)


def dense(codes, features):
    """Codes as a matrix [rows, features]."""
    matrix = torch.zeros(codes.rows, features)
    matrix[codes.row, codes.feature] = codes.value
    return matrix


def with_others_at_their_mean(crosscoder, source):
    """Raw rows in which only one source differs from its mean."""
    rows = raw_rows(crosscoder)
    return {s: x if s == source else crosscoder.normaliser[s].mean.expand_as(x) for s, x in rows.items()}


@pytest.mark.parametrize(
    ("options", "architecture"),
    [
        ({}, "standard"),
        ({"threshold": {"shared": 1.1, "left": 0.7, "right": 0.4}, "rank_by": "largest_norm"}, "jumprelu"),
        ({"aggregation": "mean", "threshold": 0.4}, "jumprelu"),
    ],
)
@pytest.mark.parametrize("source", BOTH)
def test_an_autoencoder_is_the_crosscoder_when_the_other_sources_stand_at_their_mean(
    tmp_path, options, architecture, source
):
    crosscoder = random_crosscoder(SHARED_FIRST, widths={"left": 4, "right": 6}, normalisation=UNEVEN, **options)
    rows = with_others_at_their_mean(crosscoder, source)
    theirs = crosscoder.encode(rows, compute=torch.float32)

    saelens.write(crosscoder, tmp_path)
    codes, output = by_their_formula(tmp_path / source, rows[source])

    assert json.loads((tmp_path / source / "cfg.json").read_text())["architecture"] == architecture
    readable = [*SHARED, *(OF_LEFT if source == "left" else OF_RIGHT)]
    expected = dense(theirs, crosscoder.features)
    torch.testing.assert_close(codes[:, readable], expected[:, readable], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output, crosscoder.decode(theirs)[source], rtol=1e-4, atol=1e-4)
    assert 0 < int(codes.count_nonzero()) < codes[:, readable].numel()


def test_exclusive_features_are_exact_whatever_the_other_source_does_and_foreign_ones_never_fire(tmp_path):
    crosscoder = random_crosscoder(SHARED_FIRST, normalisation=UNEVEN, threshold=0.4)
    rows = raw_rows(crosscoder)

    saelens.write(crosscoder, tmp_path)
    codes, _ = by_their_formula(tmp_path / "left", rows["left"])

    expected = dense(crosscoder.encode(rows, compute=torch.float32), crosscoder.features)
    torch.testing.assert_close(codes[:, OF_LEFT], expected[:, OF_LEFT], rtol=1e-4, atol=1e-4)
    assert int(expected[:, OF_LEFT].count_nonzero()) > 0
    assert int(codes[:, OF_RIGHT].count_nonzero()) == 0


def test_features_kept_per_row_become_a_topk_autoencoder(tmp_path):
    crosscoder = random_crosscoder(normalisation=UNEVEN, rank_by="largest_norm", row_k={"shared": 3})
    rows = with_others_at_their_mean(crosscoder, "right")

    saelens.write(crosscoder, tmp_path)
    _, output = by_their_formula(tmp_path / "right", rows["right"])

    codes = crosscoder.encode(rows, compute=torch.float32)
    torch.testing.assert_close(output, crosscoder.decode(codes)["right"], rtol=1e-4, atol=1e-4)


def test_a_feature_without_a_decoder_never_fires(tmp_path):
    crosscoder = random_crosscoder(threshold=0.5)
    for source in BOTH:
        crosscoder.weights[f"decoder.{source}.shared"][4] = 0

    saelens.write(crosscoder, tmp_path)
    codes, _ = by_their_formula(tmp_path / "left", raw_rows(crosscoder)["left"])

    assert int(codes[:, 4].count_nonzero()) == 0


def test_the_metadata_has_the_origin_and_a_note_on_joint_codes(tmp_path):
    origins = {"left": {"model_name": "gemma-3-270m", "hook_name": "blocks.9.hook_resid_post"}}

    saelens.write(random_crosscoder(), tmp_path, origins=origins)

    metadata = json.loads((tmp_path / "left" / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "gemma-3-270m"
    assert metadata["sae_lens_version"] == "6.0.0", "settings without it are taken for an older layout"
    assert "a sum over all of them" in metadata["note"] and "left, right" in metadata["note"]


def test_a_source_whose_name_would_leave_the_folder_is_refused(tmp_path):
    crosscoder = random_crosscoder(normalisation={"../left": (0.0, 1.0)}, widths={"../left": 4}, groups=())

    with pytest.raises(CrosscoderError, match="cannot name a source"):
        saelens.write(crosscoder, tmp_path)
